"""The ONNX form of a network, with what its framework called each part.

An adapter exports its network so that every tensor that goes into or comes out of a layer call
passes through an `Identity` node: a mark. Between the marks of a call lie exactly the nodes that
the call became, whatever the exporter made of it. The marks vanish when onnxruntime opens the
file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx import ModelProto

__all__ = ["Call", "OnnxForm", "PortForm"]

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer or container.

    Attributes
    ----------
    name, kind, framework_class, layout, shape : as for `pellucid.graph.layers.GraphLayer`.
    inputs : the marks of what went in.
    outputs : the marks of what came out; the first one is the layer's value.
    to_own : permutation of axes from channels first to the layout of the value.
    weights : the learned arrays that the layer itself holds, by a name that is the same wherever
        the array is the same, with their number of elements.
    statistics : the same of what it keeps without learning it: running means and variances.
    fused : kind of an activation that is part of the layer, or "".
    """

    name: str
    kind: str
    framework_class: str = ""
    layout: str = "features"
    shape: tuple[int | None, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    to_own: tuple[int, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)
    fused: str = ""


@dataclass(frozen=True, slots=True)
class PortForm:
    """An input or output: its name for Pellucid, its tensor, and the tensor's layout."""

    name: str
    tensor: str
    layout: str = "spatial"
    to_own: tuple[int, ...] = ()


@dataclass(frozen=True)
class OnnxForm:
    """A network's ONNX form.

    Attributes
    ----------
    calls : in the order in which they finish; a container's inner calls come before it.
    separator : between the parts of the framework's layer names: "." or "/".
    weights : all learned arrays of the network, as in `Call`, or None where nobody knows.
    """

    model: ModelProto
    inputs: tuple[PortForm, ...]
    outputs: tuple[PortForm, ...]
    calls: tuple[Call, ...] = ()
    separator: str = "."
    weights: Mapping[str, int] | None = None
    name: str = ""

    def to_bytes(self) -> bytes:
        """Write everything into one block."""
        fields = {
            "inputs": [asdict(port) for port in self.inputs],
            "outputs": [asdict(port) for port in self.outputs],
            "calls": [asdict(call) for call in self.calls],
            "separator": self.separator,
            "weights": self.weights,
            "name": self.name,
        }
        head = json.dumps(fields).encode()
        model: bytes = self.model.SerializeToString()
        return _LENGTH.pack(len(head)) + head + model

    @classmethod
    def from_bytes(cls, data: bytes) -> OnnxForm:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError : it is something else.
        """
        try:
            (length,) = _LENGTH.unpack_from(data)
            end = _LENGTH.size + length
            fields = json.loads(data[_LENGTH.size : end])
            return cls(
                ModelProto.FromString(data[end:]),
                tuple(_made(PortForm, port) for port in fields["inputs"]),
                tuple(_made(PortForm, port) for port in fields["outputs"]),
                tuple(_made(Call, call) for call in fields["calls"]),
                fields["separator"],
                fields["weights"],
                fields["name"],
            )
        except Exception as error:  # whatever protobuf or JSON say of foreign bytes
            raise ValueError(f"not an ONNX form: {error}") from error


def _made(kind: type, fields: Mapping[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

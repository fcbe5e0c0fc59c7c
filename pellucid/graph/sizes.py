"""Sizes where a file leaves some open: what is known is used, and what says nothing is dropped.

Exporters of TensorFlow read every size off a whole shape, slice along all axes, and give each open
size a symbol of its own. Each of these hides from shape inference that a length is known, or that
two batches are the same.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.tape import array, dims

__all__ = ["forget_symbols", "known_sizes", "leave_out_idle_cuts"]

_MADE_UP = re.compile(r"unk__\d+$")
_END = np.iinfo(np.int32).max  # "to the end", as exporters write it at the least


def known_sizes(graph: ir.Graph) -> dict[ir.Value, NDArray[Any]]:
    """Read sizes off shapes of which others may be open: `Shape(x)[1]` for a free batch."""
    sizes: dict[ir.Value, NDArray[np.object_]] = {}
    for node in graph:
        try:
            found = _sizes(node, sizes)
        except (IndexError, ValueError):  # the file asks for what the shape has not
            continue
        if found is not None:
            sizes[node.outputs[0]] = found
    return {
        value: found.astype(np.int64 if value.dtype is None else value.dtype.numpy())
        for value, found in sizes.items()
        if all(isinstance(size, int) for size in found.reshape(-1))
    }


def _sizes(node: ir.Node, sizes: dict[ir.Value, NDArray[np.object_]]) -> NDArray[np.object_] | None:
    """Follow sizes through an operator that hands them on; open ones are no numbers."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "Shape":
        shape = dims(source)
        if shape is None:
            return None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        cut = slice(start.as_int() if start else None, end.as_int() if end else None)
        return np.asarray(shape[cut], np.object_)
    before = sizes.get(source)
    if before is None:
        return None
    rest = [array(value) for value in node.inputs[1:]]
    if any(contents is None for contents in rest):
        return None
    if node.op_type in ("Cast", "Identity"):
        kind = node.outputs[0].dtype
        return before if kind is not None and kind.is_integer() else None
    if node.op_type == "Slice" and before.ndim == 1:
        cut = slice(*(int(bound[0]) for bound in (*rest[:2], *rest[3:]) if bound is not None))
        return before[cut]
    if node.op_type == "Gather" and before.ndim == 1:
        return np.asarray(before[rest[0]], np.object_)
    if node.op_type in ("Squeeze", "Unsqueeze") and before.size == 1:
        return before.reshape(() if node.op_type == "Squeeze" else (1,) * (before.ndim + 1))
    return None


def forget_symbols(graph: ir.Graph) -> None:
    """Leave sizes open whose symbol tf2onnx or inference made up, for inference to name anew.

    Symbols of inputs are kept: what follows from them gets the same.
    """
    kept = {size for value in graph.inputs for size in dims(value) or ()}
    for node in graph:
        for value in node.outputs:
            shape = dims(value) or ()
            idle = [isinstance(d, str) and d not in kept and bool(_MADE_UP.match(d)) for d in shape]
            if any(idle):
                value.shape = ir.Shape(
                    [None if gone else d for d, gone in zip(shape, idle, strict=True)]
                )


def leave_out_idle_cuts(graph: ir.Graph) -> None:
    """Slice only along axes of which something is cut off."""
    made: dict[bytes, ir.Value] = {}

    def constant(contents: NDArray[np.int64], near: ir.Node) -> ir.Value:
        key = contents.tobytes()
        if key not in made:
            name = f"{near.outputs[0].name}/cut"
            made[key] = ir.Value(
                name=f"{name}_{len(made)}",
                type=ir.TensorType(ir.DataType.INT64),
                shape=ir.Shape(contents.shape),
                const_value=ir.tensor(contents, name=f"{name}_{len(made)}"),
            )
            graph.register_initializer(made[key])
        return made[key]

    for node in graph:
        if node.op_type != "Slice":
            continue
        parts = [array(value) for value in node.inputs[1:]]
        if any(part is None for part in parts):  # some at run time, or left out: rare
            continue
        starts, ends, *rest = [np.asarray(part, np.int64) for part in parts]
        axes = rest[0] if rest else np.arange(len(starts))
        steps = rest[1] if len(rest) > 1 else np.ones_like(starts)
        cuts = (starts != 0) | (ends < _END) | (steps != 1)
        if cuts.all():
            continue
        bounds = [starts, ends, axes, steps] if cuts.any() else []
        node.op_type = "Slice" if bounds else "Identity"
        node.resize_inputs(1 + len(bounds))
        for index, bound in enumerate(bounds, start=1):
            node.replace_input_with(index, constant(bound[cuts], node))

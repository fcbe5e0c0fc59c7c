"""PyTorch and Keras models computed by onnxruntime, under their framework's own layer names."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pellucid.adapters.base import Adapter, Layer, Port
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.graph.form import OnnxForm

__all__ = ["ExportedAdapter", "exported"]


class ExportedAdapter(OnnxAdapter):
    """The ONNX form of a model behind the interface of the model's own adapter.

    Layers, ports, labels and preprocessing are those of the model; values and gradients are
    onnxruntime's.

    Parameters
    ----------
    own : the model's own adapter.
    form : its ONNX form.

    Raises
    ------
    LoadError : onnxruntime cannot run the form.
    UnsupportedError : onnxruntime is missing.
    """

    def __init__(self, own: Adapter, form: OnnxForm) -> None:
        super().__init__(form.model, labels=own.labels, preprocess=own.preprocess,
                         source=own.source)  # fmt: skip
        self.own, self._exported = own, form
        self.framework, self.notes = own.framework, own.notes  # type: ignore[misc]

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """The model's inputs, of the size for which it was exported."""
        values = {value.name: value for value in self.model.graph.input}
        return tuple(
            self._like(port, self._port(values[form.tensor], index, "input"))
            for index, (port, form) in enumerate(
                zip(self.own.inputs, self._exported.inputs, strict=True)
            )
        )

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """The model's outputs."""
        values = {value.name: value for value in self.model.graph.output}
        return tuple(
            self._like(port, self._port(values[form.tensor], index, "output"))
            for index, (port, form) in enumerate(
                zip(self.own.outputs, self._exported.outputs, strict=True)
            )
        )

    @staticmethod
    def _like(own: Port, found: Port) -> Port:
        """Describe a port as the model does, with the tensor, sizes and type of the graph."""
        graph = found.own_shape
        order = sorted(range(len(own.to_own)), key=own.to_own.__getitem__)
        shape = tuple(graph[axis] for axis in order) if len(order) == len(graph) else graph
        return Port(own.name, shape or own.shape, found.own_name, own.to_own, own.activation,
                    found.dtype, own.layout)  # fmt: skip

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layer calls, as the model's own adapter lists them."""
        return self.own.layers

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model itself, not of its form."""
        return self.own.fingerprint

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the model's framework, onnx and onnxruntime."""
        return self.own.versions | super().versions

    @property
    def scales_input(self) -> bool:
        """Whether the model begins with rescaling or normalisation layers."""
        return self.own.scales_input

    @property
    def preprocessing(self) -> Any:
        """The preprocessing in force for the model."""
        return self.own.preprocessing

    @property
    def form(self) -> OnnxForm:
        """The form that is computed."""
        return self._exported

    @cached_property
    def _calls(self) -> dict[str, tuple[str, Port]]:
        """Layer -> the tensor that is its value, and the layout of that."""
        calls = (call for call in self._exported.calls if call.outputs)
        return {
            call.name: (call.outputs[0], Port(call.name, call.shape, to_own=call.to_own))
            for call in calls
        }

    @property
    def _known_axes(self) -> dict[str, tuple[int, ...]]:
        """The inputs and the layers, of which the framework says where their channels are."""
        layers = {tensor: port.to_own for tensor, port in self._calls.values()}
        return layers | super()._known_axes

    @cached_property
    def _ports(self) -> dict[str, Port]:
        """Inputs, outputs, logits and layers by name."""
        named = {name: port for name, (_, port) in self._calls.items()}
        named |= {port.name: port for port in (*self.inputs, *self.outputs)}
        return named | {port.logits: port for port in self.outputs}

    def tensor(self, name: str) -> str:
        """Return the tensor that a name stands for: a port's, or a layer's of the model."""
        for port in self.outputs:
            if name == port.logits and port.activation is None:
                return port.own_name
        ends = {p.name for p in (*self.inputs, *self.outputs)} | {p.logits for p in self.outputs}
        if name in ends or name in self._tensors:
            return super().tensor(name)
        if name not in self._calls:
            raise self.unknown_layer(name)
        return self._calls[name][0]


def exported(model: Adapter) -> OnnxAdapter:
    """Return a model behind onnxruntime: itself if it is an ONNX file, else its ONNX form.

    The form is made once and kept on disk; the adapter lives as long as the model's own and is
    made anew when the weights change.

    Raises
    ------
    UnsupportedError : the model has no ONNX form; the message says what stands in the way.
    """
    if isinstance(model, OnnxAdapter):
        return model
    form = model.form
    found: ExportedAdapter | None = vars(model).get("_exported_adapter")
    if found is None or found.form is not form:
        found = ExportedAdapter(model, form)
        vars(model)["_exported_adapter"] = found
    found.labels, found.preprocess = model.labels, model.preprocess
    return found

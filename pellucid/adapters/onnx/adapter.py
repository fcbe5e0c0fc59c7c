"""ONNX files, run by onnxruntime and differentiated by `pellucid.graph`.

One untouched session predicts. Asking a session for inner tensors breaks onnxruntime's fusions,
so every other set of tensors gets a session of its own, cut down to what computes them, and every
question for gradients a pair of sessions; a few of these are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, external_data_helper

from pellucid.adapters.base import (
    Adapter,
    Array,
    Layer,
    Port,
    Rectifier,
    Seed,
    fits,
    misfit,
    normalised_moments,
    numbered,
)
from pellucid.adapters.onnx.files import checked, fingerprint_of, read_onnx
from pellucid.adapters.onnx.graph import Head, head_of, logits_nodes, read_layers
from pellucid.adapters.onnx.sessions import open_session
from pellucid.errors import InputError, LayerError, UnsupportedError, first_line
from pellucid.graph import protobuf
from pellucid.graph.axes import channel_axes
from pellucid.graph.biases import Bias, Decomposition, decompose
from pellucid.graph.form import OnnxForm, PortForm
from pellucid.graph.prepare import unfused
from pellucid.graph.pullback import OnnxPullback, Recorded
from pellucid.graph.shapes import known_shapes

__all__ = ["OnnxAdapter"]

_KEPT_SESSIONS = 4
_KEPT_PULLBACKS = 8
_CHANNELS = (1, 3, 4)  # sizes that a channel axis of images has
_SCALING = frozenset(("Sub", "Add", "Mul", "Div", "BatchNormalization"))
_BEFORE_SCALING = frozenset(("Cast", "Transpose", "Identity", "Reshape", "Resize"))


class OnnxAdapter(Adapter):
    """An ONNX model behind the adapter interface.

    Layers are the graph's nodes, by node name, or by the name of the first output where a node
    has none. Any tensor of the graph can be fetched by its own name too.

    Parameters
    ----------
    model : the model; its weights in memory, unless `folder` is given.
    labels : class names.
    preprocess : how images become a batch.
    source : where the model came from, for messages.
    device : None (CUDA if onnxruntime offers it), "cpu", "cuda" or "cuda:1".
    folder : where the model's external data lies, if it is not in memory.
    layouts : permutations of axes from channels first to the layout of inputs and outputs, by
        tensor; None tells them from the shapes.

    Raises
    ------
    LoadError : the model is not valid, or onnxruntime cannot run it.
    UnsupportedError : onnxruntime is missing, or cannot use the device.
    """

    framework: ClassVar[str] = "onnx"
    engine: ClassVar[Literal["native", "onnx"]] = "onnx"

    def __init__(
        self,
        model: ModelProto,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        source: str = "",
        device: str | None = None,
        folder: Path | None = None,
        layouts: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(labels=labels, preprocess=preprocess, source=source)
        self.model = model
        self.device = device
        self._folder = folder
        self._layouts = layouts
        self._sessions: OrderedDict[Any, Any] = OrderedDict()
        self._pullbacks: OrderedDict[Any, OnnxPullback] = OrderedDict()
        self._seeded: dict[Any, tuple[str, ...]] = {}
        self._tensors: dict[str, Port] = {}  # that have a name beside those of layers
        self._lock = threading.RLock()
        if folder is None:
            checked(model, self._named)
        self._plain = open_session(model, source=self._named, device=device, folder=folder)
        dims = [protobuf.dimensions(value) for value in protobuf.real_inputs(model.graph)]
        self.fixed_batch = next((shape[0] for shape in dims if shape), None)

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        device: str | None = None,
    ) -> OnnxAdapter:
        """Open an `.onnx` file, its external data included."""
        model, folder = read_onnx(path)
        return cls(
            model,
            labels=labels,
            preprocess=preprocess,
            source=str(path),
            device=device,
            folder=folder,
        )

    # ---- what it is ----------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """The graph inputs without an initializer, channels first."""
        values = protobuf.real_inputs(self.model.graph)
        return tuple(self._port(v, i, "input") for i, v in enumerate(values))

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """The graph outputs, channels first."""
        return tuple(
            self._port(value, index, "output")
            for index, value in enumerate(self.model.graph.output)
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One layer per node, in the order of the file."""
        return tuple(layer for layer, _ in self._layers.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of graph and weights."""
        return fingerprint_of(self.model, self._folder)

    @cached_property
    def form(self) -> OnnxForm:
        """The file as it is."""
        return OnnxForm(
            self.model,
            tuple(PortForm(p.name, p.own_name, p.layout, p.to_own) for p in self.inputs),
            tuple(PortForm(p.name, p.own_name, p.layout, p.to_own) for p in self.outputs),
            name=Path(self.source).name or self.model.graph.name,
        )

    def in_form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the tensor that a name stands for, and its layout: see `Adapter.in_form`."""
        own = self._ports[name].to_own if name in self._ports else self._own_axes(name)
        return self.tensor(name), own

    @property
    def versions(self) -> dict[str, str]:
        """Versions of onnx and onnxruntime."""
        import onnxruntime

        return {"onnx": str(onnx.__version__), "onnxruntime": str(onnxruntime.__version__)}

    @cached_property
    def scales_input(self) -> bool:
        """Whether the graph begins by shifting or scaling its input by constants."""
        nodes = self.model.graph.node
        fixed = protobuf.constants(self.model.graph)
        name = self.inputs[0].own_name
        while True:
            readers = [node for node in nodes if name in node.input]
            if len(readers) != 1:
                return False
            node = readers[0]
            if node.op_type in _SCALING:
                return all(other in fixed for other in node.input if other != name)
            if node.op_type not in _BEFORE_SCALING:
                return False
            name = node.output[0]

    @cached_property
    def moments(self) -> dict[str, tuple[Array, Array]]:
        """What its BatchNormalization nodes tell of the training data, where any are left.

        Exporters like to fold them into the convolutions before them; then nothing is left.
        """
        names = {tensor: name for name, (_, tensor) in self._layers.items()}
        fixed = protobuf.constants(self.model.graph)
        found = {}
        for node in self.model.graph.node:
            if node.op_type != "BatchNormalization" or node.output[0] not in names:
                continue
            arrays = [fixed[name] for name in node.input[1:] if name in fixed]
            inside = [a for a in arrays if a.data_location != onnx.TensorProto.EXTERNAL]
            if len(inside) != 4:
                continue
            gamma, beta, _, variance = (onnx.numpy_helper.to_array(array) for array in inside)
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            found[names[node.output[0]]] = normalised_moments(variance, epsilon, gamma, beta)
        return found

    def biases(self) -> tuple[Bias, ...]:
        """What the graph adds of its own: see `Adapter.biases`."""
        return self._biases

    @cached_property
    def _biases(self) -> tuple[Bias, ...]:
        names, found = {port.own_name: port.name for port in self.inputs}, []
        for bias in self._decomposed.biases:
            port = self._inner(bias.name)
            if isinstance(bias.value, str):
                value: Any = self._inner(bias.value, port).name
            else:
                value = port.channels_first(np.asarray(bias.value, np.float32))
            inputs = frozenset(names[tensor] for tensor in bias.inputs)
            found.append(replace(bias, name=port.name, value=value, inputs=inputs))
        return tuple(found)

    @cached_property
    def _decomposed(self) -> Decomposition:
        return decompose(self.part([self.tensor(port.logits) for port in self.outputs]))

    def _inner(self, tensor: str, like: Port | None = None) -> Port:
        """Give a tensor a name beside those of layers, under which its axes are known."""
        name = f"tensor {tensor}"
        axes = self._axes.get(tensor, ()) if like is None else like.to_own
        port = Port(name, self._shapes.get(tensor, ()), tensor, axes)
        self._tensors[name] = self._ports[name] = port
        return port

    # ---- values --------------------------------------------------------------------------------

    def _run(
        self, x: tuple[Array, ...], fetch: tuple[str, ...], replace: Mapping[str, Array]
    ) -> dict[str, Array]:
        tensors = {name: self.tensor(name) for name in fetch}
        values = self._feeds(x) | self._replaced(replace)
        computed = frozenset(tensor for tensor in tensors.values() if tensor not in values)
        if computed:
            session = self._session(computed, frozenset(map(self.tensor, replace)))
            names = sorted(computed)
            feed = {value.name: values[value.name] for value in session.get_inputs()}
            try:
                results = session.run(names, feed)
            except Exception as error:
                raise InputError(
                    f"{self._named} failed on this batch: {first_line(error)}"
                ) from error
            values |= dict(zip(names, results, strict=True))
        return {name: self._channels_first(name, values[tensors[name]]) for name in fetch}

    def _replaced(self, replace: Mapping[str, Array]) -> dict[str, Any]:
        """Return replaced values by tensor, as the graph holds them."""
        values = {}
        for name, array in replace.items():
            tensor = self.tensor(name)
            shape = self._shapes.get(tensor)
            own = self._in_own(name, array)
            if shape and not fits(own, (None, *shape[1:])):
                order = np.argsort(self.in_form(name)[1]) if len(shape) == array.ndim else ()
                raise misfit(name, array, [shape[axis] for axis in order] or shape)
            values[tensor] = own
        return values

    def _in_own(self, name: str, array: Array) -> Array:
        """Give an array for a name the layout of its tensor."""
        if name in self._ports:
            return self._ports[name].own_layout(array)
        axes = self._own_axes(name)
        return array.transpose(axes) if len(axes) == array.ndim else array

    def _feeds(self, x: tuple[Array, ...]) -> dict[str, Any]:
        """Return what the graph's inputs take: own names, own layouts, own element types."""
        pairs = zip(self.inputs, x, strict=True)
        return {port.own_name: _in_own_layout(port, array) for port, array in pairs}

    def _channels_first(self, name: str, value: Any) -> Array:
        """Give the value of a tensor the layout that its name stands for."""
        if not isinstance(value, np.ndarray):
            raise LayerError(f"The value of {name!r} is no tensor; fetch another layer.")
        array = np.asarray(value, np.float32)
        if name in self._ports:
            return self._ports[name].channels_first(array)
        axes = self._own_axes(name)
        return array.transpose(np.argsort(axes)) if len(axes) == array.ndim else array

    def _own_axes(self, name: str) -> tuple[int, ...]:
        """Return the permutation from channels first to the axes of a layer's tensor.

        A tensor that is asked for by its own name comes as it is.
        """
        if name in self._layers:
            return self._axes.get(self._layers[name][1], ())
        if name in self._tensor_names or name in self._ports or name not in self.graph:
            return ()
        return tuple(self.graph[name].to_own)

    # ---- gradients -----------------------------------------------------------------------------

    def _pullback(
        self,
        x: tuple[Array, ...],
        seed: Seed,
        wrt: tuple[str, ...],
        fetch: tuple[str, ...],
        relu: Rectifier,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        tensors = {name: self.tensor(name) for name in (*fetch, *wrt)}
        feeds, question = self._feeds(x), (fetch, wrt)
        # Which of the fetched layers the seed gives a cotangent at shows only when it is called.
        # The guess is the last one; the answer is remembered.
        seeded = self._seeded.get(question, fetch[-1:])
        pullback = self._differentiated(tensors, fetch, wrt, seeded, relu)
        recorded = self._forward(pullback, feeds)
        known = feeds | recorded.values
        values = {name: self._channels_first(name, known[tensors[name]]) for name in fetch}
        given = seed(values)
        if given.keys() != set(seeded):
            seeded = self._seeded[question] = tuple(name for name in fetch if name in given)
            pullback = self._differentiated(tensors, fetch, wrt, seeded, relu)
            recorded = self._forward(pullback, feeds)
        cotangents: dict[str, Any] = {}
        for name, array in given.items():  # two names may stand for one tensor
            own = self._in_own(name, array)
            cotangents[tensors[name]] = cotangents.get(tensors[name], 0) + own
        gradients = pullback.backward(recorded, cotangents)
        return values, {n: self._channels_first(n, gradients[tensors[n]]) for n in wrt}

    def _forward(self, pullback: OnnxPullback, feeds: Mapping[str, Any]) -> Recorded:
        try:
            return pullback.forward({name: feeds[name] for name in pullback.inputs})
        except Exception as error:
            raise InputError(f"{self._named} failed on this batch: {first_line(error)}") from error

    def _differentiated(
        self,
        tensors: Mapping[str, str],
        fetch: tuple[str, ...],
        wrt: tuple[str, ...],
        seeded: tuple[str, ...],
        relu: Rectifier,
    ) -> OnnxPullback:
        """Return the two sessions that answer a question, from those kept or new ones."""
        asked = (fetch, wrt, seeded)
        names, wanted, seeds = (tuple(dict.fromkeys(tensors[n] for n in part)) for part in asked)
        key = (names, wanted, seeds, relu)
        with self._lock:
            if key not in self._pullbacks:
                inputs = {port.own_name for port in self.inputs}
                self._pullbacks[key] = OnnxPullback(
                    self.part((*names, *wanted)),
                    [name for name in names if name not in inputs],
                    wanted,
                    seeds,
                    relu,
                    opened=partial(open_session, source=self._named, device=self.device),
                )
                if len(self._pullbacks) > _KEPT_PULLBACKS:
                    self._pullbacks.popitem(last=False)
            self._pullbacks.move_to_end(key)
            return self._pullbacks[key]

    def part(self, tensors: Collection[str]) -> ModelProto:
        """Return the part of the graph that computes some tensors, its weights in memory.

        Parameters
        ----------
        tensors : names as `tensor` gives them; inputs among them are kept.
        """
        inputs = {port.own_name for port in self.inputs}
        computed = [name for name in dict.fromkeys(tensors) if name not in inputs]
        if self._is_plain(computed):
            return protobuf.cut(self._whole, computed, self._extra(computed), keep=tensors)
        return protobuf.cut(ir.to_proto(self._decomposed.model), computed, keep=tensors)

    def _is_plain(self, tensors: Iterable[str]) -> bool:
        """Whether the file itself gives tensors, not only its decomposition."""
        logits = {f"pellucid/{port.logits}" for port in self.outputs}
        return all(name in self._tensor_names or name in logits for name in tensors)

    @property
    def _whole(self) -> ModelProto:
        """The model with its weights in memory, what a runtime fused written out."""
        if self._folder is None:
            return self._unfused
        whole = ModelProto()
        whole.CopyFrom(self.model)
        external_data_helper.load_external_data_for_model(whole, str(self._folder))
        return unfused(whole)

    @cached_property
    def _unfused(self) -> ModelProto:
        return unfused(self.model)

    # ---- names ---------------------------------------------------------------------------------

    @property
    def _named(self) -> str:
        return self.source or "the ONNX model"

    @cached_property
    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        return known_shapes(self.model)

    @cached_property
    def _layers(self) -> dict[str, tuple[Layer, str]]:
        return read_layers(self.model, self._shapes, self._axes)

    @cached_property
    def _axes(self) -> dict[str, tuple[int, ...]]:
        return channel_axes(self.model.graph, self._known_axes, self._shapes)

    @property
    def _known_axes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of which someone says where their channels are."""
        return {port.own_name: port.to_own for port in self.inputs}

    @cached_property
    def _tensor_names(self) -> frozenset[str]:
        return frozenset(name for node in self.model.graph.node for name in node.output if name)

    @cached_property
    def _heads(self) -> dict[str, Head]:
        graph = self.model.graph
        return {value.name: head_of(graph, value.name) for value in graph.output}

    @cached_property
    def _ports(self) -> dict[str, Port]:
        """Inputs, outputs and logits by name."""
        named = {port.name: port for port in (*self.inputs, *self.outputs)}
        return named | {port.logits: port for port in self.outputs}

    def tensor(self, name: str) -> str:
        """Return the tensor that a name stands for: a port's, a layer's or the tensor itself."""
        if name in self._tensors:
            return self._tensors[name].own_name
        for port in (*self.inputs, *self.outputs):
            if name == port.name:
                return port.own_name
        for port in self.outputs:
            if name == port.logits:
                head = self._heads[port.own_name]
                return f"pellucid/{name}" if head.tail else head.logits
        if name in self._layers:
            return self._layers[name][1]
        if name in self._tensor_names or name in {port.own_name for port in self.inputs}:
            return name
        if name in self.graph:
            return str(self.graph[name].tensor)
        raise self.unknown_layer(name)

    def _port(self, value: onnx.ValueInfoProto, index: int, stem: str) -> Port:
        if not value.type.HasField("tensor_type"):
            raise UnsupportedError(
                f"The {stem} {value.name!r} of {self._named} is no tensor. Export the model "
                "without it (for scikit-learn's ZipMap: options={'zipmap': False})."
            )
        own = protobuf.dimensions(value) or self._shapes.get(value.name, ())
        own = (None, *own[1:]) if own else ()
        if stem == "input":
            last = self._channels_last(own)
        else:  # (N, K, 1, 1) is classes and no picture of K rows
            last = self._image_channels_last and any(size != 1 for size in own[2:])
        rank = len(own)
        to_own = (0, *range(2, rank), 1) if last and rank >= 4 else ()
        if self._layouts is not None:
            to_own = self._layouts.get(value.name, ())
        shape = tuple(own[axis] for axis in np.argsort(to_own)) if to_own else own
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        activation = self._heads[value.name].activation if stem == "output" else None
        name = numbered(stem, index)
        return Port(name, shape, value.name, to_own, activation, np.dtype(dtype).name)

    @staticmethod
    def _channels_last(own: tuple[int | None, ...]) -> bool:
        return len(own) >= 4 and own[-1] in _CHANNELS and own[1] not in _CHANNELS

    @cached_property
    def _image_channels_last(self) -> bool:
        return any(port.to_own for port in self.inputs)

    # ---- sessions ------------------------------------------------------------------------------

    def _session(self, wanted: frozenset[str], given: frozenset[str] = frozenset()) -> Any:
        """Return the session that computes some tensors, from given ones if there are any."""
        if not given and wanted <= {value.name for value in self.model.graph.output}:
            return self._plain
        key = (wanted, given)
        if key not in self._sessions:
            if self._is_plain(wanted):
                extra = self._extra(wanted)
                part = protobuf.cut(self.model, sorted(wanted), extra, given=sorted(given))
            else:
                part = self.part(wanted)
            self._sessions[key] = open_session(
                part, source=self._named, device=self.device, folder=self._folder
            )
            if len(self._sessions) > _KEPT_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _extra(self, wanted: Collection[str]) -> list[onnx.NodeProto]:
        """Return the nodes that give logits the shape and the axes of their output."""
        return [
            node
            for port in self.outputs
            if (name := f"pellucid/{port.logits}") in wanted
            for node in logits_nodes(self._heads[port.own_name], name)
        ]


def _in_own_layout(port: Port, array: Array) -> Any:
    own, dtype = port.own_layout(array), np.dtype(port.dtype)
    if dtype.kind in "ui" and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        own = np.clip(np.rint(own), limits.min, limits.max)
    return np.ascontiguousarray(own.astype(dtype, copy=False))

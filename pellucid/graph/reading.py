"""From ONNX to layers: group the nodes, connect the groups, describe each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from pellucid.graph.axes import channel_axes
from pellucid.graph.counting import multiply_adds
from pellucid.graph.folding import folded
from pellucid.graph.form import OnnxForm, PortForm
from pellucid.graph.groups import TRANSPARENT, Group, Grouping, marked_groups
from pellucid.graph.kinds import kind_of, layout_of
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.protobuf import Shape
from pellucid.graph.scopes import scoped_groups
from pellucid.graph.shapes import TensorType, tensor_types
from pellucid.graph.wiring import Wiring

__all__ = ["read_graph"]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
           TensorProto.INT8, TensorProto.UINT8)  # fmt: skip
_GLOBAL_POOLING = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
_KINDS = {
    "Squeeze": "Reshape", "Unsqueeze": "Reshape", "Sum": "Add", "Gather": "Select",
    "Slice": "Crop",
}  # fmt: skip


def read_graph(form: OnnxForm, sizes: Mapping[str, Shape] | None = None) -> LayerGraph:
    """Read the layers out of an ONNX form.

    Parameters
    ----------
    sizes : shapes of the inputs, by tensor, where the file leaves sizes open.
    """
    wiring = Wiring(form.model.graph)
    known = {call.outputs[0]: _own(call.shape, call.to_own) for call in form.calls}
    types = tensor_types(form.model, sizes, known)
    grouping = marked_groups(form, wiring) if form.calls else scoped_groups(wiring)
    free = {
        index
        for index in range(len(wiring.nodes))
        if index not in grouping.owner and index not in grouping.shared and wiring.is_live(index)
    }
    patterns = folded(wiring, free)
    alone = free.difference(*(nodes for _, nodes in patterns))
    alone = {index for index in alone if not _is_nothing(wiring.nodes[index], types)}
    for kind, nodes in [*patterns, *((wiring.nodes[i].op_type, [i]) for i in sorted(alone))]:
        value = wiring.nodes[nodes[-1]].output[0]
        path = grouping.paths.get(nodes[-1], ())
        grouping.add(Group(_spelled_kind(kind, nodes, wiring, types), nodes, value, path=path))
    return _Reader(form, wiring, types, grouping).graph()


def _is_nothing(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> bool:
    """Whether an operation hands its input on as it is: a cast, a slice of everything."""
    if node.op_type in TRANSPARENT:
        return True
    if node.op_type not in ("Slice", "Expand", "Pad"):
        return False
    before, after = types.get(node.input[0]), types.get(node.output[0])
    return (
        before is not None
        and after is not None
        and None not in before.shape
        and (before.shape == after.shape)
    )


def _spelled_kind(
    operator: str, nodes: Sequence[int], wiring: Wiring, types: Mapping[str, TensorType]
) -> str:
    """Name the kind of an operation that no framework layer holds."""
    node = wiring.nodes[nodes[0]]
    if operator != node.op_type:
        return operator
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return operator
    if operator == "MatMul" and all(name in wiring.live for name in node.input):
        return "MatMul"  # a product of two activations is no dense layer
    known = types.get(node.input[0]) if node.input else None
    if operator in ("Conv", "ConvTranspose") and node.input[1] in types:
        known = types[node.input[1]]
    rank = len(known.shape) if known else 0
    if operator in _GLOBAL_POOLING and _reduces_space(node, types):
        operator = _GLOBAL_POOLING[operator]
    if operator == "Conv" and _is_depthwise(node, types):
        operator = "DepthwiseConv"
    return kind_of(_KINDS.get(operator, operator), rank - 2 if 3 <= rank <= 5 else None)


def _is_depthwise(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    entry = types.get(node.input[0])
    return 1 < groups == (entry.shape[1] if entry and len(entry.shape) > 1 else None)


def _reduces_space(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> bool:
    """Whether an image becomes one number per channel."""
    before, after = types.get(node.input[0]), types.get(node.output[0])
    if before is None or after is None or len(before.shape) < 4:
        return False
    spatial = len(before.shape) - 2
    channels_first, channels_last = before.shape[:2], (before.shape[0], before.shape[-1])
    ones = (1,) * spatial
    return after.shape in (
        channels_first, (*channels_first, *ones), channels_last,
        (channels_last[0], *ones, channels_last[1]),
    )  # fmt: skip


@dataclass
class _Reader:
    """Turns groups into layers."""

    form: OnnxForm
    wiring: Wiring
    types: Mapping[str, TensorType]
    grouping: Grouping

    @cached_property
    def axes(self) -> Mapping[str, tuple[int, ...]]:
        """Where the channels of every tensor are; the form says it of its layers."""
        said = {call.outputs[0]: call.to_own for call in self.form.calls}
        known = said | {port.tensor: port.to_own for port in self.form.inputs}
        shapes = {name: kind.shape for name, kind in self.types.items()}
        return channel_axes(self.form.model.graph, known, shapes)

    def graph(self) -> LayerGraph:
        """Connect and describe all groups."""
        self._name()
        ports = {port.tensor: port.name for port in self.form.inputs}
        sources = [self._sources(index, ports) for index in range(len(self.grouping.groups))]
        layers = {port.name: self._port(port, "Input") for port in self.form.inputs}
        weights = self._weights()
        for index in self._order(sources):
            group = self.grouping.groups[index]
            layers[group.name] = self._layer(group, sources[index], layers, weights[index])
        for port in self.form.outputs:
            found = self._producer(port.tensor, ports)
            layer = self._port(port, "Output")
            shapes = tuple(layers[name].shape for name in found)
            layers[port.name] = replace(layer, inputs=tuple(found), input_shapes=shapes)
        readers: dict[str, list[str]] = {}
        for layer in layers.values():
            for name in layer.inputs:
                readers.setdefault(name, []).append(layer.name)
        return LayerGraph(
            tuple(replace(x, outputs=tuple(readers.get(x.name, ()))) for x in layers.values()),
            tuple(self.grouping.containers),
            self.form.name,
            self.form.model,
        )

    # ---- names -------------------------------------------------------------------------------

    def _name(self) -> None:
        """Name the groups that the framework does not."""
        taken = {g.name for g in self.grouping.groups if g.name}
        taken.update(port.name for port in (*self.form.inputs, *self.form.outputs))
        for group in self.grouping.groups:
            if group.name:
                continue
            node = self.wiring.nodes[group.nodes[-1]]
            base = node.name or group.value
            if self.form.calls:
                inside = [*group.path[-1:], _lower(group.kind)]
                base = self.form.separator.join(inside)
            name, count = base, 0
            while name in taken:
                count += 1
                name = f"{base}:{count}"
            group.name = name
            taken.add(name)

    # ---- connections -------------------------------------------------------------------------

    def _sources(self, index: int, ports: Mapping[str, str]) -> list[str]:
        """Name the layers that a group reads from."""
        own = set(self.grouping.groups[index].nodes)
        found: list[str] = []
        for node in self.grouping.groups[index].nodes:
            if not self.wiring.is_live(node):
                continue  # what reads a shape does not read the layer
            for tensor in self.wiring.reads[node]:
                if tensor in self.wiring.live and self.wiring.producer.get(tensor) not in own:
                    found += self._producer(tensor, ports)
        name = self.grouping.groups[index].name
        return [n for n in dict.fromkeys(found) if n != name]

    def _producer(self, tensor: str, ports: Mapping[str, str]) -> list[str]:
        """Name the layers that a tensor comes from, through nodes that are no layer."""
        while True:
            if tensor in ports:
                return [ports[tensor]]
            index = self.wiring.producer.get(tensor)
            if index is None or tensor not in self.wiring.live:
                return []
            if index in self.grouping.owner:
                return [self.grouping.groups[self.grouping.owner[index]].name]
            live = [name for name in self.wiring.reads[index] if name in self.wiring.live]
            if len(live) != 1:
                return list(dict.fromkeys(n for name in live for n in self._producer(name, ports)))
            tensor = live[0]

    def _order(self, sources: Sequence[Sequence[str]]) -> list[int]:
        """Order the groups so that each comes after those it reads from."""
        position = {group.name: i for i, group in enumerate(self.grouping.groups)}
        first = [group.nodes[-1] if group.nodes else -1 for group in self.grouping.groups]
        done: set[int] = set()
        order: list[int] = []
        waiting = sorted(range(len(first)), key=lambda i: first[i])
        while waiting:
            ready = [
                i
                for i in waiting
                if all(
                    position.get(name, i) in done or position.get(name) == i or name not in position
                    for name in sources[i]
                )
            ] or waiting[:1]  # groups that feed each other: take them as the file has them
            order.append(ready[0])
            done.add(ready[0])
            waiting.remove(ready[0])
        return order

    # ---- descriptions ------------------------------------------------------------------------

    def _port(self, port: PortForm, kind: str) -> GraphLayer:
        known = self.types.get(port.tensor)
        return GraphLayer(
            port.name,
            kind,
            shape=_first(known.symbolic, port.to_own) if known else (),
            layout=_layout(port.layout, len(known.shape) if known else 0),
            dtype=known.dtype if known else "float32",
            activation_bytes=known.bytes if known else 0,
            tensor=port.tensor,
            to_own=port.to_own,
        )

    def _layer(
        self,
        group: Group,
        sources: Sequence[str],
        layers: Mapping[str, GraphLayer],
        weights: tuple[int, int, int],
    ) -> GraphLayer:
        known, call = self.types.get(group.value), group.call
        read = [layers[name] for name in sources if name in layers]
        rank = len(known.shape) if known else len(call.shape) if call else 0
        alike = [layer for layer in read if len(layer.shape) == rank]
        to_own = call.to_own if call else self.axes.get(group.value, ())
        to_own = to_own if len(to_own) == rank else ()
        shape = _first(known.symbolic, to_own) if known else call.shape if call else ()
        layout = call.layout if call else layout_of(group.kind, rank) or ""
        if not layout:
            layout = alike[0].layout if alike else "tokens"
        work = [multiply_adds(self.wiring.nodes[i], self.types) for i in group.nodes]
        return GraphLayer(
            group.name,
            group.kind,
            group.framework_class,
            shape,
            tuple(layer.shape for layer in read),
            _layout(layout, rank),
            known.dtype if known else "float32",
            weights[0],
            weights[1],
            weights[2],
            None if None in work else sum(w for w in work if w),
            known.bytes if known else 0,
            group.path,
            call.fused if call else "",
            tuple(self.wiring.nodes[i].name for i in group.nodes),
            group.value,
            to_own,
            tuple(sources),
        )

    # ---- parameters --------------------------------------------------------------------------

    def _weights(self) -> list[tuple[int, int, int]]:
        """Count for each group the learned numbers that it is the first to use, the other ones,
        and its statistics."""
        counted: set[str] = set()
        found = []
        sizes = self._array_sizes()
        for group in self.grouping.groups:
            statistics: Mapping[str, int] = {}
            if group.call is not None:
                own, statistics = dict(group.call.weights), group.call.statistics
            else:
                names = self.wiring.weights(group.nodes)
                own = {name: sizes[name] for name in names if name in sizes}
            new = sum(size for name, size in own.items() if name not in counted)
            kept = sum(size for name, size in statistics.items() if name not in counted)
            found.append((new, sum(own.values()) - new, kept))
            counted.update(own, statistics)
        return self._with_left(found, counted)

    def _array_sizes(self) -> dict[str, int]:
        if self.form.weights is not None:
            return dict(self.form.weights)
        graph = self.wiring.graph
        statistics = {
            name
            for node in graph.node
            if node.op_type == "BatchNormalization"
            for name in node.input[3:5]
        }
        sizes = {t.name: prod(t.dims) for t in graph.initializer if t.data_type in _FLOATS}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = node.attribute[0].t
                if tensor.data_type in _FLOATS:
                    sizes[node.output[0]] = prod(tensor.dims)
        return {n: size for n, size in sizes.items() if size > 1 and n not in statistics}

    def _with_left(
        self, found: list[tuple[int, int, int]], counted: set[str]
    ) -> list[tuple[int, int, int]]:
        """Give what no layer holds to the operations that read arrays of that size."""
        left = {n: s for n, s in (self.form.weights or {}).items() if n not in counted}
        for size in left.values():
            for index, group in enumerate(self.grouping.groups):
                if group.call is None and self._reads_array(group, size):
                    new, shared, kept = found[index]
                    found[index] = (new + size, shared, kept)
                    break
        return found

    def _reads_array(self, group: Group, size: int) -> bool:
        names: Iterable[str] = self.wiring.weights(group.nodes)
        return any(self.types[name].count == size for name in names if name in self.types)


def _own(shape: Shape, to_own: Sequence[int]) -> Shape:
    return tuple(shape[axis] for axis in to_own) if to_own else shape


def _first(shape: Shape, to_own: Sequence[int]) -> Shape:
    """Reorder a shape in its own layout to channels first."""
    if len(to_own) != len(shape):
        return shape
    return tuple(shape[axis] for axis in np.argsort(to_own))


def _layout(layout: str, rank: int) -> str:
    return layout if rank > 2 else "features"


def _lower(kind: str) -> str:
    """Write a kind as part of a name: GlobalAveragePool is global_average_pool, ReLU is relu."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", kind).lower()

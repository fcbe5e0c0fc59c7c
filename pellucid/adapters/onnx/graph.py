"""What the adapter of ONNX files reads out of a graph: its head, and one layer per node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from pellucid.adapters.base import Layer, Layout
from pellucid.graph.kinds import kind_of, layout_of
from pellucid.graph.protobuf import (
    Shape,
    constants,
    inputs_of,
    real_inputs,
)

__all__ = [
    "ACTIVATIONS",
    "Head",
    "head_of",
    "logits_nodes",
    "read_layers",
]

ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
_TRANSPARENT = frozenset(
    ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout")
)
_SHAPE_ONLY = frozenset(("Shape", "Size"))
_GLOBAL_POOLING = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


# ---- outputs before their final activation --------------------------------------------------


@dataclass(frozen=True)
class Head:
    """What follows the logits: the activation, and the no-ops between it and the output.

    Attributes
    ----------
    activation : "softmax", "sigmoid", "log_softmax" or None.
    logits : the tensor before the activation.
    tail : the nodes after the activation, in order.
    """

    activation: str | None
    logits: str
    tail: tuple[NodeProto, ...] = ()


def head_of(graph: GraphProto, output: str) -> Head:
    """Walk back from an output over no-ops to its final activation, if there is one."""
    producers = {name: node for node in graph.node for name in node.output}
    tail: list[NodeProto] = []
    name = output
    while (node := producers.get(name)) is not None and node.input:
        if node.op_type in ACTIVATIONS:
            return Head(ACTIVATIONS[node.op_type], node.input[0], tuple(reversed(tail)))
        if node.op_type not in _TRANSPARENT or name != node.output[0]:
            break
        if node.op_type != "Identity":
            tail.append(node)
        name = node.input[0]
    return Head(None, output)


def logits_nodes(head: Head, name: str) -> list[NodeProto]:
    """Return the no-ops that follow the activation, repeated on the logits.

    So the last one's output, `name`, has the shape and the axes of the model's output.
    """
    copies: list[NodeProto] = []
    source = head.logits
    for index, node in enumerate(head.tail):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = name if index == len(head.tail) - 1 else f"{name}/{index}"
        copy.input[0] = source
        del copy.output[:]
        copy.output.append(copy.name)
        copies.append(copy)
        source = copy.name
    return copies


# ---- layers ---------------------------------------------------------------------------------


def read_layers(model: ModelProto, known: Mapping[str, Shape]) -> dict[str, tuple[Layer, str]]:
    """Return `{layer name: (layer, tensor name)}` in the order of the nodes.

    Nodes that do not depend on the values of an input (weights prepared in the graph, shape
    arithmetic) are bookkeeping and no layers.
    """
    graph = model.graph
    live = {value.name for value in real_inputs(graph)}
    fixed = constants(graph)
    layouts: dict[str, Layout] = {}
    found: dict[str, tuple[Layer, str]] = {}
    for value in real_inputs(graph):
        rank = len(known.get(value.name, ()))
        layouts[value.name] = "spatial" if rank >= 4 else "tokens" if rank == 3 else "features"
    for node in graph.node:
        if node.op_type in _SHAPE_ONLY or not live.intersection(inputs_of(node)):
            continue
        outputs = [name for name in node.output if name]
        live.update(outputs)
        tensor = outputs[0]
        shape = known.get(tensor, ())
        kind = _kind(node, known, live, fixed)
        layout = _layout(kind, shape, node, known, layouts)
        layouts.update((name, layout) for name in outputs)
        base, count = node.name or tensor, 0
        name = base
        while name in found:
            count += 1
            name = f"{base}:{count}"
        shown = (None, *shape[1:]) if shape else ()
        found[name] = (Layer(name, kind, shown, layout, node.op_type), tensor)
    return found


def _kind(
    node: NodeProto,
    known: Mapping[str, Shape],
    live: set[str],
    fixed: Mapping[str, TensorProto],
) -> str:
    operator, inputs = node.op_type, list(node.input)
    if node.domain not in ("", "ai.onnx") and node.domain != "com.microsoft":
        return operator
    if operator == "MatMul" and len(live.intersection(inputs)) > 1:
        return "MatMul"  # a product of two activations is no dense layer
    rank = len(known.get(inputs[0], ())) if inputs else 0
    if operator in ("Conv", "ConvTranspose") and len(inputs) > 1:
        rank = len(known.get(inputs[1], ())) or rank
    if operator in _GLOBAL_POOLING and rank >= 3 and _reduces_space(node, rank, fixed):
        operator = _GLOBAL_POOLING[operator]
    return kind_of(operator, rank - 2 if 3 <= rank <= 5 else None)


def _reduces_space(node: NodeProto, rank: int, fixed: Mapping[str, TensorProto]) -> bool:
    axes = [list(a.ints) for a in node.attribute if a.name == "axes"]
    if not axes and len(node.input) > 1 and node.input[1] in fixed:
        tensor = fixed[node.input[1]]
        if tensor.data_location != TensorProto.EXTERNAL:
            axes = [onnx.numpy_helper.to_array(tensor).tolist()]
    return rank >= 4 and bool(axes) and {axis % rank for axis in axes[0]} == set(range(2, rank))


def _layout(
    kind: str,
    shape: Shape,
    node: NodeProto,
    known: Mapping[str, Shape],
    layouts: Mapping[str, Layout],
) -> Layout:
    rank = len(shape)
    if rank >= 4:
        return "spatial"
    if rank != 3:
        return "features"
    by_kind = layout_of(kind, rank)
    if by_kind:
        return by_kind
    for name in node.input:
        if name in layouts and len(known.get(name, ())) == rank:
            return layouts[name]
    return "tokens"

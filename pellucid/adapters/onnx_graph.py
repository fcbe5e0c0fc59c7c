"""Reading and cutting ONNX graphs: pure functions over the protobuf, no session.

A node's values depend on its inputs and on whatever the subgraphs of `If`, `Loop` and `Scan`
capture from outside; both count as inputs here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from pellucid.adapters.base import Layer, Layout
from pellucid.adapters.kinds import kind_of, layout_of

__all__ = [
    "ACTIVATIONS",
    "Head",
    "constants",
    "cut",
    "dimensions",
    "head_of",
    "inputs_of",
    "logits_nodes",
    "read_layers",
    "real_inputs",
    "shapes",
]

Shape = tuple[int | None, ...]

ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
_TRANSPARENT = frozenset(
    ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout")
)
_SHAPE_ONLY = frozenset(("Shape", "Size"))
_GLOBAL_POOLING = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
_LARGE = 1024  # elements; larger initializers tell shape inference nothing but their shape


# ---- the graph ------------------------------------------------------------------------------


def inputs_of(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those captured by its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield from _captured(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield from _captured(graph)


def _captured(graph: GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    for node in graph.node:
        yield from (name for name in inputs_of(node) if name not in own)
    yield from (value.name for value in graph.output if value.name not in own)


def real_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the graph inputs that have no initializer."""
    fixed = {tensor.name for tensor in graph.initializer}
    fixed.update(sparse.values.name for sparse in graph.sparse_initializer)
    return [value for value in graph.input if value.name not in fixed]


def dimensions(value: ValueInfoProto) -> Shape | None:
    """Return a tensor's shape as the file gives it, or None if its rank is unknown."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    )


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return initializers and the values of `Constant` nodes, by tensor name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
                elif attribute.name == "value_ints":
                    ints = list(attribute.ints)
                    found[node.output[0]] = onnx.helper.make_tensor(
                        node.output[0], TensorProto.INT64, [len(ints)], ints
                    )
    return found


def cut(
    model: ModelProto,
    wanted: Iterable[str],
    extra: Iterable[NodeProto] = (),
    keep: Collection[str] = (),
) -> ModelProto:
    """Return the part of a model that computes the wanted tensors, with these as its outputs.

    Parameters
    ----------
    model : the whole model; it is not changed.
    wanted : names of tensors that nodes compute.
    extra : nodes to add behind the model's own.
    keep : names of inputs that stay, also where nothing wanted depends on them.
    """
    graph, names = model.graph, list(dict.fromkeys(wanted))
    needed: set[str] = set(names)
    kept: list[NodeProto] = []
    for node in reversed([*graph.node, *extra]):
        if needed.intersection(node.output):
            needed.update(inputs_of(node))
            kept.append(node)
    part = ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
    )
    part.graph.name = graph.name
    part.graph.node.extend(reversed(kept))
    part.graph.input.extend(
        value for value in graph.input if value.name in needed or value.name in keep
    )
    part.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    part.graph.sparse_initializer.extend(
        sparse for sparse in graph.sparse_initializer if sparse.values.name in needed
    )
    declared = {value.name: value for value in graph.output}
    # onnxruntime infers the type of an output that is given by name only.
    part.graph.output.extend(declared.get(n, ValueInfoProto(name=n)) for n in names)
    return part


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


def shapes(model: ModelProto) -> dict[str, Shape]:
    """Infer the shape of every tensor that has a known rank.

    Large weights are left out of what is inferred from, which is faster and works for models
    above the two gigabytes of protobuf.
    """
    skeleton = ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    graph, source = skeleton.graph, model.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.value_info.extend(source.value_info)
    graph.output.extend(source.output)
    graph.input.extend(real_inputs(source))
    for tensor in source.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if count > _LARGE or tensor.data_location == TensorProto.EXTERNAL:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            graph.initializer.append(tensor)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # a graph that inference cannot follow still runs; its shapes stay unknown
        inferred = graph
    known: dict[str, Shape] = {t.name: tuple(t.dims) for t in source.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = dimensions(value)
        if shape is not None:
            known[value.name] = shape
    return known


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

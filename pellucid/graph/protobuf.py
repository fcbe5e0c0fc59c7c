"""Reading and cutting ONNX graphs: pure functions over the protobuf, no session.

A node's values depend on its inputs and on whatever the subgraphs of `If`, `Loop` and `Scan`
capture from outside; both count as inputs here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = [
    "CONTRIB",
    "Shape",
    "constants",
    "cut",
    "dimensions",
    "inputs_of",
    "real_inputs",
    "skeleton_of",
    "with_own_domains",
]

Shape = tuple[int | None, ...]

CONTRIB = "com.microsoft"  # the domain of onnxruntime's own operators

# What onnxruntime also writes among the standard operators, and the opset that brought it.
_UNREGISTERED = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}
_LARGE = 1024  # elements; larger initializers tell shape inference nothing but their shape


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
    return tuple(map(_length, value.type.tensor_type.shape.dim))


def _length(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    # PyTorch's exporter writes a batch size that the network's code fixes as a name: "2"
    return int(dim.dim_param) if dim.dim_param.isdigit() and dim.dim_param != "0" else None


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
    given: Collection[str] = (),
) -> ModelProto:
    """Return the part of a model that computes the wanted tensors, with these as its outputs.

    Parameters
    ----------
    model : the whole model; it is not changed.
    wanted : names of tensors that nodes compute.
    extra : nodes to add behind the model's own.
    keep : names of inputs that stay, also where nothing wanted depends on them.
    given : names of float32 tensors that become inputs; what computes them is left out.
    """
    graph, names = model.graph, list(dict.fromkeys(wanted))
    needed: set[str] = set(names)
    kept: list[NodeProto] = []
    for node in reversed([*graph.node, *extra]):
        if needed.intersection(node.output).difference(given):
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
    # Without a shape, so that another number of rows than the file says is welcome.
    part.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in given
        if name in needed
    )
    part.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    part.graph.sparse_initializer.extend(
        sparse for sparse in graph.sparse_initializer if sparse.values.name in needed
    )
    declared = {value.name: value for value in graph.output}
    # onnxruntime infers the type of an output that is given by name only.
    part.graph.output.extend(declared.get(n, ValueInfoProto(name=n)) for n in names)
    return part


def skeleton_of(model: ModelProto) -> ModelProto:
    """Return the model with large weights turned into inputs, for shape inference."""
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
    return skeleton


def with_own_domains(model: ModelProto) -> ModelProto:
    """Return a model whose standard operators are all standard ones.

    onnxruntime's optimisers write a few of its own among them, which onnx refuses.
    """
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)

    def unknown(node: NodeProto) -> bool:
        return not node.domain and version < _UNREGISTERED.get(node.op_type, 0)

    if not any(unknown(node) for node in model.graph.node):
        return model
    named = ModelProto()
    named.CopyFrom(model)
    for node in named.graph.node:
        if unknown(node):
            node.domain = CONTRIB
    if CONTRIB not in {opset.domain for opset in named.opset_import}:
        named.opset_import.add(domain=CONTRIB, version=1)
    return named

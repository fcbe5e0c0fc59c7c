"""Cutting a differentiated graph into its forward and its backward half.

The backward half gets as few residuals as possible: it has the constants itself, and takes of a
large tensor's shape only the shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes

from pellucid.graph.tape import BACKWARD, operands

__all__ = ["split"]

# arithmetic on shapes, which stays with the tensors whose shapes they are
COUNTS = {"Add", "Concat", "Div", "Max", "Mul", "ReduceProd", "Slice", "Sub", "Squeeze"}


def split(
    model: ir.Model, fetch: Sequence[str], seeds: Sequence[str], wrt: Sequence[str]
) -> tuple[ir.Model, ir.Model]:
    """Return the forward and the backward half of a differentiated graph."""
    crossing = [value.name or "" for value in residuals(model.graph)]
    forward, backward = model.clone(), model.clone()
    values = ir.convenience.create_value_mapping(forward.graph)
    outputs = [values[name] for name in dict.fromkeys((*fetch, *crossing))]
    forward.graph.outputs.clear()
    forward.graph.outputs.extend(outputs)
    kept = [v for v in forward.graph.inputs if not (v.name or "").startswith("seed/")]
    forward.graph.inputs.clear()
    forward.graph.inputs.extend(kept)

    values = ir.convenience.create_value_mapping(backward.graph)
    given = [values[f"seed/{name}"] for name in seeds]
    results = [values[f"grad/{name}"] for name in wrt]
    for name in crossing:
        old = values[name]
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}/forward"
        given.append(new)
    backward.graph.outputs.clear()
    backward.graph.outputs.extend(results)
    backward.graph.inputs.clear()
    backward.graph.inputs.extend(given)
    for half in (forward, backward):
        _prune(half)
    return forward, backward


def _prune(model: ir.Model) -> None:
    """Remove what nothing reads any more; the branches of a removed node would still count."""
    bodied = [node for node in model.graph if _bodies(node)]
    model.graph.remove(_unread(model.graph), safe=True)  # one by one takes long where many go
    removed: list[ir.Node] | None = None
    while removed is None or removed:
        passes.RemoveUnusedNodesPass()(model)
        removed = [node for node in bodied if node.graph is None]
        bodied = [node for node in bodied if node.graph is not None]
        for inner in (
            inner for node in removed for body in _bodies(node) for inner in body.all_nodes()
        ):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


def _unread(graph: ir.Graph) -> list[ir.Node]:
    """List the nodes that no output follows from; those that bodies read stay for now."""
    read: set[ir.Node] = set()
    for node in reversed(graph):
        if any(
            value.is_graph_output()
            or any(user in read or user.graph is not graph for user in value.consumers())
            for value in node.outputs
        ):
            read.add(node)
    return [node for node in graph if node not in read]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [a.value for a in node.attributes.values() if isinstance(a.value, ir.Graph)]


def residuals(graph: ir.Graph) -> list[ir.Value]:
    """Values of the forward half that the backward half needs."""
    late: set[ir.Value] = {v for v in graph.inputs if (v.name or "").startswith("seed/")}
    early_shapes: set[ir.Value] = set()
    needed: dict[ir.Value, None] = {}
    for node in graph:
        if not (node.name or "").startswith(BACKWARD):
            continue
        computed = [v for v in operands(node) if v.const_value is None]
        small = node.op_type == "Shape" and not late.intersection(computed)
        counts = node.op_type in COUNTS and computed and all(v in early_shapes for v in computed)
        if small or counts:
            early_shapes.update(node.outputs)
            continue
        late.update(node.outputs)
    for node in graph:
        if not late.intersection(node.outputs):
            continue
        for value in operands(node):
            if value.const_value is None and value not in late:
                needed[value] = None
    return list(needed)

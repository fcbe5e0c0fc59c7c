"""The tables of operators that are written out in others, and the writing out.

An expansion receives a tape and the node, and returns what stands for the node's outputs in their
order, fewer where nothing stands for the last ones; None where the node has to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from pellucid.graph.protobuf import CONTRIB
from pellucid.graph.tape import Tape

__all__ = ["EXPANSIONS", "FUSED", "Expansion", "expand", "expansion", "given", "unfused"]

Expansion: TypeAlias = Callable[[Tape, ir.Node], "Sequence[ir.Value] | None"]
Table: TypeAlias = Mapping[tuple[str, str], Expansion]

EXPANSIONS: dict[tuple[str, str], Expansion] = {}
FUSED: dict[tuple[str, str], Expansion] = {}


def expansion(*operators: str) -> Callable[[Expansion], Expansion]:
    """Register a function as the expansion of some standard operators."""

    def register(function: Expansion) -> Expansion:
        EXPANSIONS.update((("", operator), function) for operator in operators)
        return function

    return register


def unfused(*operators: str, domain: str = CONTRIB) -> Callable[[Expansion], Expansion]:
    """Register a function as the opening of some operators that tools make out of several."""

    def register(function: Expansion) -> Expansion:
        FUSED.update(((domain, operator), function) for operator in operators)
        return function

    return register


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input that may be missing."""
    return node.inputs[index] if index < len(node.inputs) else None


def expand(graph: ir.Graph, nodes: Iterable[ir.Node], table: Table) -> int:
    """Write out those of some nodes that a table has; return how many.

    Tensors keep their names; new nodes are named after the old one and belong to its layer.
    """
    chosen = [node for node in nodes if (node.domain, node.op_type) in table]
    if not chosen:
        return 0
    t, count = Tape(graph), 0
    for node in chosen:
        t.prefix = f"{node.name or node.op_type}/"
        sources = [v for v in node.inputs if v is not None and v.dtype is not None]
        real = [v.dtype for v in sources if v.dtype is not None and v.dtype.is_floating_point()]
        t.dtype = real[0] if real else ir.DataType.FLOAT
        before = len(t.nodes)
        results = table[node.domain, node.op_type](t, node)
        if results is None:
            continue
        free = {value for new in t.nodes[before:] for value in new.outputs}
        for old, new in zip(node.outputs, results, strict=False):
            if not old.name:
                continue
            own = new if new in free else t.op("Identity", [new], name=f"{t.prefix}{old.name}")
            free.discard(own)
            own.type, own.shape = own.type or old.type, old.shape
            old.replace_all_uses_with(own, replace_graph_outputs=True)
            old.name, own.name = f"{old.name}/whole", old.name
        fresh, own_name = t.nodes[before:], (node.outputs[0].name or "").removesuffix("/whole")
        for each in fresh:
            each.metadata_props.update(node.metadata_props)
            if each.outputs[0].name == own_name:
                each.name = node.name  # what gives the node's first output goes by its name
            else:
                each.meta["inside"] = True
        graph.insert_before(node, fresh)
        graph.remove(node, safe=True)
        count += 1
    for constant in t.initializers:
        graph.register_initializer(constant)
    if count:
        graph.sort()  # a node found instead of written again may stand behind its new reader
    return count

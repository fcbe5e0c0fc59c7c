"""Finding rectifiers however they were written.

An operator like Relu is one by its name. `x * sigmoid(x)`, a GELU spelled out or `x * (x > 0)` is
found by its form: a product, sum or choice whose operands all follow element by element from one
tensor x. Such a function of one number is a rectifier if it is 0 at 0, grows like x on one side
and stays small on the other; so it is simply evaluated there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from pellucid.graph.rules.rectifier import zero
from pellucid.graph.tape import array

__all__ = ["Rectifier", "Span", "find_rectifiers"]

Rectifier = Literal[
    "exact", "guided", "deconv",
    "deeplift", "lrp-epsilon", "lrp-gamma", "lrp-z-plus", "lrp-composite",
]  # fmt: skip

NAMED = {"Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Swish"}
NAMED |= {"ThresholdedRelu"}
JOINS = {"Mul", "Where", "Max", "Min", "Div", "Add", "Sub"}
STEPS = {"Abs", "Cast", "Clip", "Erf", "Exp", "Greater", "GreaterOrEqual", "HardSigmoid", "Less"}
STEPS |= {"LessOrEqual", "Log", "Neg", "Not", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign"}
STEPS |= {"Softplus", "Tanh", "CastLike", "Identity"}
PROBES = (-30.0, -8.0, 0.0, 8.0, 30.0)
DEEPEST = 24  # nodes in one spelled-out activation


@dataclass(frozen=True)
class Span:
    """The nodes of one rectifier.

    Attributes
    ----------
    source : the value that it rectifies.
    inner : its nodes besides the last one.
    """

    source: ir.Value
    inner: frozenset[ir.Node]


def find_rectifiers(nodes: Sequence[ir.Node], graph: ir.Graph) -> Mapping[ir.Node, Span]:
    """Return every rectifier among some nodes, keyed by its last node."""
    for position, node in enumerate(graph):
        node.meta["position"] = position
    found: dict[ir.Node, Span] = {}
    candidates: dict[ir.Node, Span] = {}
    for node in nodes:
        if _named(node) and (source := _variable(node)) is not None:
            found[node] = Span(source, frozenset())
        elif node.op_type in JOINS and (span := _one_variable(node)) is not None:
            candidates[node] = span
    spelled = {node for node, curve in _curves(candidates, graph).items() if _rectifies(curve)}
    inside: set[ir.Node] = set()
    for node in reversed(nodes):  # the largest spelling counts: what it contains is part of it
        if node in spelled and node not in inside:
            found[node] = candidates[node]
            inside |= candidates[node].inner
    return {node: span for node, span in found.items() if node not in inside}


def _named(node: ir.Node) -> bool:
    if node.op_type == "Clip":
        return zero((*node.inputs, None)[1])
    if node.op_type == "Max":
        return len(node.inputs) == 2 and any(zero(value) for value in node.inputs)
    return node.op_type in NAMED


def _variable(node: ir.Node) -> ir.Value | None:
    return next((v for v in node.inputs if v is not None and array(v) is None), None)


def _one_variable(root: ir.Node) -> Span | None:
    """Trace a node back to the one value that it is a function of, element by element."""
    # the nearest value that all paths share: take nodes in, latest first, until one value is left
    inner: set[ir.Node] = set()
    frontier = {v for v in root.inputs if v is not None and not _constant(v)}
    for _ in range(DEEPEST):
        if len(frontier) == 1 and (inner or len(_variables(root)) > 1):
            (source,) = frontier
            return Span(source, frozenset(inner)) if inner or root.op_type != "Add" else None
        producers = [p for v in frontier if (p := v.producer()) is not None]
        last = max(producers, key=_position, default=None)
        if last is None or last.op_type not in STEPS | JOINS:
            return None
        inner.add(last)
        frontier -= set(last.outputs)
        frontier |= {v for v in last.inputs if v is not None and not _constant(v)}
    return None


def _variables(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and not _constant(v)]


def _position(node: ir.Node) -> int:
    position: int = node.meta.get("position", -1)
    return position


def _constant(value: ir.Value) -> bool:
    contents = array(value)
    return contents is not None and contents.size == 1


def _curves(candidates: Mapping[ir.Node, Span], graph: ir.Graph) -> dict[ir.Node, Any]:
    """Evaluate every candidate at the probes, all of them in one run."""
    if not candidates:
        return {}
    from pellucid.graph.runtime import session

    nodes, tensors, outputs = [], {}, []
    for index, (root, span) in enumerate(candidates.items()):
        rename = {span.source.name: f"x_{np.dtype(_dtype(span.source))}"}
        for node in sorted(span.inner | {root}, key=_position):
            proto = ir.serde.serialize_node(node)
            for i, value in enumerate(node.inputs):
                if value is not None and value.const_value is not None:
                    scalar = np.asarray(array(value)).reshape(())
                    tensors[value.name or ""] = onnx.numpy_helper.from_array(scalar, value.name)
                elif value is not None:
                    proto.input[i] = rename.get(value.name, value.name)
            for i, value in enumerate(node.outputs):
                rename[value.name] = proto.output[i] = f"{index}/{value.name}"
            nodes.append(proto)
        outputs.append(onnx.helper.make_empty_tensor_value_info(f"{index}/{root.outputs[0].name}"))
    for kind in {np.dtype(_dtype(span.source)) for span in candidates.values()}:
        tensors[f"x_{kind}"] = onnx.numpy_helper.from_array(np.asarray(PROBES, kind), f"x_{kind}")
    for i, proto in enumerate(nodes):
        proto.name = f"probe_{i}"
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items()]
    made = onnx.helper.make_graph(nodes, "probes", [], outputs, list(tensors.values()))
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)
    results = session(model, optimize=False).run(None, {})
    return dict(zip(candidates, results, strict=True))


def _dtype(value: ir.Value) -> Any:
    return (value.dtype or ir.DataType.FLOAT).numpy()


def _rectifies(curve: Any) -> bool:
    """0 at 0; like x at one end and small at the other, or bent to a lesser slope there."""
    values = np.asarray(curve, np.float64)
    if values.shape != (len(PROBES),) or not np.all(np.isfinite(values)) or abs(values[2]) > 1e-6:
        return False
    up = 0.9 < values[4] / PROBES[4] < 1.1 and 0.9 < values[3] / PROBES[3] < 1.1
    slope = values[0] / PROBES[0]
    capped = 0 < values[3] == values[4] and values[0] == values[1] == 0  # ReLU6 spelled out
    return bool((up and -0.1 < slope < 0.6) or capped)

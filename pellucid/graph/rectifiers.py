"""Finding rectifiers however they were written.

An operator like Relu is one by its name. `x * sigmoid(x)`, a GELU spelled out or `x * (x > 0)` is
found by its form: a product, sum or choice whose operands all follow element by element from one
tensor x. Such a function of one number is a rectifier if it is 0 at 0, grows like x on one side,
for ever or up to a limit, and stays small on the other; so it is simply evaluated there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.rules.rectifier import zero
from pellucid.graph.tape import array

__all__ = ["PROBES", "Rectifier", "Span", "filled_with", "find_rectifiers", "rectified"]

Rectifier = Literal[
    "exact", "guided", "deconv",
    "deeplift", "lrp-epsilon", "lrp-gamma", "lrp-z-plus", "lrp-composite",
]  # fmt: skip

NAMED = {"Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Swish"}
NAMED |= {"ThresholdedRelu"}
JOINS = {"Mul", "Where", "Max", "Min", "Div", "Add", "Sub", "Neg"}
CUTS = {"Relu", "Clip"}
STEPS = {"Abs", "And", "Cast", "CastLike", "Clip", "Equal", "Erf", "Exp", "Expand", "Greater"}
STEPS |= {"GreaterOrEqual", "HardSigmoid", "Identity", "Less", "LessOrEqual", "Log", "Neg", "Not"}
STEPS |= {"Or", "Pow", "Reciprocal", "Shape", "Sigmoid", "Sign", "Softplus", "Sqrt", "Tanh", *NAMED}
FILLED = {"Expand", "Reshape", "Slice", "Identity", "Cast"}  # keep one number one number
PROBES = (-30.0, -8.0, -0.125, 0.0, 0.125, 8.0, 30.0)
DEEPEST = 24  # nodes in one spelled-out activation
SOURCES = 3  # values, the nearest first, of which it may be a function


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
    candidates: list[tuple[ir.Node, Span]] = []
    for node in nodes:
        if _named(node) and (source := _variable(node)) is not None:
            found[node] = Span(source, frozenset())
        if node.op_type in JOINS or (node in found and node.op_type in CUTS):
            candidates += [(node, span) for span in _of_one_variable(node)]
    spelled: dict[ir.Node, Span] = {}
    judged = zip(candidates, _curves(candidates, graph), strict=True)
    for node, group in groupby(judged, lambda pair: pair[0][0]):
        spans, curves = zip(*((span, curve) for (_, span), curve in group), strict=True)
        if (chosen := rectified(curves)) is not None:
            spelled[node] = spans[chosen]
    inside: set[ir.Node] = set()
    for node in reversed(nodes):  # the largest spelling counts: what it contains is part of it
        if node in spelled and node not in inside:
            found[node] = spelled[node]
            inside |= spelled[node].inner
    return {node: span for node, span in found.items() if node not in inside}


def _named(node: ir.Node) -> bool:
    if node.op_type == "Clip":
        return zero((*node.inputs, None)[1])
    if node.op_type == "Max":
        numbers = [filled_with(value) for value in node.inputs if value is not None]
        return len(numbers) == 2 and any(number == 0 for number in numbers if number is not None)
    return node.op_type in NAMED


def _variable(node: ir.Node) -> ir.Value | None:
    return next(iter(_variables(node)), None)


def _of_one_variable(root: ir.Node) -> list[Span]:
    """Trace a node back to the values that it is a function of, element by element."""
    # values that all paths share: take nodes in, latest first, until one value is left
    inner: set[ir.Node] = set()
    frontier, found = set(_variables(root)), list[Span]()
    for _ in range(DEEPEST):
        if len(frontier) == 1 and (inner or len(_variables(root)) > 1 or _named(root)):
            (source,) = frontier
            if inner or root.op_type != "Add":
                found.append(Span(source, frozenset(inner)))
            if len(found) == SOURCES:
                break
        producers = [p for v in frontier if (p := v.producer()) and p.graph is root.graph]
        last = max(producers, key=_position, default=None)
        if last is None or last.op_type not in STEPS | JOINS:
            break
        inner.add(last)
        frontier -= set(last.outputs)
        frontier |= set(_variables(last))
    return found


def _variables(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and filled_with(v) is None]


def _position(node: ir.Node) -> int:
    position: int = node.meta.get("position", -1)
    return position


def filled_with(value: ir.Value) -> NDArray[Any] | None:
    """Return the one number that a constant holds, in whatever shape it is filled with it."""
    contents, producer = array(value), value.producer()
    if contents is not None:
        uniform = contents.size > 0 and bool((contents == contents.flat[0]).all())
        return np.asarray(contents.flat[0]) if uniform else None
    if producer is not None and producer.op_type == "ConstantOfShape":
        given = producer.attributes.get("value")
        return np.zeros((), np.float32) if given is None else given.as_tensor().numpy().reshape(())
    if producer is None or producer.op_type not in FILLED or producer.inputs[0] is None:
        return None
    number = filled_with(producer.inputs[0])
    return None if number is None or value.dtype is None else number.astype(value.dtype.numpy())


def _curves(candidates: Sequence[tuple[ir.Node, Span]], graph: ir.Graph) -> list[Any]:
    """Evaluate every candidate at the probes, all of them in one run."""
    if not candidates:
        return []
    from pellucid.graph.runtime import session

    nodes, tensors, outputs = [], {}, []
    for index, (root, span) in enumerate(candidates):
        rename = {span.source.name: f"x_{np.dtype(_dtype(span.source))}"}
        for node in sorted(span.inner | {root}, key=_position):
            proto = ir.serde.serialize_node(node)
            for i, value in enumerate(node.inputs):
                if value is not None and (number := filled_with(value)) is not None:
                    tensors[value.name or ""] = onnx.numpy_helper.from_array(number, value.name)
                elif value is not None:
                    proto.input[i] = rename.get(value.name, value.name)
            for i, value in enumerate(node.outputs):
                rename[value.name] = proto.output[i] = f"{index}/{value.name}"
            nodes.append(proto)
        outputs.append(onnx.helper.make_empty_tensor_value_info(f"{index}/{root.outputs[0].name}"))
    for kind in {np.dtype(_dtype(span.source)) for _, span in candidates}:
        tensors[f"x_{kind}"] = onnx.numpy_helper.from_array(np.asarray(PROBES, kind), f"x_{kind}")
    for i, proto in enumerate(nodes):
        proto.name = f"probe_{i}"
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items()]
    made = onnx.helper.make_graph(nodes, "probes", [], outputs, list(tensors.values()))
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)
    results: list[Any] = session(model, optimize=False).run(None, {})
    return results


def _dtype(value: ir.Value) -> Any:
    return (value.dtype or ir.DataType.FLOAT).numpy()


def rectified(curves: Iterable[Any]) -> int | None:
    """Return which source a function rectifies, by its values at the probes of each source.

    That is the nearest one, with which they begin, of which it is a rectifier. What is cut off
    above first counts as one with it: max(min(x, 6), 0) rectifies x, as min(max(x, 0), 6) does.
    """
    found, nearest = None, np.empty(0)
    for index, curve in enumerate(curves):
        values = np.asarray(curve, np.float64)
        if found is None and np.array_equal(values, PROBES):
            return None  # it is what it was before
        if found is None and _rectifies(values):
            found, nearest = index, values
        elif found is not None and values[-1] < nearest[-1]:
            found = index if np.array_equal(values, np.minimum(nearest, values[-1])) else found
    return found


def _rectifies(values: NDArray[np.float64]) -> bool:
    """Whether a function is a rectifier, by its values at the probes.

    It is 0 at 0, like x above, and small below or bent to a lesser slope there. Or it consists of
    straight parts, as those with a threshold or a limit do: the slope below, perhaps a gap, x, the
    limit.
    """
    probes = np.asarray(PROBES)
    if values.shape != probes.shape or not np.all(np.isfinite(values)):
        return False
    zero, above, high = values[3], values[4], values[5:]
    if zero > 0 and (values[:4] == zero).all():
        return False  # it keeps a divisor from zero
    up = np.all(abs(high / probes[5:] - 1) < 0.1) and abs(zero) <= 1e-6
    bent = values[2] != probes[2]  # at zero, unlike max(x, -1)
    slope = (zero - values[0]) / -probes[0]
    straight = np.allclose(values[:3], zero + slope * probes[:3], rtol=1e-3, atol=1e-6)
    limited = high[1] > 0 and np.array_equal(high, np.minimum(probes[5:], high[1]))
    parts = straight and zero <= 0 and above <= probes[4] and limited
    return bool(((up and bent) or parts) and -0.1 < slope < 0.6)

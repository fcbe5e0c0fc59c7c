"""Explanations that ask the network many times, as a loop inside the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import LayerError, UnsupportedError
from pellucid.graph.gradient import path
from pellucid.graph.tape import Tape, label, rename_constant

__all__ = ["average_over_points", "score_near"]

STEP = "step/"  # the names of all values in the body of a loop begin so
_SUMS = ir.DataType.FLOAT


def average_over_points(
    t: Tape,
    outer: ir.Graph,
    gradient: ir.Model,
    given: dict[str, ir.Value],
    x: ir.Value,
    weights: NDArray[Any],
    point: Callable[[Tape, ir.Value], ir.Value],
    absolute: bool = False,
) -> ir.Value:
    """Weighted sum of the gradient at several points, by a loop with one pass for each of them.

    Parameters
    ----------
    outer : the graph that the loop becomes part of; equal constants are shared with it.
    gradient : takes the network's inputs and `seed/...`; its one output is the gradient.
    given : values outside for those inputs; that of `x` is replaced by the point.
    weights : one per point.
    point : from `(tape, index of the point)` to the point in float32, in nodes inside the loop.
    absolute : sum magnitudes.
    """
    body = gradient.clone().graph
    (result,) = body.outputs
    for value in list(body.initializers.values()):
        name = value.name or ""
        same = outer.initializers.get(name)
        del body.initializers[name]
        if same is not None and _equal(same, value):
            value.replace_all_uses_with(same)
        else:
            rename_constant(value, f"{STEP}{name}")
            body.register_initializer(value)
    inputs = {value.name or "": value for value in body.inputs}
    for node in body:
        node.name = f"{STEP}{node.name}"
        for output in node.outputs:
            output.name = f"{STEP}{output.name}"
    inner = Tape(body, prefix=f"{STEP}point/")
    index = ir.Value(name=f"{STEP}index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=f"{STEP}going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    total = ir.Value(name=f"{STEP}total", type=ir.TensorType(_SUMS), shape=x.shape)
    place = point(inner, index)
    place.type, place.shape = total.type, x.shape
    here = place if x.dtype == _SUMS else inner.Cast(place, to=int(x.dtype or _SUMS))
    here.type, here.shape = x.type, x.shape
    before = list(inner.nodes)
    for name, value in inputs.items():
        value.replace_all_uses_with(here if given[name] is x else given[name])
    weight = inner.Gather(weights, index, axis=0)
    real = result if x.dtype == _SUMS else inner.Cast(result, to=int(_SUMS))
    counted = inner.Abs(real) if absolute else real
    after = inner.Add(total, inner.Mul(counted, weight))
    after.type, after.shape = total.type, x.shape
    on = inner.Identity(going)
    on.type, on.shape = going.type, going.shape
    for constant in inner.initializers:
        body.register_initializer(constant)
    first = next(iter(body), None)
    body.extend(before) if first is None else body.insert_before(first, before)
    body.extend([node for node in inner.nodes if node not in before])
    body.inputs.clear()
    body.inputs.extend([index, going, total])
    body.outputs.clear()
    body.outputs.extend([on, after])
    body.name = "step"
    start = [t.constant(np.asarray(len(weights))), t.constant(np.asarray(True)), t.zeros(x)]
    return t.op("Loop", start, attributes={"body": body}, name=f"{t.prefix}Loop")


def score_near(
    t: Tape,
    graph: ir.Graph,
    value: ir.Value,
    explained: ir.Value,
    hot: ir.Value,
    masks: NDArray[Any],
) -> ir.Value:
    """Score the network on a layer's value times each of P masks: (P, N).

    Only what lies between the layer and the score is computed again.

    Parameters
    ----------
    graph : holds the network.
    value : of the layer.
    explained, hot : the score is the sum of their product over all axes but the batch.
    masks : (P, ...), each to be broadcast to the value's shape.

    Raises
    ------
    LayerError : the score does not depend on the layer.
    UnsupportedError : a branch or loop lies between the two.
    """
    between, _ = path(graph, [explained], [value])
    if not between:
        raise LayerError(f"The score does not depend on {value.name!r}: name another layer.")
    body = ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports), name="masked")
    inner = Tape(body, prefix=f"{STEP}masked/")
    inner.dtype = value.dtype or _SUMS
    index = ir.Value(name=f"{STEP}index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=f"{STEP}going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    masked = inner.Mul(value, inner.Gather(masks, index, axis=0))
    masked.type, masked.shape = value.type, value.shape
    again = {value: masked}
    copies = []
    for node in between:
        if any(isinstance(a.value, ir.Graph) for a in node.attributes.values()):
            raise UnsupportedError(f"{label(node)} lies between the layer and the score.")
        inputs = [None if v is None else again.get(v, v) for v in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes=node.attributes,
            num_outputs=len(node.outputs),
            name=f"{STEP}{node.name}",
        )
        for one, other in zip(node.outputs, copy.outputs, strict=True):
            other.name, other.type, other.shape = f"{STEP}{one.name}", one.type, one.shape
            again[one] = other
        copies.append(copy)
    before = list(inner.nodes)
    positions = list(range(1, t.rank(explained)))
    score = inner.ReduceSum(inner.Mul(hot, again[explained]), positions, keepdims=0)
    score.type = explained.type
    on = inner.Identity(going)
    on.type, on.shape = going.type, going.shape
    for constant in inner.initializers:
        body.register_initializer(constant)
    body.extend([*before, *copies, *(node for node in inner.nodes if node not in before)])
    body.inputs.extend([index, going])
    body.outputs.extend([on, score])
    start = [t.constant(np.asarray(len(masks))), t.constant(np.asarray(True))]
    scores = t.op("Loop", start, attributes={"body": body}, name=f"{t.prefix}Loop_masked")
    scores.type = explained.type
    return scores


def _equal(one: ir.Value, other: ir.Value) -> bool:
    if one.const_value is None or other.const_value is None:
        return False
    return np.array_equal(one.const_value.numpy(), other.const_value.numpy())

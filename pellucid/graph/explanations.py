"""Explanations as formulas on the tape: what the methods compute, written as ONNX nodes.

Every function takes the tape and values and returns values; shapes are in comments. The batch and,
where the graph leaves them open, the spatial sizes stay dynamic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.placement import Placement
from pellucid.graph.tape import Tape, dims

__all__ = [
    "average_over_points",
    "class_activation",
    "heatmap",
    "on_grid",
    "one_hot",
    "pixel_heatmap",
    "resized",
    "top_class",
]

STEP = "step/"  # the names of all values in the body of a loop begin so


def top_class(t: Tape, logits: ir.Value, axis: int) -> ir.Value:
    """Class with the greatest logit, averaged over positions: (N, ..., K, ...) -> (N,)."""
    places = _places(t, logits, axis)
    mean = t.ReduceMean(logits, places, keepdims=0) if places else logits
    return t.ArgMax(mean, axis=1, keepdims=0)


def one_hot(t: Tape, logits: ir.Value, classes: ir.Value, axis: int) -> ir.Value:
    """Cotangent of the mean over positions of one class's logit; `classes` is (N,)."""
    places, known = _places(t, logits, axis), dims(logits) or ()
    count = known[axis]
    numbers = (
        t.constant(np.arange(count))
        if isinstance(count, int)
        else t.Range(0, t.Squeeze(t.size(logits, axis), [0]), 1)
    )
    same = t.Equal(t.Unsqueeze(classes, [1]), t.Unsqueeze(numbers, [0]))  # (N, K)
    hot = t.Cast(same, to=int(t.dtype))
    if places:
        sizes = [t.size(logits, place) for place in places]
        positions = t.ReduceProd(t.Concat(*sizes, axis=0), keepdims=1)
        hot = t.Div(hot, t.Cast(positions, to=int(t.dtype)))
        hot = t.Expand(t.Unsqueeze(hot, places), t.Shape(logits))
    hot.type, hot.shape = logits.type, logits.shape
    return hot


def on_grid(t: Tape, value: ir.Value, rank: int, placement: Placement) -> ir.Value:
    """View the values of a layer as (N, C, *grid); `rank` is that of the values."""
    order = [0, placement.channels, *placement.positions]
    others = [axis for axis in range(rank) if axis not in order]
    turned = t.Transpose(value, perm=[*order, *others])
    if placement.take is not None:
        flat = t.Reshape(turned, [0, 0, -1])  # (N, C, T)
        turned = t.Gather(flat, np.asarray(placement.take), axis=2)
    elif rank == 2 + len(placement.grid):
        return turned
    return t.Reshape(turned, [0, 0, *placement.grid])


def class_activation(
    t: Tape, activation: ir.Value, gradient: ir.Value, rank: int, kind: str
) -> ir.Value:
    """Weigh channels and add them up: (N, C, *grid) -> (N, 1, *grid), before any cut at zero."""
    positions = list(range(2, rank))
    if kind == "grad-cam":
        weighed = t.Mul(t.ReduceMean(gradient, positions, keepdims=1), activation)
    elif kind == "xgrad-cam":
        over = t.ReduceSum(t.Mul(gradient, activation), positions, keepdims=1)
        under = t.Add(t.ReduceSum(activation, positions, keepdims=1), 1e-7)
        weighed = t.Mul(t.Div(over, under), activation)
    elif kind == "layer-cam":
        weighed = t.Mul(t.Relu(gradient), activation)
    else:  # HiResCAM
        weighed = t.Mul(gradient, activation)
    return t.ReduceSum(weighed, [1], keepdims=1)


def heatmap(t: Tape, values: ir.Value, rank: int, size: ir.Value) -> ir.Value:
    """Scale what is positive to [0, 1] and resize it: (N, 1, *grid) -> (N, *size)."""
    positive = t.Relu(values)
    peak = t.ReduceMax(positive, list(range(1, rank)), keepdims=1)
    scaled = t.Div(positive, t.Where(t.Greater(peak, 0.0), peak, 1.0))
    return t.Squeeze(t.Clip(resized(t, scaled, rank, size), 0.0, 1.0), [1])


def pixel_heatmap(t: Tape, values: ir.Value, rank: int, size: ir.Value, signed: bool) -> ir.Value:
    """Draw an attribution of pixels on [0, 1]: (N, C, *spatial) -> (N, *size).

    The channels are summed, with 1/2 for zero, or without a sign their largest magnitude is
    taken. The scale is the 99.5th percentile, since a few pixels far above all others would leave
    the rest dark.
    """
    if signed:
        strength = t.ReduceSum(values, [1], keepdims=1)
    else:
        strength = t.ReduceMax(t.Abs(values), [1], keepdims=1)
    magnitude = t.Flatten(t.Abs(strength), axis=1)  # (N, P)
    high = t.ReduceMax(magnitude, [1], keepdims=1)
    percentile = _percentile(t, magnitude, 0.995)
    scale = t.Where(t.Greater(percentile, 0.0), percentile, high)
    scale = t.Where(t.Greater(scale, 0.0), scale, 1.0)
    scaled = t.Div(strength, t.Unsqueeze(scale, list(range(2, rank))))
    drawn = resized(t, scaled, rank, size)
    if signed:
        drawn = t.Mul(t.Add(drawn, 1.0), 0.5)
    return t.Squeeze(t.Clip(drawn, 0.0, 1.0), [1])


def _percentile(t: Tape, values: ir.Value, share: float) -> ir.Value:
    """Percentile of rows, interpolated between its two neighbours: (N, P) -> (N, 1)."""
    double = int(ir.DataType.DOUBLE)
    last = t.Sub(t.Shape(values, start=1, end=2), [1])
    place = t.Mul(t.Cast(last, to=double), np.asarray([share]))
    below = t.Floor(place)
    above = t.Cast(t.Sub(place, below), to=int(t.dtype))  # the share of the upper neighbour
    rank = t.Sub(last, t.Cast(below, to=int(ir.DataType.INT64)))  # of the lower one, from the top
    top, _ = t.write_many("TopK", 2, values, t.Add(rank, [1]), axis=1)  # falling
    lower = t.Gather(top, rank, axis=1)
    upper = t.Gather(top, t.Max(t.Sub(rank, [1]), [0]), axis=1)
    return t.Add(lower, t.Mul(above, t.Sub(upper, lower)))


def resized(t: Tape, values: ir.Value, rank: int, size: ir.Value) -> ir.Value:
    """Resize linearly with half-pixel centres: (N, 1, *grid) -> (N, 1, *size)."""
    if rank == 3:  # runtimes know the linear form of two and more axes
        wide = t.Unsqueeze(values, [2])
        drawn = resized(t, wide, 4, t.Concat([1], size, axis=0))
        return t.Squeeze(drawn, [2])
    whole = t.Concat(t.Shape(values, start=0, end=2), size, axis=0)
    return t.Resize(
        values, None, None, whole, mode="linear", coordinate_transformation_mode="half_pixel"
    )


def average_over_points(
    t: Tape,
    outer: ir.Graph,
    gradient: ir.Model,
    given: dict[str, ir.Value],
    x: ir.Value,
    weights: NDArray[Any],
    point: Callable[[Tape, ir.Value, ir.Value], ir.Value],
    absolute: bool = False,
) -> ir.Value:
    """Weighted sum of the gradient at several points, by a loop with one pass for each of them.

    Parameters
    ----------
    outer : the graph that the loop becomes part of; equal constants are shared with it.
    gradient : takes the network's inputs and `seed/...`; its one output is the gradient.
    given : values outside for those inputs; that of `x` is replaced by the point.
    weights : one per point.
    point : from `(tape, x, index of the point)` to the point, in nodes inside the loop.
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
            value.name = f"{STEP}{name}"
            body.register_initializer(value)
    inputs = {value.name or "": value for value in body.inputs}
    for node in body:
        node.name = f"{STEP}{node.name}"
        for output in node.outputs:
            output.name = f"{STEP}{output.name}"
    inner = Tape(body, prefix=f"{STEP}point/")
    index = ir.Value(name=f"{STEP}index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=f"{STEP}going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    total = ir.Value(name=f"{STEP}total", type=x.type, shape=x.shape)
    here = point(inner, x, index)
    here.type, here.shape = x.type, x.shape
    before = list(inner.nodes)
    for name, value in inputs.items():
        value.replace_all_uses_with(here if given[name] is x else given[name])
    weight = inner.Gather(weights, index, axis=0)
    counted = inner.Abs(result) if absolute else result
    after = inner.Add(total, inner.Mul(counted, weight))
    after.type, after.shape = x.type, x.shape
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


def _equal(one: ir.Value, other: ir.Value) -> bool:
    if one.const_value is None or other.const_value is None:
        return False
    return np.array_equal(one.const_value.numpy(), other.const_value.numpy())


def _places(t: Tape, logits: ir.Value, axis: int) -> list[int]:
    return [a for a in range(1, t.rank(logits)) if a != axis]

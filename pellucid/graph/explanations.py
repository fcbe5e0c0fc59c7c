"""Explanations as formulas on the tape: what the methods compute, written as ONNX nodes.

Every function takes the tape and values and returns values; shapes are in comments. The batch and,
where the graph leaves them open, the spatial sizes stay dynamic.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pellucid.graph.placement import Placement
from pellucid.graph.tape import Tape, dims

__all__ = [
    "class_activation",
    "eigen_projection",
    "heatmap",
    "on_grid",
    "one_hot",
    "pixel_heatmap",
    "resized",
    "scaled",
    "top_class",
]

_SQUARINGS = 11  # 2048 steps of the power iteration


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
    elif kind == "grad-cam++":
        square = t.Mul(gradient, gradient)
        total = t.ReduceSum(activation, positions, keepdims=1)
        under = t.Add(t.Mul(square, 2.0), t.Mul(t.Mul(total, square), gradient))
        usable = t.And(t.Not(t.Equal(gradient, 0.0)), t.Greater(t.Abs(under), 1e-12))
        alpha = t.mask(usable, t.Div(square, t.Where(usable, under, 1.0)))
        weights = t.ReduceSum(t.Mul(alpha, t.Relu(gradient)), positions, keepdims=1)
        weighed = t.Mul(weights, activation)
    elif kind == "xgrad-cam":
        over = t.ReduceSum(t.Mul(gradient, activation), positions, keepdims=1)
        under = t.Add(t.ReduceSum(activation, positions, keepdims=1), 1e-7)
        weighed = t.Mul(t.Div(over, under), activation)
    elif kind == "layer-cam":
        weighed = t.Mul(t.Relu(gradient), activation)
    else:  # HiResCAM
        weighed = t.Mul(gradient, activation)
    return t.ReduceSum(weighed, [1], keepdims=1)


def eigen_projection(t: Tape, activation: ir.Value, rank: int, cells: int | None) -> ir.Value:
    """Project on the first right singular vector: (N, C, *grid) -> (N, 1, *grid).

    As in Muhammad and Yeasin, "Eigen-CAM", 2008.00299, by power iteration: the smaller Gram
    matrix is squared until nothing but its first eigenvector is left in it. Its sign is that with
    which the map correlates positively with the mean of the channels.

    Parameters
    ----------
    cells : number of positions, None where it is known at run time only.
    """
    flat = t.Reshape(activation, [0, 0, -1])  # (N, C, P)
    matrix = t.Transpose(flat, perm=[0, 2, 1])
    channels = (dims(activation) or (None, None))[1]
    narrow = cells is not None and (not isinstance(channels, int) or cells <= channels)
    gram = t.MatMul(matrix, flat) if narrow else t.MatMul(flat, matrix)
    for _ in range(_SQUARINGS):
        gram = _over_largest(t, gram)
        gram = t.MatMul(gram, gram)
    # of a positive semi-definite matrix the greatest element is on the diagonal, and the column of
    # that one is not orthogonal to the eigenvector
    size = t.Squeeze(t.Shape(gram, start=1, end=2), [0])
    numbers = t.Unsqueeze(t.Range(0, size, 1), [0])  # (1, n)
    rows = t.ReduceMax(gram, [2], keepdims=0)
    here = t.Equal(numbers, t.ArgMax(rows, axis=1, keepdims=1))  # (N, n)
    start = t.Unsqueeze(t.Cast(here, to=int(t.dtype)), [2])
    vector = _over_length(t, t.MatMul(gram, start))  # (N, n, 1)
    if narrow:
        strength = t.ReduceL2(t.MatMul(flat, vector), [1], keepdims=1)
        projected = t.Mul(vector, strength)
    else:
        projected = t.MatMul(matrix, vector)  # (N, P, 1)
    mean = t.Transpose(t.ReduceMean(flat, [1], keepdims=1), perm=[0, 2, 1])
    agreement = t.ReduceSum(t.Mul(_centred(t, projected), _centred(t, mean)), [1], keepdims=1)
    whole = t.ReduceSum(t.Abs(projected), [1], keepdims=1)
    bound = t.Mul(t.Mul(whole, t.ReduceMax(t.Abs(matrix), [1, 2], keepdims=1)), 1e-6)
    flat_map = t.LessOrEqual(t.Abs(agreement), bound)
    judged = t.Where(flat_map, t.ReduceSum(projected, [1], keepdims=1), agreement)
    signed = t.Mul(projected, t.Where(t.Less(judged, 0.0), -1.0, 1.0))
    shape = t.Shape(activation)
    ends = t.Slice(shape, [2], [rank], [0])
    return t.Reshape(signed, t.Concat(t.Slice(shape, [0], [1], [0]), [1], ends, axis=0))


def _centred(t: Tape, rows: ir.Value) -> ir.Value:
    return t.Sub(rows, t.ReduceMean(rows, [1], keepdims=1))


def _over_largest(t: Tape, matrix: ir.Value) -> ir.Value:
    largest = t.ReduceMax(t.Abs(matrix), [1, 2], keepdims=1)
    return t.Div(matrix, t.Where(t.Greater(largest, 0.0), largest, 1.0))


def _over_length(t: Tape, vector: ir.Value) -> ir.Value:
    length = t.ReduceL2(vector, [1], keepdims=1)
    return t.Div(vector, t.Where(t.Greater(length, 0.0), length, 1.0))


def scaled(t: Tape, values: ir.Value, rank: int) -> ir.Value:
    """Divide by the greatest magnitude of each image, where there is any."""
    peak = t.ReduceMax(t.Abs(values), list(range(1, rank)), keepdims=1)
    return t.Div(values, t.Where(t.Greater(peak, 0.0), peak, 1.0))


def heatmap(t: Tape, values: ir.Value, rank: int, size: ir.Value) -> ir.Value:
    """Scale what is positive to [0, 1] and resize it: (N, 1, *grid) -> (N, *size)."""
    drawn = resized(t, scaled(t, t.Relu(values), rank), rank, size)
    return t.Squeeze(t.Clip(drawn, 0.0, 1.0), [1])


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
    share = t.Div(strength, t.Unsqueeze(scale, list(range(2, rank))))
    drawn = resized(t, share, rank, size)
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


def _places(t: Tape, logits: ir.Value, axis: int) -> list[int]:
    return [a for a in range(1, t.rank(logits)) if a != axis]

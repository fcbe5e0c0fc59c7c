"""Operators that choose, pad or interpolate elements.

Slice, Pad and Resize are linear and act on each axis by itself. Where no plain operator undoes
them, the rule asks the operator for its own matrix, by applying it to an identity, and multiplies
with the transpose; so every mode and every rounding is right by construction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import Cotangents, float_attr, int_attr, ints_attr, rule, str_attr
from pellucid.graph.tape import Tape, array, axes_of, dims, label


@rule("Slice")
def slice_(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    rank = t.rank(x)
    starts, ends = array(node.inputs[1]), array(node.inputs[2])
    axes = axes_of(node, rank, 3)
    steps = array(node.inputs[4]) if len(node.inputs) > 4 else None
    dynamic_axes = len(node.inputs) > 3 and node.inputs[3] is not None and axes is None
    if starts is not None and axes is None and not dynamic_axes:
        axes = list(range(len(starts)))
    if starts is None or ends is None or axes is None:
        return (slice_at_run_time(t, node, g),)
    strides = np.ones(len(axes), np.int64) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        size = length(x, axis)
        if size is None:
            if start == 0 and step == 1 and end >= np.iinfo(np.int32).max:
                continue
            return (slice_at_run_time(t, node, g),)
        kept = range(size)[int(start) : None if end <= -size - 1 else int(end) : int(step)]
        g = spread(t, g, rank, axis, kept, size)
    return (g,)


def spread(t: Tape, g: ir.Value, rank: int, axis: int, kept: range, size: int) -> ir.Value:
    """Put the elements of an axis at the places `kept` of a longer axis of zeros."""
    if kept.step < 0:
        back = [np.iinfo(np.int64).min]
        g, kept = t.Slice(g, [-1], back, [axis], [-1]), kept[::-1]
    step = kept.step
    if step > 1 and len(kept):  # (.., n, ..) -> (.., n, 1, ..) -> (.., n, step, ..)
        apart = t.padded(t.Unsqueeze(g, [axis + 1]), rank + 1, axis + 1, 0, step - 1)
        g = t.Reshape(apart, _merged(t, apart, axis))
    reached = kept.start + len(kept) * step
    return t.padded(g, rank, axis, kept.start, size - reached)


def _merged(t: Tape, value: ir.Value, axis: int) -> ir.Value:
    """Shape of a value whose axes `axis` and `axis + 1` become one."""
    shape = t.Shape(value)
    ahead = [t.Slice(shape, [0], [axis], [0])] if axis else []
    behind = t.Slice(shape, [axis + 2], [np.iinfo(np.int64).max], [0])
    return t.Concat(*ahead, [-1], behind, axis=0)


def slice_at_run_time(t: Tape, node: ir.Node, g: ir.Value) -> ir.Value:
    """Scatter the cotangent to the places that the same slice picks from a count of elements."""
    x = operand(node)
    count = t.ReduceProd(t.shape(x), None, keepdims=1)
    places = t.Reshape(t.Range(0, t.Squeeze(count, [0]), 1), t.shape(x))
    picked = t.Slice(places, *node.inputs[1:])
    return scatter_flat(t, picked, g, x)


def scatter_flat(t: Tape, places: ir.Value, g: ir.Value, x: ir.Value) -> ir.Value:
    """Add each element of `g` to its place, counted through the flattened `x`."""
    count = t.ReduceProd(t.shape(x), None, keepdims=1)
    flat = t.ScatterElements(
        t.zeros_of(count),
        t.Reshape(places, [-1]),
        t.Reshape(g, [-1]),
        axis=0,
        reduction="add",
    )
    return t.reshape_like(flat, x) if dims(x) is not None else t.Reshape(flat, t.shape(x))


@rule("Gather")
def gather(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, indices = operand(node), operand(node, 1)
    rank = t.rank(x)
    axis = int_attr(node, "axis", 0) % rank
    size, places = length(x, axis), array(indices)
    if places is not None and size is not None and places.size:
        flat = [int(i) % size for i in places.reshape(-1)]
        if places.ndim == 0:
            one = t.Unsqueeze(g, [axis])
            return (t.padded(one, rank, axis, flat[0], size - 1 - flat[0]),)
        if places.ndim == 1 and flat == list(range(flat[0], flat[0] + len(flat))):
            return (t.padded(g, rank, axis, flat[0], size - flat[0] - len(flat)),)
    # (.., idx.., ..) -> (.., n, ..), indices spread over the other axes
    before = [t.size(x, a) for a in range(axis)]
    after = [t.size(x, a) for a in range(axis + 1, rank)]
    g = t.Reshape(g, t.Concat(*before, [-1], *after, axis=0))
    row = t.Reshape(indices, [*[1] * axis, -1, *[1] * (rank - 1 - axis)])
    spread_out = t.Expand(row, t.Shape(g))
    return (t.ScatterElements(t.zeros(x), spread_out, g, axis=axis, reduction="add"),)


@rule("Compress")
def compress(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, chosen = operand(node), t.Reshape(t.NonZero(operand(node, 1)), [-1])
    if "axis" not in node.attributes:
        return (scatter_flat(t, chosen, g, x),)
    rank = t.rank(x)
    axis = int_attr(node, "axis", 0) % rank
    row = t.Reshape(chosen, [*[1] * axis, -1, *[1] * (rank - 1 - axis)])
    places = t.Expand(row, t.Shape(g))
    return (t.ScatterElements(t.zeros(x), places, g, axis=axis, reduction="add"),)


@rule("GatherElements")
def gather_elements(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, axis = operand(node), int_attr(node, "axis", 0)
    return (t.ScatterElements(t.zeros(x), operand(node, 1), g, axis=axis, reduction="add"),)


@rule("GatherND")
def gather_nd(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    if int_attr(node, "batch_dims", 0):
        raise UnsupportedError(f"{label(node)} has batch_dims, which no derivative covers.")
    x = operand(node)
    return (t.ScatterND(t.zeros(x), operand(node, 1), g, reduction="add"),)


@rule("ScatterElements", "ScatterND")
def scatter(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    indices, updates = operand(node, 1), operand(node, 2)
    reduction = str_attr(node, "reduction", "none")
    if reduction not in ("none", "add"):
        raise UnsupportedError(f"{label(node)} reduces by {reduction}, which has no derivative.")
    if node.op_type == "ScatterND":
        picked = t.GatherND(g, indices)
        kept = t.ScatterND(g, indices, t.zeros(updates))
    else:
        axis = int_attr(node, "axis", 0)
        picked = t.GatherElements(g, indices, axis=axis)
        kept = t.ScatterElements(g, indices, t.zeros(updates), axis=axis)
    return (g if reduction == "add" else kept), None, picked


@rule("TopK")
def top_k(t: Tape, node: ir.Node, g: ir.Value | None, _: ir.Value | None) -> Cotangents:
    if g is None:
        return ()
    x, axis = operand(node), int_attr(node, "axis", -1)
    return (t.ScatterElements(t.zeros(x), node.outputs[1], g, axis=axis, reduction="add"),)


@rule("Pad")
def pad(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, pads = operand(node), operand(node, 1)
    mode = str_attr(node, "mode", "constant")
    amounts = array(pads)
    if mode == "constant" and (amounts is None or dims(x) is None):
        axes = node.inputs[3] if len(node.inputs) > 3 else None
        return (t.Pad(g, t.Neg(pads), None, axes),)
    if amounts is None:
        raise UnsupportedError(f"{label(node)} takes its pads at run time: no derivative.")
    rank = t.rank(x)
    axes_given = axes_of(node, rank, 3) or list(range(rank))
    half = len(axes_given)
    for index, axis in enumerate(axes_given):
        before, after = int(amounts[index]), int(amounts[half + index])
        if mode == "constant":
            g = t.padded(g, rank, axis % rank, -before, -after)
        elif before or after:
            matrix = t.Pad(t.eye(x, axis), [before, after], None, [1], mode=mode)  # (i, o)
            g = t.along(g, matrix, axis, rank)
    return (g,)


@rule("Resize", "Upsample")
def resize(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, y = operand(node), output(node)
    rank = t.rank(x)
    axes = ints_attr(node, "axes", range(rank))
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    known = array(scales)
    for axis in range(rank):
        same = dims(x) is not None and dims(y) is not None and _same_length(x, y, axis)
        if axis not in axes or same:
            continue
        index = axes.index(axis)
        if known is not None and known.size and known[index] == 1:
            continue
        factor = None if known is None or not known.size else float(known[index])
        g = _unresized(t, node, g, axis, index, factor)
    return (g,)


def _same_length(x: ir.Value, y: ir.Value, axis: int) -> bool:
    have, want = (dims(x) or ())[axis], (dims(y) or ())[axis]
    return have is not None and have == want


def _unresized(
    t: Tape, node: ir.Node, g: ir.Value, axis: int, index: int, factor: float | None
) -> ir.Value:
    """Undo the interpolation along one axis by the transpose of its matrix."""
    x, y = operand(node), output(node)
    rank = t.rank(x)
    size, grown = length(x, axis), length(y, axis)
    plain = str_attr(node, "mode", "nearest") == "nearest"
    if plain and size and grown and grown % size == 0 and _repeats(node, factor):
        # nearest by a whole factor: (.., i r, ..) -> (.., i, r, ..), summed over r
        shape = t.Shape(g)
        ahead = [t.Slice(shape, [0], [axis], [0])] if axis else []
        behind = t.Slice(shape, [axis + 1], [np.iinfo(np.int64).max], [0])
        apart = t.Reshape(g, t.Concat(*ahead, [size, grown // size], behind, axis=0))
        return t.ReduceSum(apart, [axis + 1], keepdims=0)
    own = ("axes", "keep_aspect_ratio_policy")  # of all axes together
    options: dict[str, Any] = {n: a for n, a in node.attributes.items() if n not in own}
    eye = t.Unsqueeze(t.eye(x, axis), [0, 1])  # (1, 1, i, i)
    roi = (*node.inputs, None)[1]
    region = array(roi)
    if region is not None and region.size:
        half = region.size // 2
        ends = [region[index], region[half + index]]
        roi = t.constant(np.asarray([0, 0, 0, ends[0], 1, 1, 1, ends[1]], region.dtype))
    else:
        roi = None
    if factor is not None:
        scales = t.constant(np.asarray([1, 1, 1, factor], np.float32))
        matrix = t.Resize(eye, roi, scales, **options)
    else:
        sizes = t.Concat([1, 1], t.size(x, axis), t.size(y, axis), axis=0)
        matrix = t.Resize(eye, roi, None, sizes, **options)
    if float_attr(node, "extrapolation_value", 0.0) and region is not None:
        nothing = t.Resize(t.Mul(eye, 0.0), *operands_of(matrix)[1:], **options)
        matrix = t.Sub(matrix, nothing)  # what the operator adds by itself
    return t.along(g, t.Squeeze(matrix, [0, 1]), axis, rank)


def operands_of(value: ir.Value) -> list[ir.Value | None]:
    """Inputs of the node that computes a value."""
    producer = value.producer()
    return list(producer.inputs) if producer is not None else []


def _repeats(node: ir.Node, factor: float | None) -> bool:
    """Whether nearest interpolation by a whole factor repeats each element that often."""
    where = str_attr(node, "coordinate_transformation_mode", "half_pixel")
    rounding = str_attr(node, "nearest_mode", "round_prefer_floor")
    whole = factor is None or factor == int(factor)
    if where == "asymmetric":
        return whole and rounding == "floor"
    return (
        whole and where == "half_pixel" and rounding in ("round_prefer_floor", "round_prefer_ceil")
    )


_MOST = 1 << 27  # elements of the matrix of a sampling


def _pictures_of_one(t: Tape, node: ir.Node) -> tuple[ir.Value, list[int]]:
    """All pictures of the size of a node's input in which one pixel is 1, (P, *spatial)."""
    x, y = operand(node), output(node)
    sizes = [length(x, axis) for axis in range(2, t.rank(x))]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise UnsupportedError(
            f"{label(node)} samples a picture of unknown size: no derivative. Export the model for "
            "a fixed image size."
        )
    count = int(np.prod(known))
    sampled = [length(y, axis) or 1 for axis in range(2, t.rank(y))]
    if count * int(np.prod(sampled)) > _MOST:
        raise UnsupportedError(
            f"{label(node)} samples a picture of {count} pixels at {int(np.prod(sampled))} places: "
            "no derivative of so many. Explain a later layer, or export for smaller images."
        )
    eye = np.eye(count, dtype=t.dtype.numpy()).reshape(count, *known)
    return t.constant(eye), known


@rule("GridSample")
def grid_sample(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Linear in the picture: what it makes of each single pixel is its matrix, in every mode."""
    x, grid = operand(node), operand(node, 1)
    if grid in t.wanted:
        raise UnsupportedError(f"{label(node)} computes where it samples: no derivative.")
    pictures, sizes = _pictures_of_one(t, node)
    whole = t.Concat(t.size(x, 0), list(pictures.shape or ()), axis=0)
    options: dict[str, Any] = dict(node.attributes)
    matrix = t.GridSample(t.Expand(t.Unsqueeze(pictures, [0]), whole), grid, **options)
    by_place = t.Reshape(matrix, [0, 0, -1])  # (N, P, places)
    columns = t.Transpose(t.Reshape(g, [0, 0, -1]), perm=[0, 2, 1])  # (N, places, C)
    back = t.Transpose(t.MatMul(by_place, columns), perm=[0, 2, 1])
    return (t.Reshape(back, [0, 0, *sizes]),)


@rule("RoiAlign")
def roi_align(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Averages are linear in the picture: their matrix is what they make of each single pixel."""
    x, rois, images = operand(node), operand(node, 1), operand(node, 2)
    if str_attr(node, "mode", "avg") != "avg" or rois in t.wanted:
        raise UnsupportedError(
            f"{label(node)} takes a maximum, or computes its regions from the picture: no "
            "derivative."
        )
    pictures, sizes = _pictures_of_one(t, node)
    first = t.Expand(t.constant(np.asarray([0], np.int64)), t.Shape(images))
    options: dict[str, Any] = dict(node.attributes)
    matrix = t.RoiAlign(t.Unsqueeze(pictures, [0]), rois, first, **options)  # (R, P, h, w)
    columns = t.Transpose(t.Reshape(g, [0, 0, -1]), perm=[0, 2, 1])  # (R, h w, C)
    back = t.Transpose(t.MatMul(t.Reshape(matrix, [0, 0, -1]), columns), perm=[0, 2, 1])
    regions = t.Reshape(back, [0, 0, *sizes])  # (R, C, H, W)
    return (t.ScatterND(t.zeros(x), t.Unsqueeze(images, [1]), regions, reduction="add"),)

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
    picked = t.Slice(places_of(t, x), *node.inputs[1:])
    return scatter_flat(t, picked, g, x)


def places_of(t: Tape, x: ir.Value) -> ir.Value:
    """The number of each element of `x`, in the shape of `x`."""
    count = t.ReduceProd(t.shape(x), None, keepdims=0)
    return t.Reshape(t.Range(0, count, 1), t.shape(x))


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
    x, batched = operand(node), int_attr(node, "batch_dims", 0)
    if batched:
        picked = t.GatherND(places_of(t, x), operand(node, 1), batch_dims=batched)
        return (scatter_flat(t, picked, g, x),)
    return (t.ScatterND(t.zeros(x), operand(node, 1), g, reduction="add"),)


@rule("ScatterElements", "ScatterND")
def scatter(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    reduction = str_attr(node, "reduction", "none")
    if reduction in ("max", "min"):
        return _scattered_extremum(t, node, g)
    if reduction == "mul":
        return _scattered_product(t, node, g)
    picked = _picked(t, node, g)
    if reduction == "add":
        return g, None, picked
    return _put(t, node, g, t.zeros(operand(node, 2)), "none"), None, picked


def _picked(t: Tape, node: ir.Node, values: ir.Value) -> ir.Value:
    """Read values at the places that a node writes to."""
    if node.op_type == "ScatterND":
        return t.GatherND(values, operand(node, 1))
    return t.GatherElements(values, operand(node, 1), axis=int_attr(node, "axis", 0))


def _put(t: Tape, node: ir.Node, into: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
    """Write other values to the places that a node writes to."""
    axis = int_attr(node, "axis", 0) if node.op_type == "ScatterElements" else None
    return t.write(node.op_type, into, operand(node, 1), updates, axis=axis, reduction=reduction)


def _scattered_extremum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Elements that tie share the cotangent, as torch.scatter_reduce has it."""
    x, updates, y = operand(node), operand(node, 2), output(node)
    kept, written = t.Equal(x, y), t.Equal(updates, _picked(t, node, y))
    hits = _put(t, node, t.Where(kept, 1.0, 0.0), t.Where(written, 1.0, 0.0), "add")
    share = t.Div(g, t.Max(hits, 1.0))
    return t.mask(kept, share), None, t.mask(written, _picked(t, node, share))


def _scattered_product(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Each factor gets the product of all others: through one zero it reaches that one alone."""
    factors = operand(node), operand(node, 2)
    null = [t.Equal(factor, 0.0) for factor in factors]
    full = [t.Where(none, 1.0, factor) for none, factor in zip(null, factors, strict=True)]
    marks = [t.Where(none, 1.0, 0.0) for none in null]
    zeros = _put(t, node, marks[0], marks[1], "add")
    product = t.Mul(g, _put(t, node, full[0], full[1], "mul"))  # of the factors that are not zero

    def share(index: int, zeros: ir.Value, product: ir.Value) -> ir.Value:
        alone = t.mask(t.And(null[index], t.Equal(zeros, 1.0)), product)
        return t.Where(t.Equal(zeros, 0.0), t.Div(product, full[index]), alone)

    at_updates = (_picked(t, node, value) for value in (zeros, product))
    return share(0, zeros, product), None, share(1, *at_updates)


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

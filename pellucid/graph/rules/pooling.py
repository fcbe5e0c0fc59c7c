"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from pellucid.graph.layout import channels_first, channels_last, in_blocks
from pellucid.graph.rules.convolution import window
from pellucid.graph.rules.indexing import scatter_flat
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import Cotangents, int_attr, ints_attr, rule
from pellucid.graph.tape import Tape, dims


@rule("MaxPool")
def max_pool(t: Tape, node: ir.Node, g: ir.Value, _: ir.Value | None = None) -> Cotangents:
    """To the first maximum of each window, as torch has it; windows that overlap add up."""
    if len(node.outputs) == 1 and (found := _by_comparison(t, node, g)) is not None:
        return (found,)
    if int_attr(node, "storage_order", 0) and len(node.outputs) == 2:  # counted by columns
        kept = {n: a for n, a in node.attributes.items() if n != "storage_order"}
        _, places = t.write_many("MaxPool", 2, operand(node), **kept)
        return (scatter_flat(t, places, g, operand(node)),)
    if len(node.outputs) == 1:
        node.resize_outputs(2)
    indices = node.outputs[1]
    indices.name = indices.name or f"{output(node).name}/indices"
    indices.dtype, indices.shape = ir.DataType.INT64, output(node).shape
    return (scatter_flat(t, indices, g, operand(node)),)


_FEW = 3  # elements of a window along one axis


def _by_comparison(t: Tape, node: ir.Node, g: ir.Value) -> ir.Value | None:
    """Find the first maximum by comparing, axis by axis: a third of the time of asking for it.

    The first maximum of a window lies in the first row that holds it, and there in the first
    column. Only for windows of up to three elements per axis, and sizes that are known.
    """
    x, kernel = operand(node), ints_attr(node, "kernel_shape", [])
    win, y = window(node, kernel), output(node)
    steps = [length(y, axis) for axis in range(2, t.rank(x))]
    if max(kernel) > _FEW or win.pads is None or None in (*win.sizes, *steps):
        return None
    stages: list[_Stage] = []
    value, rank = x, t.rank(x)
    for axis in reversed(range(len(kernel))):  # the last axis first: rows are chosen over columns
        extent, stride, pads = win.extent[axis], win.strides[axis], win.pads[axis]
        size, count = win.sizes[axis] or 0, steps[axis] or 0
        offsets = [k * win.dilations[axis] - pads[0] for k in range(kernel[axis])]
        behind = max((count - 1) * stride + extent - size - pads[0], 0)
        pooled = y if axis == 0 else t.MaxPool(
            value,
            kernel_shape=_only(axis, kernel[axis], len(kernel), 1),
            strides=_only(axis, stride, len(kernel), 1),
            dilations=_only(axis, win.dilations[axis], len(kernel), 1),
            pads=[*_only(axis, pads[0], len(kernel), 0), *_only(axis, behind, len(kernel), 0)],
        )  # fmt: skip
        stages.append(_Stage(value, pooled, rank, axis + 2, offsets, stride, size, count))
        value = pooled
    if t.dtype != ir.DataType.FLOAT or not in_blocks(t, x):
        for stage in reversed(stages):
            g = _to_first(t, g, stage)
        return g
    g = channels_last(t, g)
    for stage in reversed(stages):
        before, after = channels_last(t, stage.before), channels_last(t, stage.after)
        turned = replace(stage, before=before, after=after, axis=stage.axis - 1)
        g = _to_first(t, g, turned, multiply=True)
    return channels_first(t, g)


@dataclass(frozen=True)
class _Stage:
    """Maxima along one axis: window i of offset d has the element at s i + d.

    Attributes
    ----------
    before, after : the values and their maxima.
    rank : number of their axes.
    size, count : elements and maxima along the axis.
    """

    before: ir.Value
    after: ir.Value
    rank: int
    axis: int
    offsets: list[int]
    stride: int
    size: int
    count: int


def _only(axis: int, value: int, rank: int, other: int) -> list[int]:
    return [value if index == axis else other for index in range(rank)]


def _to_first(t: Tape, g: ir.Value, stage: _Stage, multiply: bool = False) -> ir.Value:
    """Carry a cotangent of maxima along one axis to the first element that is the maximum.

    `multiply` masks by products, at half the price of choices.
    """
    axis, stride, count = stage.axis, stage.stride, stage.count
    lowest = t.constant(np.asarray(np.finfo(t.dtype.numpy()).min, t.dtype.numpy()))
    parts: list[ir.Value] = []
    left = g
    for offset in stage.offsets[:-1]:
        first = max(0, -(offset // stride))  # the first window whose element lies in the input
        last = max(first, min(count, (stage.size - 1 - offset) // stride + 1))
        start = offset + first * stride
        end = start + (last - first - 1) * stride + 1
        inside = t.Slice(stage.before, [start], [end], [axis], [stride])
        inside = t.padded(inside, stage.rank, axis, first, count - last, lowest)
        hit = t.Equal(inside, stage.after)
        if multiply:
            parts.append(t.Mul(t.Cast(hit, to=int(t.dtype)), left))
            left = t.Sub(left, parts[-1])
        else:
            parts.append(t.Where(hit, left, 0.0))
            left = t.Where(hit, 0.0, left)
    parts.append(left)
    return _interleaved_windows(t, parts, stage)


def _interleaved_windows(t: Tape, parts: list[ir.Value], stage: _Stage) -> ir.Value:
    """Add up (.., count, ..) per offset to (.., size, ..)."""
    # position s q + r gets the parts whose offset is s j + r, j places further on
    axis, stride = stage.axis, stage.stride
    places, phases = -(-stage.size // stride), []
    for residue in range(stride):
        terms = []
        for part, offset in zip(parts, stage.offsets, strict=True):
            if (offset - residue) % stride == 0:
                ahead = (offset - residue) // stride
                behind = places - stage.count - ahead
                terms.append(t.padded(part, stage.rank, axis, ahead, behind))
        phases.append(t.add(terms) if terms else None)
    some = next(phase for phase in phases if phase is not None)
    if stride == 1:
        return some
    filled = [t.Mul(some, 0.0) if phase is None else phase for phase in phases]
    apart = t.Concat(*(t.Unsqueeze(phase, [axis + 1]) for phase in filled), axis=axis + 1)
    ends = t.Shape(some, start=0, end=axis), t.Shape(some, start=axis + 1)
    joined = t.Reshape(apart, t.Concat(ends[0], [places * stride], ends[1], axis=0))
    return joined if places * stride == stage.size else t.Slice(joined, [0], [stage.size], [axis])


@rule("AveragePool")
def average_pool(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Every element of a window gets its share."""
    x, y = operand(node), output(node)
    kernel = ints_attr(node, "kernel_shape", [])
    rank, win = len(kernel), window(node, kernel)
    no_pads = win.pads == ((0, 0),) * rank
    if all(s == 1 for s in win.strides) and win.pads is not None and set(win.dilations) == {1}:
        counted = no_pads or int_attr(node, "count_include_pad", 0)
        around = [(k - 1 - a, k - 1 - b) for k, (a, b) in zip(kernel, win.pads, strict=True)]
        if counted and all(min(p) >= 0 for p in around):
            pads = [p[0] for p in around] + [p[1] for p in around]
            return (t.AveragePool(g, kernel_shape=kernel, pads=pads, count_include_pad=1),)
    steps = [length(y, axis + 2) for axis in range(rank)]
    exact = [
        size is not None and o is not None and size == o * k == o * s
        for size, o, k, s in zip(win.sizes, steps, kernel, win.strides, strict=True)
    ]
    if no_pads and all(exact):
        # (N, C, o, o) -> (N, C, o, k, o, k): windows that tile the input
        grid = [o or 1 for o in steps]
        lead = t.Shape(g, start=0, end=2)
        apart = t.Reshape(t.Mul(g, 1 / math.prod(kernel)), _interleaved(t, lead, grid, [1] * rank))
        spread = t.Expand(apart, _interleaved(t, lead, grid, kernel))
        return (t.reshape_like(spread, x),)
    # the mean is separable
    return (_unpooled(t, node, g, {"count_include_pad"}),)


def _unpooled(
    t: Tape, node: ir.Node, g: ir.Value, kept: Collection[str], **options: Any
) -> ir.Value:
    """Apply the transpose of a separable pooling; the operator itself tells each axis's matrix."""
    x = operand(node)
    kernel = ints_attr(node, "kernel_shape", [])
    rank, total, win = len(kernel), t.rank(x), window(node, kernel)
    pads = ints_attr(node, "pads", [0] * (2 * rank))
    for index in range(rank):
        own: dict[str, Any] = {"kernel_shape": [1, kernel[index]], **options}
        own["strides"] = [1, win.strides[index]]
        if win.dilations[index] != 1:
            own["dilations"] = [1, win.dilations[index]]
        own["pads"] = [0, pads[index], 0, pads[rank + index]]
        for name in ("auto_pad", "ceil_mode", *kept):
            if name in node.attributes:
                own[name] = node.attributes[name]
        if "auto_pad" in own and own["auto_pad"].as_string() != "NOTSET":
            del own["pads"]
        eye = t.Unsqueeze(t.eye(x, index + 2), [0, 1])  # (1, 1, i, i)
        matrix = t.Squeeze(t.write(node.op_type, eye, **own), [0, 1])  # (i, o)
        g = t.along(g, matrix, index + 2, total)
    return g


@rule("LpPool", "GlobalLpPool")
def lp_pool(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = (sum |x|^p)^(1/p), so x gets sign(x) |x|^(p-1) of all its windows' g y^(1-p)
    x, y, p = operand(node), output(node), int_attr(node, "p", 2)

    def of_windows(h: ir.Value) -> ir.Value:
        return h if node.op_type == "GlobalLpPool" else _unpooled(t, node, h, (), p=1)

    if p == 1:
        return (t.Mul(t.Sign(x), of_windows(g)),)
    null = t.Equal(y, 0.0)
    steep = t.mask(t.Not(null), t.Mul(g, t.Pow(t.Where(null, 1.0, y), 1.0 - p)))
    slope = x if p == 2 else t.Mul(t.Sign(x), t.Pow(t.Abs(x), p - 1.0))
    return (t.Mul(slope, of_windows(steep)),)


@rule("MaxUnpool")
def max_unpool(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, places = operand(node), operand(node, 1)
    return (t.Reshape(t.Gather(t.Reshape(g, [-1]), places), t.shape(x)),)


def _interleaved(t: Tape, lead: ir.Value, grid: list[int], inner: list[int]) -> ir.Value:
    tail = [n for pair in zip(grid, inner, strict=True) for n in pair]
    return t.Concat(lead, tail, axis=0)


@rule("GlobalAveragePool")
def global_average_pool(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    spatial = (dims(x) or ())[2:]
    count = 1
    for size in spatial:
        if not isinstance(size, int):
            sizes = t.Shape(x, start=2, end=t.rank(x))
            area = t.Cast(t.ReduceProd(sizes, None, keepdims=0), to=int(t.dtype))
            return (t.expand_like(t.Div(g, area), x),)
        count *= size
    return (t.expand_like(t.Mul(g, 1 / count), x),)


@rule("GlobalMaxPool")
def global_max_pool(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Elements that tie share the cotangent, as for torch.amax and tf.reduce_max."""
    x = operand(node)
    hit = t.Equal(x, output(node))
    axes = list(range(2, t.rank(x)))
    count = t.ReduceSum(t.Where(hit, 1.0, 0.0), axes, keepdims=1)
    return (t.mask(hit, t.Div(g, count)),)

"""Operators on regions and moved kernels, as samples of the picture: see `rules.sampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pellucid.graph.expansions.table import expansion, given
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import float_attr, int_attr, ints_attr, str_attr
from pellucid.graph.tape import Tape, array


def sampled(
    t: Tape, picture: ir.Value, sizes: Sequence[ir.Value], pixels: Sequence[ir.Value]
) -> ir.Value:
    """Interpolate (N, C, H, W) at pixels y and x, (N, h, w) each: (N, C, h, w), zero outside."""
    coordinates = []
    for pixel, size in zip(pixels, sizes, strict=True):
        whole = t.Sub(t.Div(t.Add(t.Mul(pixel, 2.0), 1.0), _real(t, size)), 1.0)  # -1 to 1
        coordinates.append(t.Unsqueeze(whole, [-1]))
    return t.GridSample(picture, t.Concat(*coordinates[::-1], axis=-1))


def _real(t: Tape, size: ir.Value) -> ir.Value:
    return t.Cast(size, to=int(t.dtype))


def _counted(t: Tape, count: ir.Value) -> ir.Value:
    """0, 1, ... as real numbers; `count` is of shape (1,)."""
    return t.Cast(t.Range(0, t.Squeeze(count, [0]), 1), to=int(t.dtype))


@expansion("DeformConv")
def deform_conv(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """Samples where each tap of the kernel is moved to, then a convolution of one pixel."""
    x, weights, offset = (operand(node, index) for index in range(3))
    bias, mask = given(node, 3), given(node, 4)
    known = [length(weights, axis) for axis in range(len(weights.shape or ()))]
    out, inner, *kernel = (size or 0 for size in known)
    if len(kernel) != 2 or not all(known):
        return None
    taps, parts = math.prod(kernel), int_attr(node, "offset_group", 1)
    strides, dilations = (ints_attr(node, name, [1, 1]) for name in ("strides", "dilations"))
    pads = ints_attr(node, "pads", [0] * 4)
    lengths = [t.size(offset, axis) for axis in (2, 3)]
    moved = t.Reshape(offset, t.Concat([-1, taps, 2], *lengths, axis=0))  # (N parts, K, 2, h, w)
    tap = np.stack(np.meshgrid(*map(np.arange, kernel), indexing="ij")).reshape(2, taps)
    pixels = []
    for axis, part in enumerate(t.write_many("Split", 2, moved, [1, 1], axis=2)):
        begin = (tap[axis] * dilations[axis] - pads[axis]).astype(t.dtype.numpy())
        steps = t.Mul(_counted(t, lengths[axis]), float(strides[axis]))
        still = t.Add(begin.reshape(taps, 1, 1), t.Reshape(steps, [-1, 1] if axis == 0 else [-1]))
        pixel = t.Add(t.Squeeze(part, [2]), still)  # (N parts, K, h, w)
        pixels.append(t.Reshape(pixel, t.Concat([0, -1], lengths[1], axis=0)))
    channels = t.Div(t.size(x, 1), [parts])
    sizes = [t.size(x, axis) for axis in (2, 3)]
    apart = t.Reshape(x, t.Concat([-1], channels, *sizes, axis=0))
    values = sampled(t, apart, sizes, pixels)  # (N parts, C / parts, K h, w)
    if mask is not None:
        values = t.Mul(
            values, t.Reshape(mask, t.Concat([-1, 1], t.Shape(pixels[0], start=1), axis=0))
        )
    columns = t.Reshape(
        values, t.Concat(t.size(x, 0), t.Mul(t.size(x, 1), [taps]), *lengths, axis=0)
    )
    flat = t.Reshape(weights, [out, inner * taps, 1, 1])
    return [t.Conv(columns, flat, bias, group=int_attr(node, "group", 1), kernel_shape=[1, 1])]


@expansion("RoiAlign")
def roi_align(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """Means over samples in each cell of each region; all pictures of the batch as one high one."""
    if str_attr(node, "mode", "avg") != "avg":
        return None
    x, images = operand(node), operand(node, 2)
    channels, (height, width) = t.size(x, 1), (t.size(x, axis) for axis in (2, 3))
    rows, columns = _Samples.of(t, node, 0, height), _Samples.of(t, node, 1, width)
    above = t.Mul(t.Cast(images, to=int(t.dtype)), _real(t, height))
    y = t.Add(rows.pixels, t.Reshape(above, [-1, 1, 1]))
    high = t.Reshape(
        t.Transpose(x, perm=[1, 0, 2, 3]), t.Concat([1], channels, [-1], width, axis=0)
    )
    sizes = [t.Mul(height, t.size(x, 0)), width]
    each = [t.Unsqueeze(y, [3, 4]), t.Unsqueeze(columns.pixels, [1, 2])]
    shape = t.Shape(t.Add(*each))  # (R, h, M, w, M')
    places = t.Concat([1, -1], t.Mul(columns.most, [columns.cells]), axis=0)  # (1, R h M, w M')
    pixels = [t.Reshape(t.Expand(one, shape), places) for one in each]
    values = t.Reshape(sampled(t, high, sizes, pixels), t.Concat(channels, shape, axis=0))
    shares = t.Mul(t.Unsqueeze(rows.shares, [3, 4]), t.Unsqueeze(columns.shares, [1, 2]))
    means = t.ReduceSum(t.Mul(values, shares), [3, 5], keepdims=0)  # (C, R, h, w)
    return [t.Transpose(means, perm=[1, 0, 2, 3])]


@dataclass(frozen=True)
class _Samples:
    """Where the cells of R regions are sampled along one axis.

    Attributes
    ----------
    cells : of each region.
    most : samples M in a cell, where it has the most.
    pixels : the places, (R, cells, M).
    shares : of the samples in the mean, (R, cells, M); zero for those that a cell doesn't have.
    """

    cells: int
    most: ir.Value
    pixels: ir.Value
    shares: ir.Value

    @classmethod
    def of(cls, t: Tape, node: ir.Node, axis: int, size: ir.Value) -> _Samples:
        """Read the geometry of a RoiAlign, as the operator is defined."""
        cells = int_attr(node, f"output_{('height', 'width')[axis]}", 1)
        scaled = t.Mul(operand(node, 1), float_attr(node, "spatial_scale", 1.0))  # (R, 4)
        begin, end = (t.Gather(scaled, [index], axis=1) for index in (1 - axis, 3 - axis))
        extent = t.Sub(end, begin)  # (R, 1)
        if str_attr(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel":
            begin = t.Sub(begin, 0.5)
        else:
            extent = t.Max(extent, 1.0)
        width = t.Div(extent, float(cells))
        if ratio := int_attr(node, "sampling_ratio", 0):
            count: ir.Value = t.constant(np.full((1, 1), ratio, t.dtype.numpy()))
        else:  # one for each pixel of a cell
            count = t.Max(t.Ceil(width), 1.0)
        most = t.Reshape(t.Cast(t.ReduceMax(count, keepdims=0), to=int(ir.DataType.INT64)), [1])
        sample = _counted(t, most)  # (M,)
        within = t.Unsqueeze(t.Div(t.Add(sample, 0.5), count), [1])  # (R, 1, M)
        cell = np.arange(cells, dtype=t.dtype.numpy()).reshape(1, cells, 1)
        pixel = t.Add(t.Unsqueeze(begin, [2]), t.Mul(t.Unsqueeze(width, [2]), t.Add(within, cell)))
        real = _real(t, size)
        inside = t.And(t.GreaterOrEqual(pixel, -1.0), t.LessOrEqual(pixel, real))
        share = t.mask(t.Less(sample, count), t.Reciprocal(count))  # (R, M)
        pixel = t.Max(t.Min(pixel, t.Sub(real, 1.0)), 0.0)
        return cls(cells, most, pixel, t.mask(inside, t.Unsqueeze(share, [1])))


@expansion("Col2Im")
def col2im(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """A transposed convolution whose kernels put one element each."""
    x, image, block = operand(node), array(node.inputs[1]), array(node.inputs[2])
    if image is None or block is None:
        return None
    kernel, sizes = [int(k) for k in block], [int(n) for n in image]
    rank, taps = len(kernel), math.prod(kernel)
    strides, dilations = (ints_attr(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads = ints_attr(node, "pads", [0] * (2 * rank))
    room = [
        n + pads[i] + pads[rank + i] - (k - 1) * dilations[i] - 1
        for i, (n, k) in enumerate(zip(sizes, kernel, strict=True))
    ]
    steps = [free // stride + 1 for free, stride in zip(room, strides, strict=True)]
    put = np.eye(taps, dtype=t.dtype.numpy()).reshape(taps, 1, *kernel)
    pictures = t.ConvTranspose(
        t.Reshape(x, [-1, taps, *steps]),  # (N, C K, L) -> (N C, K, l, l)
        put,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=[free % stride for free, stride in zip(room, strides, strict=True)],
    )
    return [t.Reshape(pictures, t.Concat(t.size(x, 0), [-1, *sizes], axis=0))]


@expansion("CumProd")
def cumulative_product(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """The product of the elements up to each, of all of them with ones behind it."""
    x, given_axis = operand(node), array(node.inputs[1])
    rank = t.rank(x)
    axis = None if given_axis is None else int(given_axis.reshape(())) % rank
    n = None if axis is None else length(x, axis)
    if axis is None or n is None:
        return None
    until = np.tri(n, k=-int_attr(node, "exclusive", 0), dtype=bool)
    until = until[::-1, ::-1] if int_attr(node, "reverse", 0) else until
    # (.., n, ..) -> (.., 1, n, ..) -> (.., n, n, ..)
    chosen = _behind(until, rank - 1 - axis)
    return [t.ReduceProd(t.Where(chosen, t.Unsqueeze(x, [axis]), 1.0), [axis + 1], keepdims=0)]


def _behind(matrix: np.ndarray, axes: int) -> np.ndarray:
    shape: Sequence[int] = (*matrix.shape, *[1] * axes)
    return np.ascontiguousarray(matrix).reshape(shape)

"""Convolutions.

The cotangent of a convolution's input is a convolution too, and is written as the one that the
runtime computes fastest: with flipped, transposed weights for stride 1, at the low resolution for
strided kernels of one element, and as a transposed convolution otherwise. (One small convolution
per phase of the stride, interleaved by DepthToSpace, took 1.0 to 2.1 times as long as that.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import UnsupportedError
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import Cotangents, int_attr, ints_attr, rule, str_attr
from pellucid.graph.tape import Tape, array, label


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes.

    Attributes
    ----------
    kernel, strides, dilations : one number per spatial axis.
    pads : zeros before and after each axis, None where they depend on sizes known at run time.
    sizes : lengths of the input's spatial axes, None where unknown.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    sizes: tuple[int | None, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Length of the kernel with its holes."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(node: ir.Node, kernel: Sequence[int]) -> Window:
    """Read the attributes that convolutions share, `auto_pad` included."""
    rank, x = len(kernel), operand(node)
    strides = tuple(ints_attr(node, "strides", [1] * rank))
    dilations = tuple(ints_attr(node, "dilations", [1] * rank))
    sizes = tuple(length(x, axis + 2) for axis in range(rank))
    flat = ints_attr(node, "pads", [0] * (2 * rank))
    pads: tuple[tuple[int, int], ...] | None = tuple(zip(flat[:rank], flat[rank:], strict=True))
    auto = str_attr(node, "auto_pad", "NOTSET")
    bare = Window(tuple(kernel), strides, dilations, None, sizes)
    if auto == "VALID":
        pads = ((0, 0),) * rank
    elif auto.startswith("SAME"):
        pads = _same_pads(bare, upper=auto == "SAME_UPPER")
    return Window(bare.kernel, strides, dilations, pads, sizes)


def _same_pads(bare: Window, *, upper: bool) -> tuple[tuple[int, int], ...] | None:
    pads = []
    for size, stride, extent in zip(bare.sizes, bare.strides, bare.extent, strict=True):
        if size is None and stride != 1:
            return None
        steps = (
            extent - 1 if size is None else (math.ceil(size / stride) - 1) * stride + extent - size
        )
        total = max(steps, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if upper else (large, small))
    return tuple(pads)


@rule("Conv")
def conv(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, weight = operand(node), operand(node, 1)
    if any(value is not None and value in t.wanted for value in node.inputs[1:]):
        raise UnsupportedError(f"{label(node)} computes its weights from the input: no derivative.")
    rank = t.rank(x) - 2
    kernel = [length(weight, axis + 2) for axis in range(rank)]
    if any(k is None for k in kernel):
        raise UnsupportedError(f"{label(node)} has a kernel of unknown size: no derivative.")
    win = window(node, [k for k in kernel if k is not None])
    group, contents = int_attr(node, "group", 1), array(weight)
    if contents is not None and win.pads is not None:
        if all(s == 1 for s in win.strides) and _inside(win):
            return (_flipped(t, g, contents, win, group),)
        if all(k == 1 for k in win.kernel) and win.pads == ((0, 0),) * rank and _sized(win):
            dense = t.Conv(g, _transposed(contents, group), group=group)
            return (_stuffed(t, dense, win),)
    return (_deconvolved(t, node, g, win, group),)


def _inside(win: Window) -> bool:
    assert win.pads is not None
    return all(max(p) < e for p, e in zip(win.pads, win.extent, strict=True))


def _sized(win: Window) -> bool:
    return all(size is not None for size in win.sizes)


def _transposed(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """(M, C/group, ...) -> (C, M/group, ...), so that outputs become inputs."""
    out, inner, *spatial = weight.shape
    apart = weight.reshape(group, out // group, inner, *spatial)
    return np.ascontiguousarray(apart.swapaxes(1, 2).reshape(group * inner, out // group, *spatial))


def _flipped(t: Tape, g: ir.Value, weight: NDArray[Any], win: Window, group: int) -> ir.Value:
    """Stride 1: a convolution with flipped kernel and the complementary padding."""
    assert win.pads is not None
    axes = tuple(range(2, weight.ndim))
    turned = np.ascontiguousarray(np.flip(_transposed(weight, group), axes))
    before = [e - 1 - p[0] for e, p in zip(win.extent, win.pads, strict=True)]
    after = [e - 1 - p[1] for e, p in zip(win.extent, win.pads, strict=True)]
    return t.Conv(
        g,
        turned,
        kernel_shape=list(win.kernel),
        pads=[*before, *after],
        dilations=list(win.dilations),
        group=group,
    )


def _stuffed(t: Tape, dense: ir.Value, win: Window) -> ir.Value:
    """Put zeros between and behind the elements: (.., o, ..) -> (.., size, ..).

    As products with 0-1 matrices: the runtime pads single elements far slower than it multiplies.
    """
    rank = len(win.strides)
    for axis, (size, stride) in enumerate(zip(win.sizes, win.strides, strict=True)):
        if stride > 1 and size is not None:
            matrix = np.eye(size, dtype=t.dtype.numpy())[:, ::stride]  # (size, o)
            dense = t.along(dense, t.constant(np.ascontiguousarray(matrix)), axis + 2, rank + 2)
    return dense


def _deconvolved(t: Tape, node: ir.Node, g: ir.Value, win: Window, group: int) -> ir.Value:
    """Any case: a transposed convolution, cut to the input's size at run time if need be."""
    x, weight, rank = operand(node), operand(node, 1), len(win.strides)
    common = {
        "kernel_shape": list(win.kernel),
        "strides": list(win.strides),
        "dilations": list(win.dilations),
        "group": group,
    }
    outs = [length(output(node), axis + 2) for axis in range(rank)]
    if win.pads is not None and _sized(win) and all(o is not None for o in outs):
        missing = [
            size - ((o - 1) * s + e - sum(p))
            for size, o, s, e, p in zip(
                win.sizes, outs, win.strides, win.extent, win.pads, strict=True
            )
            if size is not None and o is not None
        ]
        if all(
            0 <= m < max(s, d) for m, s, d in zip(missing, win.strides, win.dilations, strict=True)
        ):
            pads = [p[0] for p in win.pads] + [p[1] for p in win.pads]
            return t.ConvTranspose(g, weight, pads=pads, output_padding=missing, **common)
    # one stride of zeros behind the longest, then the part that the input covers
    whole = t.Pad(
        t.ConvTranspose(g, weight, **common),
        [0] * (rank + 4) + [max(s, 1) for s in win.strides],
    )
    sizes = t.Shape(x, start=2, end=rank + 2)
    if win.pads is not None:
        starts = t.constant(np.asarray([p[0] for p in win.pads], np.int64))
    else:
        starts = _same_starts(t, node, win, sizes)
    axes = list(range(2, rank + 2))
    return t.Slice(whole, starts, t.Add(starts, sizes), axes)


def _same_starts(t: Tape, node: ir.Node, win: Window, sizes: ir.Value) -> ir.Value:
    """Zeros before each axis that `auto_pad` SAME adds, from sizes known at run time only."""
    strides, extents = list(win.strides), list(win.extent)
    steps = t.Shape(output(node), start=2, end=len(strides) + 2)
    covered = t.Add(t.Mul(t.Sub(steps, [1] * len(strides)), strides), extents)
    total = t.Max(t.Sub(covered, sizes), [0] * len(strides))
    if str_attr(node, "auto_pad", "") == "SAME_LOWER":
        total = t.Add(total, [1] * len(strides))
    return t.Div(total, [2] * len(strides))


@rule("ConvTranspose")
def conv_transpose(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """A plain convolution with the same weights, (C, M/group, ...) read as (out, in/group, ...)."""
    x, y, weight = operand(node), output(node), operand(node, 1)
    if any(value is not None and value in t.wanted for value in node.inputs[1:]):
        raise UnsupportedError(f"{label(node)} computes its weights from the input: no derivative.")
    rank = t.rank(x) - 2
    kernel = [length(weight, axis + 2) or 1 for axis in range(rank)]
    strides = ints_attr(node, "strides", [1] * rank)
    dilations = ints_attr(node, "dilations", [1] * rank)
    pads = ints_attr(node, "pads", [0] * 2 * rank)
    auto = str_attr(node, "auto_pad", "NOTSET")
    if auto.startswith("SAME") or "output_shape" in node.attributes:
        begin, end = [], []
        extra = ints_attr(node, "output_padding", [0] * rank)
        for axis in range(rank):
            have, want = length(x, axis + 2), length(y, axis + 2)
            if have is None or want is None:
                raise UnsupportedError(
                    f"{label(node)} pads by sizes known at run time only: no derivative. Export "
                    "the model for a fixed image size."
                )
            extent = (kernel[axis] - 1) * dilations[axis] + 1
            total = strides[axis] * (have - 1) + extra[axis] + extent - want
            small, large = total // 2, total - total // 2
            begin.append(small if auto == "SAME_UPPER" else large)
            end.append(large if auto == "SAME_UPPER" else small)
        pads = [*begin, *end]
    if min(pads) < 0:  # the output was made longer by zeros, which nothing comes back from
        axes = list(range(2, rank + 2))
        starts = [max(-pad, 0) for pad in pads[:rank]]
        ends = [min(pad, 0) or np.iinfo(np.int64).max for pad in pads[rank:]]
        g, pads = t.Slice(g, starts, ends, axes), [max(pad, 0) for pad in pads]
    along = t.Conv(
        g,
        weight,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=int_attr(node, "group", 1),
    )
    return (along,)

"""Operators that read a picture at computed places."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir

from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.table import Cotangents, int_attr, rule, str_attr
from pellucid.graph.tape import Tape

_CUBIC = -0.75  # the parameter a of the cubic kernel, which the operator fixes


@rule("GridSample")
def grid_sample(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, grid = operand(node), operand(node, 1)
    columns = [_Column(t, node, axis) for axis in range(t.rank(x) - 2)]
    along_x = _to_the_pixels(t, node, g, columns) if x in t.wanted else None
    mode = str_attr(node, "mode", "linear")
    if grid not in t.wanted or mode == "nearest":
        return (along_x,)
    slopes = [_along_grid(t, node, g, columns, axis) for axis in range(len(columns))]
    return along_x, t.Concat(*slopes, axis=-1)


class _Column:
    """One coordinate of all places, and the pixels around them along its axis.

    Attributes
    ----------
    given : the coordinate as the operator takes it, -1 to 1 over the picture, (N, ..., 1).
    scale : pixels per unit of it.
    offsets : of the pixels that are weighed, from the one at or before the place.
    """

    def __init__(self, t: Tape, node: ir.Node, axis: int) -> None:
        x = operand(node)
        self.tape, self.aligned = t, bool(int_attr(node, "align_corners", 0))
        coordinates = t.rank(x) - 2
        parts = t.write_many("Split", coordinates, operand(node, 1), [1] * coordinates, axis=-1)
        self.given = parts[axis]
        size = t.Cast(t.size(x, t.rank(x) - 1 - axis), to=int(t.dtype))  # x counts the last axis
        self.scale = t.Mul(t.Sub(size, 1.0) if self.aligned else size, 0.5)
        shifted = t.Mul(t.Add(self.given, 1.0), self.scale)
        self.pixel = shifted if self.aligned else t.Sub(shifted, 0.5)
        self.mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
            found := str_attr(node, "mode", "linear"), found
        )
        self.offsets = {"nearest": (0,), "linear": (0, 1)}.get(self.mode, (-1, 0, 1, 2))

    def place(self, offset: int) -> ir.Value:
        """The coordinate of a pixel, counted from the one at or before the place."""
        t = self.tape
        if self.mode == "nearest":
            return self.given
        pixel = t.Add(t.Floor(self.pixel), float(offset) if self.aligned else offset + 0.5)
        # a picture of one pixel with aligned corners has no scale
        return t.Sub(t.Div(pixel, t.Max(self.scale, 0.5)), 1.0)

    def weight(self, offset: int, slope: bool = False) -> ir.Value | float:
        """What a pixel counts at the place, or how that changes with the place."""
        t = self.tape
        if self.mode == "nearest":
            return 1.0
        if self.mode == "linear" and slope:
            return 1.0 if offset else -1.0
        part = t.Sub(self.pixel, t.Floor(self.pixel))
        if self.mode == "linear":
            return part if offset else t.Sub(1.0, part)
        a = _CUBIC
        far = offset in (-1, 2)
        curve = [-4 * a, 8 * a, -5 * a, a] if far else [1.0, 0.0, -(a + 3), a + 2]
        sign = 1.0 if offset < 1 else -1.0  # of the change of the distance with the place
        distance = t.Mul(t.Sub(part, float(offset)), sign)
        if slope:
            curve = [k * sign * c for k, c in enumerate(curve)][1:]
        return _polynomial(t, distance, curve)


def _polynomial(t: Tape, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    """c0 + c1 x + c2 x^2 + ..."""
    total = t.Mul(x, coefficients[-1])
    for c in reversed(coefficients[1:-1]):
        total = t.Mul(t.Add(total, c), x)
    return t.Add(total, coefficients[0])


def _to_the_pixels(t: Tape, node: ir.Node, g: ir.Value, columns: Sequence[_Column]) -> ir.Value:
    """Give each pixel around a place its share.

    Which pixel that is, whatever the padding, tells the operator itself: it samples a picture of
    the pixels' numbers, counted from one, since zero is what it reads outside.
    """
    x = operand(node)
    sizes = t.Shape(x, start=2, end=t.rank(x))
    count = t.ReduceProd(sizes, None, keepdims=0)
    numbers = t.Cast(t.Range(1, t.Add(count, 1), 1), to=int(ir.DataType.FLOAT))
    shape = t.Concat(t.size(x, 0), [1], sizes, axis=0)
    picture = t.Expand(t.Reshape(numbers, t.Concat([1, 1], sizes, axis=0)), shape)
    options: dict[str, Any] = {**node.attributes, "mode": "nearest"}
    flat = t.Reshape(g, [0, 0, -1])  # (N, C, places)
    places, shares = [], []
    for offsets in product(*(column.offsets for column in columns)):
        around = zip(columns, offsets, strict=True)
        grid = t.Concat(*(column.place(offset) for column, offset in around), axis=-1)
        number = t.Reshape(t.GridSample(picture, grid, **options), [0, 1, -1])  # (N, 1, places)
        share = t.Where(t.Greater(number, np.float32(0.5)), 1.0, 0.0)
        for column, offset in zip(columns, offsets, strict=True):
            weight = column.weight(offset)
            if isinstance(weight, ir.Value):
                share = t.Mul(share, t.Reshape(weight, [0, 1, -1]))
        places.append(t.Max(t.Sub(number, np.float32(1)), np.float32(0)))
        shares.append(t.Mul(flat, share))
    index = t.Cast(t.Round(t.Concat(*places, axis=2)), to=int(ir.DataType.INT64))
    updates = t.Concat(*shares, axis=2)
    empty = t.zeros_of(t.Concat(t.Shape(x, start=0, end=2), t.Reshape(count, [1]), axis=0))
    spread = t.Expand(index, t.Shape(updates))
    pixels = t.ScatterElements(empty, spread, updates, axis=2, reduction="add")
    return t.reshape_like(pixels, x)


def _along_grid(
    t: Tape, node: ir.Node, g: ir.Value, columns: Sequence[_Column], axis: int
) -> ir.Value:
    """Cotangent of one coordinate: along its axis, samples at the pixels around the place."""
    column, slope = columns[axis], None
    options: dict[str, Any] = dict(node.attributes)
    for offset in column.offsets:
        given = [one.place(offset) if i == axis else one.given for i, one in enumerate(columns)]
        sample = t.GridSample(operand(node), t.Concat(*given, axis=-1), **options)
        weight = column.weight(offset, slope=True)
        if isinstance(weight, ir.Value):  # (N, ..., 1) -> (N, 1, ...)
            weight = t.Squeeze(t.Unsqueeze(weight, [1]), [-1])
        term = t.Mul(sample, weight)
        slope = term if slope is None else t.Add(slope, term)
    along = t.ReduceSum(t.Mul(g, slope), [1], keepdims=0)  # (N, C, ...) -> (N, ...)
    return t.Mul(t.Unsqueeze(along, [-1]), column.scale)

"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from pellucid.graph.rules.convolution import window
from pellucid.graph.rules.indexing import scatter_flat
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import Cotangents, int_attr, ints_attr, rule
from pellucid.graph.tape import Tape, dims


@rule("MaxPool")
def max_pool(t: Tape, node: ir.Node, g: ir.Value, _: ir.Value | None = None) -> Cotangents:
    """To the first maximum of each window, as torch has it; windows that overlap add up."""
    if len(node.outputs) == 1:
        node.resize_outputs(2)
    indices = node.outputs[1]
    indices.name = indices.name or f"{output(node).name}/indices"
    indices.dtype, indices.shape = ir.DataType.INT64, output(node).shape
    return (scatter_flat(t, indices, g, operand(node)),)


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
    # the mean is separable: each axis has its matrix, which the operator itself tells
    total = t.rank(x)
    for index in range(rank):
        options: dict[str, Any] = {"kernel_shape": [1, kernel[index]]}
        options["strides"] = [1, win.strides[index]]
        if win.dilations[index] != 1:
            options["dilations"] = [1, win.dilations[index]]
        pads = ints_attr(node, "pads", [0] * (2 * rank))
        options["pads"] = [0, pads[index], 0, pads[rank + index]]
        for name in ("auto_pad", "ceil_mode", "count_include_pad"):
            if name in node.attributes:
                options[name] = node.attributes[name]
        if "auto_pad" in options and options["auto_pad"].as_string() != "NOTSET":
            del options["pads"]
        eye = t.Unsqueeze(t.eye(x, index + 2), [0, 1])  # (1, 1, i, i)
        matrix = t.Squeeze(t.AveragePool(eye, **options), [0, 1])  # (i, o)
        g = t.along(g, matrix, index + 2, total)
    return (g,)


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

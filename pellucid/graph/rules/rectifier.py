"""Rectifiers: their derivatives need only their outputs where that is possible.

The mask of a ReLU is read off its output, so its input need not be kept, and a convolution that
the runtime fuses with it stays fused.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pellucid.graph.layout import channels, in_blocks, step, step_below, to_blocks
from pellucid.graph.rules.table import Cotangents, float_attr, rule, str_attr
from pellucid.graph.tape import Tape, array


def output(node: ir.Node) -> ir.Value:
    """Return the first output."""
    return node.outputs[0]


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """Return an input that must be there."""
    value = node.inputs[index]
    assert value is not None
    return value


@rule("Relu")
def relu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (where_positive(t, output(node), g),)


def where_positive(t: Tape, y: ir.Value, g: ir.Value) -> ir.Value:
    """`g` where y > 0, for a y that is never negative."""
    count = channels(y)
    if count is None or t.dtype != ir.DataType.FLOAT or not in_blocks(t, y):
        return t.mask(t.Greater(y, 0.0), g)
    return t.Mul(to_blocks(t, g, count), step(t, y))


@rule("LeakyRelu")
def leaky_relu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    slope = float_attr(node, "alpha", 0.01)
    sign = output(node) if slope > 0 else operand(node)
    return (t.Where(t.Greater(sign, 0.0), g, t.Mul(g, slope)),)


@rule("PRelu")
def prelu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, slope = operand(node), operand(node, 1)
    positive = t.Greater(x, 0.0)
    along_x = t.Where(positive, g, t.Mul(g, slope))
    if slope not in t.wanted:
        return (along_x,)
    return along_x, t.unbroadcast(t.Where(positive, 0.0, t.Mul(g, x)), output(node), slope)


@rule("Elu")
def elu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    alpha, y = float_attr(node, "alpha", 1.0), output(node)
    if alpha < 0:
        x = operand(node)
        return (t.Where(t.Greater(x, 0.0), g, t.Mul(g, t.Mul(t.Exp(x), alpha))),)
    return (t.Where(t.Greater(y, 0.0), g, t.Mul(g, t.Add(y, alpha))),)


@rule("Selu")
def selu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    alpha = float_attr(node, "alpha", 1.67326319217681884765625)
    gamma = float_attr(node, "gamma", 1.05070102214813232421875)
    y = output(node)
    slope = t.Where(t.Greater(y, 0.0), gamma, t.Add(y, alpha * gamma))
    return (t.Mul(g, slope),)


@rule("Celu")
def celu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    alpha, y = float_attr(node, "alpha", 1.0), output(node)
    return (t.Where(t.Greater(y, 0.0), g, t.Mul(g, t.Add(t.Div(y, alpha), 1.0))),)


@rule("ThresholdedRelu")
def thresholded_relu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.mask(t.Greater(operand(node), float_attr(node, "alpha", 1.0)), g),)


@rule("Clip")
def clip(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Bounds count as inside, as for torch.clamp; Clip(0, 6) is ReLU6, where they do not."""
    low, high = (*node.inputs[1:], None, None)[:2]
    bounds = tuple(None if a is None else float(a) for a in (array(low), array(high)))
    if bounds == (0.0, 6.0):
        y = output(node)
        if (count := channels(y)) and t.dtype == ir.DataType.FLOAT and in_blocks(t, y):
            inside = t.Mul(step(t, y), step_below(t, y, 6.0))
            return (t.Mul(to_blocks(t, g, count), inside),)
        return (t.mask(t.And(t.Greater(y, 0.0), t.Less(y, 6.0)), g),)
    x = operand(node)
    if low is not None:
        g = t.mask(t.GreaterOrEqual(x, low), g)
    if high is not None:
        g = t.mask(t.LessOrEqual(x, high), g)
    return (g,)


@rule("Gelu")
def gelu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    if str_attr(node, "approximate", "none") == "tanh":
        # y = x/2 (1 + tanh u), u = c (x + a x^3)
        c, a = math.sqrt(2 / math.pi), 0.044715
        square = t.Mul(x, x)
        tanh = t.Tanh(t.Mul(t.Mul(x, c), t.Add(t.Mul(square, a), 1.0)))
        inner = t.Mul(t.Add(t.Mul(square, 3 * a), 1.0), c)  # du/dx
        bend = t.Mul(t.Mul(x, inner), t.Sub(1.0, t.Mul(tanh, tanh)))
        return (t.Mul(g, t.Mul(t.Add(t.Add(tanh, 1.0), bend), 0.5)),)
    # y = x Phi(x)
    cdf = t.Mul(t.Add(t.Erf(t.Mul(x, math.sqrt(0.5))), 1.0), 0.5)
    density = t.Mul(t.Exp(t.Mul(t.Mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return (t.Mul(g, t.Add(cdf, t.Mul(x, density))),)


@rule("Mish")
def mish(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x tanh(s), s = softplus(x)
    x = operand(node)
    tanh = t.Tanh(t.Softplus(x))
    bend = t.Mul(t.Mul(x, t.Sigmoid(x)), t.Sub(1.0, t.Mul(tanh, tanh)))
    return (t.Mul(g, t.Add(tanh, bend)),)


@rule("Swish")
def swish(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x s, s = sigmoid(alpha x)
    x, alpha = operand(node), float_attr(node, "alpha", 1.0)
    s = t.Sigmoid(t.Mul(x, alpha) if alpha != 1 else x)
    bend = t.Mul(t.Mul(t.Mul(x, alpha), s), t.Sub(1.0, s))
    return (t.Mul(g, t.Add(s, bend)),)


@rule("HardSwish")
def hard_swish(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    slope = t.Add(t.Mul(x, 1 / 3), 0.5)
    inside = t.Where(t.Less(x, 3.0), t.Mul(g, slope), g)
    return (t.mask(t.Greater(x, -3.0), inside),)


def zero(value: ir.Value | None) -> bool:
    """Whether a value is a constant of zeros."""
    contents = array(value)
    return contents is not None and not np.any(contents)

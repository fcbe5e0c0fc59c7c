"""Functions of one element: g times the derivative, from the output where it tells enough."""

from __future__ import annotations

import math

import onnx_ir as ir

from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, float_attr, rule
from pellucid.graph.tape import Tape, array, is_float


@rule("Sigmoid")
def sigmoid(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    return (t.Mul(g, t.Mul(y, t.Sub(1.0, y))),)


@rule("HardSigmoid")
def hard_sigmoid(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    inside = t.And(t.Greater(y, 0.0), t.Less(y, 1.0))
    return (t.mask(inside, t.Mul(g, float_attr(node, "alpha", 0.2))),)


@rule("Tanh")
def tanh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    return (t.Mul(g, t.Sub(1.0, t.Mul(y, y))),)


@rule("Softplus")
def softplus(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, t.Sigmoid(operand(node))),)


@rule("Softsign")
def softsign(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x / (1 + |x|), so 1 / (1 + |x|) = 1 - |y|
    slope = t.Sub(1.0, t.Abs(output(node)))
    return (t.Mul(g, t.Mul(slope, slope)),)


@rule("Shrink")
def shrink(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    outside = t.Greater(t.Abs(operand(node)), float_attr(node, "lambd", 0.5))
    return (t.mask(outside, g),)


@rule("Erf")
def erf(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    density = t.Mul(t.Exp(t.Neg(t.Mul(x, x))), 2 / math.sqrt(math.pi))
    return (t.Mul(g, density),)


@rule("Exp")
def exp(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, output(node)),)


@rule("Log")
def log(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Div(g, operand(node)),)


@rule("Sqrt")
def sqrt(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Div(t.Mul(g, 0.5), output(node)),)


@rule("Reciprocal")
def reciprocal(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    return (t.Neg(t.Mul(g, t.Mul(y, y))),)


@rule("Abs")
def absolute(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, t.Sign(operand(node))),)


@rule("Neg")
def neg(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Neg(g),)


@rule("Sin")
def sin(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, t.Cos(operand(node))),)


@rule("Cos")
def cos(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Neg(t.Mul(g, t.Sin(operand(node)))),)


@rule("Tan")
def tan(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    return (t.Mul(g, t.Add(t.Mul(y, y), 1.0)),)


@rule("Sinh")
def sinh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, t.Cosh(operand(node))),)


@rule("Cosh")
def cosh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(g, t.Sinh(operand(node))),)


@rule("Asin")
def asin(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Div(g, t.Sqrt(t.Sub(1.0, t.Mul(x, x)))),)


@rule("Acos")
def acos(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Neg(t.Div(g, t.Sqrt(t.Sub(1.0, t.Mul(x, x))))),)


@rule("Atan")
def atan(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Div(g, t.Add(t.Mul(x, x), 1.0)),)


@rule("Asinh")
def asinh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Div(g, t.Sqrt(t.Add(t.Mul(x, x), 1.0))),)


@rule("Acosh")
def acosh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Div(g, t.Sqrt(t.Sub(t.Mul(x, x), 1.0))),)


@rule("Atanh")
def atanh(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x = operand(node)
    return (t.Div(g, t.Sub(1.0, t.Mul(x, x))),)


@rule("Floor", "Ceil", "Round", "Sign", "Hardmax")
def steps(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return ()


@rule("Identity", "Dropout", "CastLike")
def same(t: Tape, node: ir.Node, g: ir.Value, *_: ir.Value | None) -> Cotangents:
    return (g,)


@rule("Cast")
def cast(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """The cotangent of an integer is that of the real number it becomes."""
    x = operand(node)
    if x.dtype is None or x.dtype == output(node).dtype or not is_float(x):
        return (g,)
    return (t.Cast(g, to=int(x.dtype)),)


@rule("DequantizeLinear")
def dequantize(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """The cotangent of an integer tensor is that of the real number it stands for."""
    return (g,)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(t: Tape, node: ir.Node, g: ir.Value | None, *_: ir.Value | None) -> Cotangents:
    """Straight through: the scale cancels where the numbers become real again."""
    return (g,)


@rule("QuantizeLinear")
def quantize(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Straight through where the value does not saturate; a quantised ReLU often is that alone."""
    scale, zero_point = array(node.inputs[1]), array((*node.inputs, None)[2])
    y, x = output(node), operand(node)
    ranges = {
        ir.DataType.INT8: (-128, 127),
        ir.DataType.UINT8: (0, 255),
        ir.DataType.INT16: (-32768, 32767),
        ir.DataType.UINT16: (0, 65535),
    }
    if scale is None or y.dtype not in ranges:
        return (g,)
    if scale.ndim:  # one scale per channel: (C,) -> (C, 1, ..., 1)
        axis, rank = node.attributes.get("axis"), t.rank(x)
        behind = rank - 1 - ((1 if axis is None else axis.as_int()) % rank)
        scale = scale.reshape(-1, *[1] * behind)
        zero_point = None if zero_point is None else zero_point.reshape(scale.shape)
    centre = 0.0 if zero_point is None else zero_point.astype(scale.dtype)
    low, high = ((bound - centre) * scale for bound in ranges[y.dtype])
    above = t.GreaterOrEqual(x, (low - scale / 2).astype(scale.dtype))
    below = t.LessOrEqual(x, (high + scale / 2).astype(scale.dtype))
    return (t.mask(t.And(above, below), g),)

"""Operators on quantised numbers, as operators on the real numbers that those stand for.

Each takes its operands out of their scales, computes in floating point, and puts the result into
its scale again, so that the straight-through rules of DequantizeLinear and QuantizeLinear apply.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from pellucid.graph.expansions.table import given, unfused
from pellucid.graph.layout import channels_first, channels_last
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.table import int_attr, ints_attr
from pellucid.graph.tape import Tape

_STANDARD = ""


def real(t: Tape, node: ir.Node, index: int, axis: int | None = None) -> ir.Value:
    """The real numbers of an operand whose scale and zero point are the next two."""
    scale, zero_point = operand(node, index + 1), given(node, index + 2)
    return t.DequantizeLinear(operand(node, index), scale, zero_point, axis=axis)


def quantized(t: Tape, node: ir.Node, y: ir.Value, index: int) -> list[ir.Value]:
    """The result in the scale and with the zero point that are given from an operand on."""
    return [t.QuantizeLinear(y, operand(node, index), given(node, index + 1))]


def _others(node: ir.Node, *own: str) -> dict[str, Any]:
    return {name: a for name, a in node.attributes.items() if name not in own}


@unfused("QLinearConv")
@unfused("QLinearConv", domain=_STANDARD)
def conv(t: Tape, node: ir.Node) -> list[ir.Value]:
    x, weights, bias = real(t, node, 0), real(t, node, 3, axis=0), given(node, 8)
    if bias is not None:  # in the product of the two scales
        bias = t.DequantizeLinear(bias, t.Mul(operand(node, 1), operand(node, 4)), axis=0)
    last = int_attr(node, "channels_last", 0)
    x = channels_first(t, x) if last else x
    y = t.Conv(x, weights, bias, **_others(node, "channels_last"))
    return quantized(t, node, channels_last(t, y) if last else y, 6)


@unfused("QLinearMatMul", domain=_STANDARD)
def matmul(t: Tape, node: ir.Node) -> list[ir.Value]:
    return quantized(t, node, t.MatMul(real(t, node, 0), real(t, node, 3)), 6)


@unfused("QGemm")
def gemm(t: Tape, node: ir.Node) -> list[ir.Value]:
    turned = int_attr(node, "transB", 0)
    a, b, c = real(t, node, 0), real(t, node, 3, axis=0 if turned else 1), given(node, 6)
    if c is not None:
        c = t.DequantizeLinear(c, t.Mul(operand(node, 1), operand(node, 4)), axis=-1)
    y = t.Gemm(a, b, c, **_others(node))
    return [y] if given(node, 7) is None else quantized(t, node, y, 7)


@unfused("QLinearAdd", "QLinearMul")
def arithmetic(t: Tape, node: ir.Node) -> list[ir.Value]:
    operator = node.op_type.removeprefix("QLinear")
    return quantized(t, node, t.write(operator, real(t, node, 0), real(t, node, 3)), 6)


@unfused("QLinearConcat")
def concat(t: Tape, node: ir.Node) -> list[ir.Value]:
    parts = [real(t, node, index) for index in range(2, len(node.inputs), 3)]
    return quantized(t, node, t.Concat(*parts, axis=int_attr(node, "axis", 0)), 0)


@unfused("QLinearGlobalAveragePool", "QLinearAveragePool")
def pool(t: Tape, node: ir.Node) -> list[ir.Value]:
    operator, last = node.op_type.removeprefix("QLinear"), int_attr(node, "channels_last", 0)
    x = real(t, node, 0)
    y = t.write(operator, channels_first(t, x) if last else x, **_others(node, "channels_last"))
    return quantized(t, node, channels_last(t, y) if last else y, 3)


@unfused("QLinearLeakyRelu", "QLinearSigmoid")
def activation(t: Tape, node: ir.Node) -> list[ir.Value]:
    operator = node.op_type.removeprefix("QLinear")
    return quantized(t, node, t.write(operator, real(t, node, 0), **_others(node)), 3)


@unfused("QLinearSoftmax")
def softmax(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    x, axis = real(t, node, 0), int_attr(node, "axis", -1)
    if int_attr(node, "opset", 13) < 13 and axis not in (-1, t.rank(operand(node)) - 1):
        return None  # over all axes from that one on
    return quantized(t, node, t.Softmax(x, axis=axis), 3)


@unfused("QLinearReduceMean")
def mean(t: Tape, node: ir.Node) -> list[ir.Value]:
    axes = ints_attr(node, "axes", []) or None
    y = t.ReduceMean(real(t, node, 0), axes, keepdims=int_attr(node, "keepdims", 1))
    return quantized(t, node, y, 3)


@unfused("QLinearWhere")
def where(t: Tape, node: ir.Node) -> list[ir.Value]:
    return quantized(t, node, t.Where(operand(node), real(t, node, 1), real(t, node, 4)), 7)


@unfused("DequantizeLinear", "QuantizeLinear")
def linear(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """As the standard has them, unless in 16 bits, which it learned late."""
    zero_point = given(node, 2)
    small = (ir.DataType.INT8, ir.DataType.UINT8)
    if zero_point is not None and zero_point.dtype not in small:
        return None
    return [t.write(node.op_type, *node.inputs, **_others(node))]


# ---- quantised at run time -----------------------------------------------------------------------


@unfused("MatMulInteger", "ConvInteger", domain=_STANDARD)
def integer_product(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """Product of the real numbers, in the scale of its first operand.

    Only where that operand's scale is at hand and the result becomes real at once.
    """
    source, readers = operand(node).producer(), node.outputs[0].consumers()
    if source is None or any(reader.op_type != "Cast" for reader in readers):
        return None
    scale = {
        "QuantizeLinear": (*source.inputs, None)[1],
        "DynamicQuantizeLinear": (*source.outputs, None)[1],
    }.get(source.op_type)
    if scale is None:
        return None
    x = t.DequantizeLinear(operand(node), scale, given(node, 2))
    weights = _whole_numbers(t, operand(node, 1), given(node, 3))
    product = node.op_type.removesuffix("Integer")
    y = t.Div(t.write(product, x, weights, **_others(node)), scale)
    y.type = ir.TensorType(t.dtype)
    return [y]


def _whole_numbers(t: Tape, value: ir.Value, zero_point: ir.Value | None) -> ir.Value:
    """Integers less their zero point, as real numbers."""
    numbers = t.Cast(value, to=int(t.dtype))
    if zero_point is None:
        return numbers
    return t.Sub(numbers, t.Cast(zero_point, to=int(t.dtype)))


@unfused("MatMulIntegerToFloat")
def integer_product_to_real(t: Tape, node: ir.Node) -> list[ir.Value]:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (given(node, index) for index in range(7))
    y = t.MatMul(t.DequantizeLinear(a, a_scale, a_zero), t.DequantizeLinear(b, b_scale, b_zero))
    return [y if bias is None else t.Add(y, bias)]


@unfused("DynamicQuantizeMatMul")
def dynamic_product(t: Tape, node: ir.Node) -> list[ir.Value]:
    numbers, scale, zero_point = t.write_many("DynamicQuantizeLinear", 3, operand(node))
    b = t.DequantizeLinear(operand(node, 1), operand(node, 2), given(node, 3))
    y, bias = t.MatMul(t.DequantizeLinear(numbers, scale, zero_point), b), given(node, 4)
    return [y if bias is None else t.Add(y, bias)]

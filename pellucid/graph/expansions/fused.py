"""Operators into which onnxruntime's optimisers and exporters fuse convolutions and activations.

A file saved by an optimiser holds them in the domain `com.microsoft`. Each is the composition of
standard operators that its documentation in onnxruntime (docs/ContribOperators.md) gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.expansions.table import given, unfused
from pellucid.graph.layout import channels_first, channels_last
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.table import float_attr, int_attr, str_attr
from pellucid.graph.tape import Tape, array, label

_MATRIX = 2  # axes


def activated(t: Tape, node: ir.Node, x: ir.Value, parameters: list[float]) -> ir.Value:
    """Apply the activation that a fused node names, with its parameters in their order."""
    kind = str_attr(node, "activation", "")
    names = {
        "": (), "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (),
        "LeakyRelu": ("alpha",), "ThresholdedRelu": ("alpha",), "Elu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"), "HardSwish": (), "Clip": ("low", "high"),
    }.get(kind)  # fmt: skip
    if names is None:
        raise UnsupportedError(f"{label(node)} ends in the unknown activation {kind!r}.")
    options = dict(zip(names, parameters, strict=False))
    if kind == "Clip":
        return t.Clip(x, options.get("low"), options.get("high"))
    return t.write(kind, x, **options) if kind else x


def fused_conv(t: Tape, node: ir.Node, x: ir.Value) -> ir.Value:
    """Convolution of `x` by the node's weights, plus its fourth input, then its activation."""
    own = ("activation", "activation_params")
    options: dict[str, Any] = {n: a for n, a in node.attributes.items() if n not in own}
    y = t.Conv(x, operand(node, 1), given(node, 2), **options)
    parameters = node.attributes.get("activation_params")
    added = given(node, 3)
    if added is not None:
        y = t.Add(y, added if x is operand(node) else channels_first(t, added))
    return activated(t, node, y, [] if parameters is None else list(parameters.as_floats()))


@unfused("FusedConv")
def conv(t: Tape, node: ir.Node) -> list[ir.Value]:
    return [fused_conv(t, node, operand(node))]


@unfused("NhwcConv", "NhwcFusedConv")
def nhwc_conv(t: Tape, node: ir.Node) -> list[ir.Value]:
    return [channels_last(t, fused_conv(t, node, channels_first(t, operand(node))))]


@unfused("FusedGemm")
def gemm(t: Tape, node: ir.Node) -> list[ir.Value]:
    options: dict[str, Any] = {
        n: a for n, a in node.attributes.items() if not n.startswith("activation")
    }
    y = t.Gemm(operand(node), operand(node, 1), given(node, 2), **options)
    named = [node.attributes.get(f"activation_{name}") for name in ("alpha", "beta")]
    return [activated(t, node, y, [one.as_float() for one in named if one is not None])]


@unfused("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation")
def matmul(t: Tape, node: ir.Node) -> list[ir.Value]:
    if int_attr(node, "transBatchA", 0) or int_attr(node, "transBatchB", 0):
        raise UnsupportedError(f"{label(node)} turns its batch axes, which nothing spells out.")
    a, b = (_turned(t, node, index) for index in (0, 1))
    product, alpha = t.MatMul(a, b), float_attr(node, "alpha", 1.0)
    y = product if alpha == 1 else t.Mul(product, alpha)
    named = [node.attributes.get(f"activation_{name}") for name in ("alpha", "beta")]
    return [activated(t, node, y, [one.as_float() for one in named if one is not None])]


def _turned(t: Tape, node: ir.Node, index: int) -> ir.Value:
    value = operand(node, index)
    if not int_attr(node, f"trans{'AB'[index]}", 0):
        return value
    contents = array(value)
    if contents is not None:
        return t.constant(contents.swapaxes(-1, -2))
    rank = t.rank(value)
    return value if rank < _MATRIX else t.swap_last(value, rank)


@unfused("Gelu")
def gelu(t: Tape, node: ir.Node) -> list[ir.Value]:
    return [exact_gelu(t, operand(node))]


@unfused("BiasGelu")
def bias_gelu(t: Tape, node: ir.Node) -> list[ir.Value]:
    return [exact_gelu(t, t.Add(operand(node), operand(node, 1)))]


def exact_gelu(t: Tape, x: ir.Value) -> ir.Value:
    """x Phi(x), in operators that every opset has."""
    cdf = t.Mul(t.Add(t.Erf(t.Mul(x, float(np.sqrt(0.5)))), 1.0), 0.5)
    return t.Mul(x, cdf)


@unfused("FastGelu", "GemmFastGelu")
def fast_gelu(t: Tape, node: ir.Node) -> list[ir.Value]:
    x, bias = operand(node), given(node, 1)
    if node.op_type == "GemmFastGelu":
        x, bias = t.MatMul(x, operand(node, 1)), given(node, 2)
    x = x if bias is None else t.Add(x, bias)
    # x/2 (1 + tanh(c (x + a x^3)))
    inner = t.Mul(t.Mul(x, float(np.sqrt(2 / np.pi))), t.Add(t.Mul(t.Mul(x, x), 0.044715), 1.0))
    return [t.Mul(x, t.Mul(t.Add(t.Tanh(inner), 1.0), 0.5))]


@unfused("QuickGelu")
def quick_gelu(t: Tape, node: ir.Node) -> list[ir.Value]:
    x, alpha = operand(node), float_attr(node, "alpha", 1.702)
    return [t.Mul(x, t.Sigmoid(x if alpha == 1 else t.Mul(x, alpha)))]


@unfused("BiasSplitGelu")
def bias_split_gelu(t: Tape, node: ir.Node) -> list[ir.Value]:
    halves = t.write_many(
        "Split", 2, t.Add(operand(node), operand(node, 1)), axis=-1, num_outputs=2
    )
    return [t.Mul(halves[0], exact_gelu(t, halves[1]))]


@unfused("BiasAdd")
def bias_add(t: Tape, node: ir.Node) -> list[ir.Value]:
    return [t.Add(t.Add(operand(node), operand(node, 1)), operand(node, 2))]


@unfused("BiasSoftmax")
def bias_softmax(t: Tape, node: ir.Node) -> list[ir.Value]:
    total, axis = t.Add(operand(node), operand(node, 1)), int_attr(node, "axis", 1)
    if axis not in (-1, t.rank(operand(node)) - 1):
        raise UnsupportedError(f"{label(node)} is over several axes, which nothing spells out.")
    return [t.Softmax(total, axis=-1)]


@unfused("GridSample", "Trilu", "LayerNormalization")
def standard(t: Tape, node: ir.Node) -> list[ir.Value]:
    """The runtime had the operator before it became a standard one."""
    options: dict[str, Any] = dict(node.attributes)
    return list(t.write_many(node.op_type, len(node.outputs), *node.inputs, **options))


@unfused("SimplifiedLayerNormalization")
def simplified_layer_norm(t: Tape, node: ir.Node) -> list[ir.Value]:
    axis, epsilon = int_attr(node, "axis", -1), float_attr(node, "epsilon", 1e-5)
    return [_rms_normalized(t, operand(node), operand(node, 1), axis, epsilon)]


def _rms_normalized(t: Tape, x: ir.Value, scale: ir.Value, axis: int, epsilon: float) -> ir.Value:
    axes = [axis] if axis == -1 else list(range(axis % t.rank(x), t.rank(x)))
    square = t.ReduceMean(t.Mul(x, x), axes, keepdims=1)
    return t.Mul(t.Div(x, t.Sqrt(t.Add(square, epsilon))), scale)


@unfused("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_layer_norm(t: Tape, node: ir.Node) -> list[ir.Value]:
    simplified = node.op_type.startswith("SkipSimplified")
    total, epsilon = t.Add(operand(node), operand(node, 1)), float_attr(node, "epsilon", 1e-12)
    bias = given(node, 3 if simplified else 4)
    total = total if bias is None else t.Add(total, bias)
    if any(out.name for out in node.outputs[1:3]):
        raise UnsupportedError(f"{label(node)} hands out its statistics, which nothing spells out.")
    if simplified:
        y = _rms_normalized(t, total, operand(node, 2), -1, epsilon)
    else:
        y = t.LayerNormalization(total, operand(node, 2), given(node, 3), epsilon=epsilon)
    return [y, y, y, total]


@unfused("GroupNorm", "SkipGroupNorm")
def group_norm(t: Tape, node: ir.Node) -> list[ir.Value]:
    x, total = operand(node), None
    if node.op_type == "SkipGroupNorm":
        skip, bias = operand(node, 3), given(node, 4)
        if t.rank(skip) != t.rank(x):  # (N, C) or (N, 1, 1, C)
            skip = t.Unsqueeze(skip, [1, 2])
        x = total = t.Add(x, skip) if bias is None else t.Add(t.Add(x, skip), bias)
    last = int_attr(node, "channels_last", 1)
    first = channels_first(t, x) if last else x
    groups = int_attr(node, "groups", 1)
    folded = t.Reshape(first, [0, groups, -1])  # (N, C, H, W) -> (N, groups, C/groups H W)
    ones, zeros = np.ones(groups, t.dtype.numpy()), np.zeros(groups, t.dtype.numpy())
    epsilon = float_attr(node, "epsilon", 1e-5)
    level = t.InstanceNormalization(folded, ones, zeros, epsilon=epsilon)
    scale, shift = (t.Reshape(operand(node, index), [1, -1, 1, 1]) for index in (1, 2))
    y = t.Add(t.Mul(t.Reshape(level, t.Shape(first)), scale), shift)
    y = t.Mul(y, t.Sigmoid(y)) if int_attr(node, "activation", 0) else y
    results = [channels_last(t, y) if last else y]
    return results if total is None else [*results, total]

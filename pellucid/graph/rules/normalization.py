"""Normalisation layers in inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import UnsupportedError
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, float_attr, int_attr, rule
from pellucid.graph.tape import Tape, array, dims, label


def affine(node: ir.Node) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return scale and shift of a batch normalisation, `(C,)`; None if they are no constants."""
    constants = [array(value) for value in node.inputs[1:5]]
    if any(one is None for one in constants):
        return None
    gamma, beta, mean, variance = (np.asarray(one, np.float64) for one in constants)
    scale = gamma / np.sqrt(variance + float_attr(node, "epsilon", 1e-5))
    return scale, beta - scale * mean


@rule("BatchNormalization")
def batch_norm(t: Tape, node: ir.Node, g: ir.Value | None, *_: ir.Value | None) -> Cotangents:
    if g is None or any(running is not None for running in _):
        raise UnsupportedError(f"The running statistics of {label(node)} have no derivative.")
    # y = scale (x - mean) r + bias, r = 1 / sqrt(var + eps), all but x of shape (C,)
    x, epsilon = operand(node), float_attr(node, "epsilon", 1e-5)
    behind = t.rank(x) - 2
    if int_attr(node, "training_mode", 0):  # exported as it trains, by the batch's own statistics
        over = [0, *range(2, t.rank(x))]
        x_hat, inverse = standardized(t, x, over, epsilon)
        gs = t.Mul(g, t.Reshape(operand(node, 1), [-1, *[1] * behind]))
        return (normalized(t, gs, x_hat, inverse, over),)
    scale, variance = array(node.inputs[1]), array(node.inputs[4])
    computed = any(operand(node, index) in t.wanted for index in range(1, 5))
    if scale is not None and variance is not None and not computed:
        slope = (scale / np.sqrt(variance.astype(np.float64) + epsilon)).astype(scale.dtype)
        return (t.Mul(g, slope.reshape(-1, *[1] * behind)),)
    r = t.Reciprocal(t.Sqrt(t.Add(operand(node, 4), epsilon)))
    steep = t.Mul(operand(node, 1), r)
    along_x = t.Mul(g, t.Reshape(steep, [-1, *[1] * behind]))
    if not computed:
        return (along_x,)
    # statistics of the batch itself, as tf_keras spells LayerNormalization
    by_channel = [-1, *[1] * behind]
    others = [0, *range(2, t.rank(x))]
    centred = t.Sub(x, t.Reshape(operand(node, 3), by_channel))
    total = t.ReduceSum(g, others, keepdims=0)
    moment = t.Mul(t.ReduceSum(t.Mul(g, centred), others, keepdims=0), r)  # sum of g x_hat
    along_variance = t.Mul(t.Mul(t.Mul(moment, steep), r), -0.5)
    return along_x, moment, total, t.Neg(t.Mul(total, steep)), along_variance


def normalized(
    t: Tape, gs: ir.Value, x_hat: ir.Value, inverse: ir.Value, axes: Sequence[int]
) -> ir.Value:
    """Cotangent of x for x_hat = (x - mean) inverse, where `gs` is the cotangent of x_hat.

    inverse (gs - mean(gs) - x_hat mean(gs x_hat)), means over `axes`.
    """
    axes = list(axes)
    along_scale = t.Mul(x_hat, t.ReduceMean(t.Mul(gs, x_hat), axes, keepdims=1))
    centred = t.Sub(gs, t.ReduceMean(gs, axes, keepdims=1))
    return t.Mul(inverse, t.Sub(centred, along_scale))


def standardized(
    t: Tape, x: ir.Value, axes: Sequence[int], epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """(x - mean) / sqrt(var + eps) over `axes`, and the second factor."""
    axes = list(axes)
    centred = t.Sub(x, t.ReduceMean(x, axes, keepdims=1))
    variance = t.ReduceMean(t.Mul(centred, centred), axes, keepdims=1)
    inverse = t.Reciprocal(t.Sqrt(t.Add(variance, epsilon)))
    return t.Mul(centred, inverse), inverse


@rule("LayerNormalization")
def layer_norm(
    t: Tape,
    node: ir.Node,
    g: ir.Value | None,
    g_mean: ir.Value | None = None,
    g_inverse: ir.Value | None = None,
) -> Cotangents:
    x, scale = operand(node), operand(node, 1)
    rank = t.rank(x)
    axes = range(int_attr(node, "axis", -1) % rank, rank)
    node.resize_outputs(3)  # the runtime hands out mean and 1 / deviation at no cost
    for index, what in ((1, "mean"), (2, "inverse_deviation")):
        value = node.outputs[index]
        value.name = value.name or f"{output(node).name}/{what}"
        value.type = x.type
    mean, inverse = node.outputs[1:]
    x_hat = t.Mul(t.Sub(x, mean), inverse)
    terms = [] if g is None else [normalized(t, t.Mul(g, scale), x_hat, inverse, axes)]
    if g_mean is not None:  # each element has 1/n of the mean
        terms.append(t.Mul(g_mean, _share(t, x, axes)))
    if g_inverse is not None:  # and -x_hat / (n deviation^2) of 1 / deviation
        steep = t.Mul(t.Mul(inverse, inverse), t.Mul(x_hat, _share(t, x, axes)))
        terms.append(t.Neg(t.Mul(g_inverse, steep)))
    return (terms[0] if len(terms) == 1 and g is not None else t.expand_like(t.add(terms), x),)


def _share(t: Tape, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """1 / n for n elements along `axes`."""
    sizes = t.Concat(*(t.size(x, axis) for axis in axes), axis=0)
    return t.Reciprocal(t.Cast(t.ReduceProd(sizes, keepdims=0), to=int(t.dtype)))


@rule("RMSNormalization")
def rms_norm(t: Tape, node: ir.Node, g: ir.Value, *_: ir.Value | None) -> Cotangents:
    # y = scale x r, r = 1 / sqrt(mean(x^2) + eps)
    x, rank = operand(node), t.rank(operand(node))
    axes = list(range(int_attr(node, "axis", -1) % rank, rank))
    square = t.Add(t.ReduceMean(t.Mul(x, x), axes, keepdims=1), float_attr(node, "epsilon", 1e-5))
    r = t.Reciprocal(t.Sqrt(square))
    gs, x_hat = t.Mul(g, operand(node, 1)), t.Mul(x, r)
    along = t.Mul(x_hat, t.ReduceMean(t.Mul(gs, x_hat), axes, keepdims=1))
    return (t.Mul(r, t.Sub(gs, along)),)


@rule("InstanceNormalization")
def instance_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, scale = operand(node), operand(node, 1)
    rank = t.rank(x)
    axes = range(2, rank)
    x_hat, inverse = standardized(t, x, axes, float_attr(node, "epsilon", 1e-5))
    by_channel = t.Reshape(scale, [-1, *[1] * (rank - 2)])
    return (normalized(t, t.Mul(g, by_channel), x_hat, inverse, axes),)


@rule("GroupNormalization")
def group_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, epsilon = operand(node), float_attr(node, "epsilon", 1e-5)
    # (N, C, ...) -> (N, groups, C/groups ...)
    folded = [0, int_attr(node, "num_groups", 1), -1]
    x_hat, inverse = standardized(t, t.Reshape(x, folded), [2], epsilon)
    along = normalized(t, t.Reshape(group_scaled(t, node, g), folded), x_hat, inverse, [2])
    return (t.reshape_like(along, x),)


def group_scaled(t: Tape, node: ir.Node, g: ir.Value) -> ir.Value:
    """Multiply a cotangent by a GroupNormalization's scale."""
    x, scale = operand(node), operand(node, 1)
    groups, lengths, channels = int_attr(node, "num_groups", 1), dims(scale), (dims(x) or (0, 0))[1]
    # since opset 21 one scale per channel, one per group before
    if lengths == (groups,) and channels != groups:
        return t.Mul(t.Reshape(g, [0, groups, -1]), t.Reshape(scale, [groups, 1]))
    return t.Mul(g, t.Reshape(scale, [-1, *[1] * (t.rank(x) - 2)]))


@rule("MeanVarianceNormalization")
def mean_variance_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    given = node.attributes.get("axes")
    axes = [0, 2, 3] if given is None else list(given.as_ints())
    x_hat, inverse = standardized(t, operand(node), axes, 1e-9)
    return (normalized(t, g, x_hat, inverse, axes),)


@rule("LpNormalization")
def lp_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x / |x|, so x gets (g - d|x|/dx sum(g y)) / |x|
    x, y, axis = operand(node), output(node), int_attr(node, "axis", -1)
    along = t.ReduceSum(t.Mul(g, y), [axis], keepdims=1)
    if int_attr(node, "p", 2) == 1:
        norm = t.ReduceL1(x, [axis], keepdims=1)
        return (t.Div(t.Sub(g, t.Mul(t.Sign(x), along)), norm),)
    norm = t.ReduceL2(x, [axis], keepdims=1)
    return (t.Div(t.Sub(g, t.Mul(y, along)), norm),)


@rule("LRN")
def local_response_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x s^-b, s = bias + alpha/n sum of x^2 over n neighbouring channels
    x, y, n = operand(node), output(node), int_attr(node, "size", 1)
    alpha, beta = float_attr(node, "alpha", 1e-4), float_attr(node, "beta", 0.75)
    before, after = (n - 1) // 2, n // 2

    def windows(value: ir.Value, first: int, last: int) -> ir.Value:
        # (N, C, ...) -> (N, 1, C, ...): a mean over channels, zeros outside
        flat = t.Reshape(value, t.Concat(t.size(x, 0), [1], t.size(x, 1), [-1], axis=0))
        pooled = t.AveragePool(
            flat, kernel_shape=[n, 1], pads=[first, 0, last, 0], count_include_pad=1
        )
        return t.reshape_like(pooled, x)

    s = t.Add(t.Mul(windows(t.Mul(x, x), before, after), alpha), float_attr(node, "bias", 1.0))
    neighbours = windows(t.Div(t.Mul(g, y), s), after, before)
    direct = t.Mul(g, t.Pow(s, -beta))
    return (t.Sub(direct, t.Mul(t.Mul(x, 2 * alpha * beta), neighbours)),)

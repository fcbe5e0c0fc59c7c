"""Normalisation layers in inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import UnsupportedError
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, float_attr, int_attr, ints_attr, rule
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
        factor = t.Reshape(operand(node, 1), [-1, *[1] * behind])
        return (_along(t, Norm(x, (None, 1, *[None] * behind), epsilon, scale=factor), g),)
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


@dataclass(frozen=True)
class Norm:
    """`scale u r`, r = 1 / (sqrt(variance + epsilon) + beside), u = x or x less its mean.

    Normalisations add a bias to it, which has no part in any rule.

    Attributes
    ----------
    x : what is normalised.
    blocks : how many neighbours along each axis of x have their mean and variance in common; None
        where that is the whole axis.
    epsilon, beside : what keeps the divisor from zero, under the root and beside it.
    centred : whether the mean is taken off.
    about_mean : whether the variance is that about the mean, or the mean square.
    scale : of the rank of x, and broadcasts to it; None if there is none.
    """

    x: ir.Value
    blocks: tuple[int | None, ...]
    epsilon: float
    beside: float = 0.0
    centred: bool = True
    about_mean: bool = True
    scale: ir.Value | NDArray[Any] | None = None

    @property
    def axes(self) -> list[int]:
        """The axes of the folded view over which means are taken."""
        found, axis = list[int](), 0
        for block in self.blocks:
            axis += block not in (None, 1)  # the blocks come before what is in them
            found += [axis] if block != 1 else []
            axis += 1
        return found

    def folded(self, t: Tape, value: ir.Value) -> ir.Value:
        """View a value of the shape of x such that blocks are whole axes."""
        if all(block in (None, 1) for block in self.blocks):
            return value
        sizes = [
            [t.size(self.x, axis)] if block in (None, 1)
            else [t.Div(t.size(self.x, axis), [block]), [block]]
            for axis, block in enumerate(self.blocks)
        ]  # fmt: skip
        view = t.Reshape(value, t.Concat(*(size for pair in sizes for size in pair), axis=0))
        view.type, view.shape = value.type, None
        return view

    def unfolded(self, t: Tape, view: ir.Value) -> ir.Value:
        """Turn a folded view back."""
        whole = all(block in (None, 1) for block in self.blocks)
        return view if whole else t.reshape_like(view, self.x)

    def scaled(self, t: Tape, value: ir.Value) -> ir.Value:
        """Multiply by the scale."""
        return value if self.scale is None else t.Mul(value, self.scale)

    def level(self, t: Tape, along: ir.Value) -> ir.Value:
        """Carry a folded cotangent of u back to x."""
        return t.Sub(along, self.mean(t, along)) if self.centred else along

    def mean(self, t: Tape, view: ir.Value) -> ir.Value:
        """Average a folded view over its blocks."""
        return t.ReduceMean(view, self.axes, keepdims=1)

    def statistics(self, t: Tape) -> Statistics:
        """Write mean and variance of the blocks, and what follows from them."""
        x = self.folded(t, self.x)
        d = t.Sub(x, self.mean(t, x)) if self.about_mean else x
        variance = self.mean(t, t.Mul(d, d))
        root = t.Sqrt(t.Add(variance, self.epsilon) if self.epsilon else variance)
        r = t.Reciprocal(t.Add(root, self.beside) if self.beside else root)
        if not self.epsilon:  # zeros stay zeros
            null = t.Equal(variance, 0.0)
            root, r = t.Where(null, 1.0, root), r if self.beside else t.Where(null, 0.0, r)
        return Statistics(d if self.centred else x, d, variance, root, r)


@dataclass(frozen=True)
class Statistics:
    """What a normalisation computes on its way, in the folded view.

    Attributes
    ----------
    u : what is scaled.
    d : whose mean square is the variance.
    variance : of each block.
    root : sqrt(variance + epsilon).
    r : 1 / (root + beside).
    """

    u: ir.Value
    d: ir.Value
    variance: ir.Value
    root: ir.Value
    r: ir.Value


def norm_of(t: Tape, node: ir.Node) -> Norm:
    """Read an operator that normalises."""
    x, rank, op = operand(node), t.rank(operand(node)), node.op_type
    epsilon = float_attr(node, "epsilon", 1e-5)
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    if op == "MeanVarianceNormalization":
        axes = {axis % rank for axis in ints_attr(node, "axes", [0, 2, 3])}
        return Norm(x, tuple(None if axis in axes else 1 for axis in range(rank)), 1e-9)
    if op in ("LayerNormalization", "RMSNormalization"):
        first = int_attr(node, "axis", -1) % rank
        blocks = (*[1] * first, *[None] * (rank - first))
        centred = op == "LayerNormalization"
        return Norm(x, blocks, epsilon, 0.0, centred, centred, scale)
    block, channels = 1, (dims(x) or (None, None))[1]
    if op == "GroupNormalization":
        groups = int_attr(node, "num_groups", 1)
        if not isinstance(channels, int):
            raise UnsupportedError(f"How many channels {label(node)} normalises is unknown.")
        block = channels // groups
        if block > 1 and dims(operand(node, 1)) == (groups,):  # as before opset 21
            scale = t.Expand(t.Unsqueeze(scale, [1]), [1, block])
    by_channel = t.Reshape(scale, [-1, *[1] * (rank - 2)])
    return Norm(x, (1, block, *[None] * (rank - 2)), epsilon, scale=by_channel)


@rule("LayerNormalization")
def layer_norm(
    t: Tape,
    node: ir.Node,
    g: ir.Value | None,
    g_mean: ir.Value | None = None,
    g_inverse: ir.Value | None = None,
) -> Cotangents:
    x, scale = operand(node), operand(node, 1)
    if g is not None and x.dtype == ir.DataType.DOUBLE:  # whose mean it hands out as a float
        return (_along(t, norm_of(t, node), g),)
    rank = t.rank(x)
    axes = range(int_attr(node, "axis", -1) % rank, rank)
    node.resize_outputs(3)  # the runtime hands out mean and 1 / deviation at no cost
    for index, what in ((1, "mean"), (2, "inverse_deviation")):
        value = node.outputs[index]
        value.name = value.name or f"{output(node).name}/{what}"
        value.type = x.type
    mean, inverse = node.outputs[1:]
    x_hat = t.Mul(t.Sub(x, mean), inverse)
    terms = []
    if g is not None:
        gs, over = t.Mul(g, scale), list(axes)
        bend = t.Mul(x_hat, t.ReduceMean(t.Mul(gs, x_hat), over, keepdims=1))
        level = t.Sub(gs, t.ReduceMean(gs, over, keepdims=1))
        terms = [t.Mul(inverse, t.Sub(level, bend))]
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


@rule(
    "GroupNormalization", "InstanceNormalization", "MeanVarianceNormalization", "RMSNormalization"
)
def norm(t: Tape, node: ir.Node, g: ir.Value, *_: ir.Value | None) -> Cotangents:
    return (_along(t, norm_of(t, node), g),)


def _along(t: Tape, norm: Norm, g: ir.Value) -> ir.Value:
    # y = u r, and r changes by -r^2 / (2 root) with the variance
    s, gs = norm.statistics(t), norm.folded(t, norm.scaled(t, g))
    bend = t.Mul(norm.mean(t, t.Mul(gs, s.u)), t.Div(t.Mul(s.r, s.r), s.root))
    return norm.unfolded(t, norm.level(t, t.Sub(t.Mul(gs, s.r), t.Mul(s.d, bend))))


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
    s = local_response(t, node)
    neighbours = over_channels(t, x, t.Div(t.Mul(g, y), s), n // 2, (n - 1) // 2)
    direct = t.Mul(g, t.Pow(s, -beta))
    return (t.Sub(direct, t.Mul(t.Mul(x, 2 * alpha * beta), neighbours)),)


def local_response(t: Tape, node: ir.Node) -> ir.Value:
    """Write bias + alpha/n sum of x^2 over the n neighbouring channels of each."""
    x, n = operand(node), int_attr(node, "size", 1)
    squares = over_channels(t, x, t.Mul(x, x), (n - 1) // 2, n // 2)
    return t.Add(t.Mul(squares, float_attr(node, "alpha", 1e-4)), float_attr(node, "bias", 1.0))


def over_channels(t: Tape, x: ir.Value, value: ir.Value, before: int, after: int) -> ir.Value:
    """Average a value of the shape of x over neighbouring channels, zeros outside."""
    # (N, C, ...) -> (N, 1, C, ...)
    flat = t.Reshape(value, t.Concat(t.size(x, 0), [1], t.size(x, 1), [-1], axis=0))
    pooled = t.AveragePool(
        flat, kernel_shape=[before + after + 1, 1], pads=[before, 0, after, 0], count_include_pad=1
    )
    return t.reshape_like(pooled, x)

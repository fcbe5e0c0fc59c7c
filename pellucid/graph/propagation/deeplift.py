"""DeepLIFT: multipliers between the images and their baselines, two halves of one batch."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.propagation.shared import (
    MAXIMA,
    activations,
    derivative,
    like,
    of_one_number,
    quotient,
    table_of,
    typed,
)
from pellucid.graph.rules.normalization import Norm, local_response, over_channels
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.reduction import kept
from pellucid.graph.rules.table import Cotangents, float_attr, int_attr
from pellucid.graph.tape import Tape, label

__all__ = ["RULES_OF_DEEPLIFT", "norm_between", "rescale"]


def _other(t: Tape, value: ir.Value) -> ir.Value:
    """Return the value of the other half: images where the baselines are, and vice versa."""
    images, baselines = t.write_many("Split", 2, value, axis=0, num_outputs=2)
    return typed(t.Concat(baselines, images, axis=0), value)


def _delta(t: Tape, value: ir.Value) -> ir.Value:
    return t.Sub(value, _other(t, value))


def _middle(t: Tape, value: ir.Value) -> ir.Value:
    return typed(t.Mul(t.Add(value, _other(t, value)), 0.5), value)


def rescale(
    t: Tape, x: ir.Value, y: ir.Value, g: ir.Value, slope: ir.Value | None = None
) -> ir.Value:
    """Multiply by the slope between the halves; where x is the same in both, by the derivative.

    Of a rectifier spelled out in several operators the derivative is not at hand, and nothing is
    passed on there.
    """
    otherwise = t.Mul(g, 0.0) if slope is None else slope
    return quotient(t, t.Mul(g, _delta(t, y)), _delta(t, x), otherwise)


def _product(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    if a is b:
        return (t.Mul(g, t.Mul(_middle(t, a), 2.0)),)
    if len(activations(t, node)) < 2:
        return derivative(t, node, g)
    return (
        t.unbroadcast(t.Mul(g, _middle(t, b)), y, a),
        t.unbroadcast(t.Mul(g, _middle(t, a)), y, b),
    )


def _division(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    if b not in t.wanted:
        return derivative(t, node, g)
    inverse = typed(t.Reciprocal(b), b)
    slope = t.Neg(t.Mul(inverse, _other(t, inverse)))  # of 1/b between the halves
    numerator = _middle(t, a) if a in t.wanted else a
    along_b = t.Mul(t.Mul(g, numerator), slope)
    along_a = t.unbroadcast(t.Mul(g, _middle(t, inverse)), y, a) if a in t.wanted else None
    return along_a, t.unbroadcast(along_b, y, b)


def _matrix_product(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    found = activations(t, node)
    if len(found) < 2:
        return derivative(t, node, g)
    if len(node.inputs) > 2:
        raise UnsupportedError(f"DeepLIFT has no rule for {label(node)} of over two activations.")
    middles = [_middle(t, value) for value in found]
    t.wanted |= set(middles)
    return derivative(t, like(node, middles), g)


def _maximum(t: Tape, node: ir.Node, g: ir.Value, *_indices: Any) -> Cotangents:
    """Give the place of each half's maximum what the larger half gained from it."""
    x, y = operand(node), output(node)
    other = _other(t, y)
    larger = t.Max(y, other)
    # Images: larger - baseline's; baselines: image's - larger.
    images, baselines = t.write_many("Split", 2, y, axis=0, num_outputs=2)
    most, _ = t.write_many("Split", 2, larger, axis=0, num_outputs=2)
    gained = t.Concat(t.Sub(most, baselines), t.Sub(images, most), axis=0)
    placed: ir.Value | None = derivative(t, node, typed(t.Mul(g, gained), y))[0]
    assert placed is not None
    of_images, of_baselines = t.write_many("Split", 2, placed, axis=0, num_outputs=2)
    both = t.Add(of_images, of_baselines)
    x_images, x_baselines = t.write_many("Split", 2, x, axis=0, num_outputs=2)
    multiplier = quotient(t, both, t.Sub(x_images, x_baselines), t.Mul(both, 0.0))
    return (typed(t.Concat(multiplier, multiplier, axis=0), x),)


def _softmax(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = e r, e = exp(x - c), r = 1 / sum(e); c is the same in both halves
    x, axis = operand(node), int_attr(node, "axis", -1)
    peak = t.ReduceMax(t.Max(x, _other(t, x)), [axis], keepdims=1)
    e = typed(t.Exp(t.Sub(x, peak)), x)
    r = t.Reciprocal(t.ReduceSum(e, [axis], keepdims=1))
    along_r = t.ReduceSum(t.Mul(g, _middle(t, e)), [axis], keepdims=1)
    along_sum = t.Neg(t.Mul(along_r, t.Mul(r, _other(t, r))))
    along_e = t.Add(t.Mul(g, _middle(t, r)), along_sum)
    return (quotient(t, t.Mul(along_e, _delta(t, e)), _delta(t, x), t.Mul(along_e, e)),)


def norm_between(t: Tape, norm: Norm, g: ir.Value) -> ir.Value:
    """Carry a multiplier through a normalisation, y = u r: a product, and r of one number."""
    s, gs = norm.statistics(t), norm.folded(t, norm.scaled(t, g))
    along_r = norm.mean(t, t.Mul(gs, _middle(t, s.u)))  # of each number
    exact = t.Mul(t.Mul(along_r, -0.5), t.Div(t.Mul(s.r, s.r), s.root))
    along_variance = quotient(t, t.Mul(along_r, _delta(t, s.r)), _delta(t, s.variance), exact)
    through = t.Mul(t.Mul(along_variance, 2.0), _middle(t, s.d))
    return norm.unfolded(t, norm.level(t, t.Add(t.Mul(gs, _middle(t, s.r)), through)))


def _local_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = x r, r = s^-beta, s grows with the mean of x^2 over neighbouring channels
    x, n = operand(node), int_attr(node, "size", 1)
    s, beta = local_response(t, node), float_attr(node, "beta", 0.75)
    r, along_r = typed(t.Pow(s, -beta), x), t.Mul(g, _middle(t, x))
    exact = t.Mul(along_r, t.Mul(t.Div(r, s), -beta))
    along_s = quotient(t, t.Mul(along_r, _delta(t, r)), _delta(t, typed(s, x)), exact)
    squares = over_channels(t, x, along_s, n // 2, (n - 1) // 2)
    through = t.Mul(t.Mul(squares, 2 * float_attr(node, "alpha", 1e-4)), _middle(t, x))
    return (t.Add(t.Mul(g, _middle(t, r)), through),)


def _sample(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    if operand(node, 1) in t.wanted:
        raise UnsupportedError(
            f"DeepLIFT has no rule for {label(node)} at places that follow from the image. "
            "Explain the network with integrated-gradients."
        )
    return derivative(t, node, g)


_UNARY = of_one_number("DeepLIFT", rescale)


def _larger_or_smaller(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Max or Min of two: what each gains on its way from the baseline, the mean of both orders."""
    found = activations(t, node)
    if len(found) == 1:
        return _UNARY(t, node, g)
    if len(node.inputs) != 2:
        raise UnsupportedError(f"DeepLIFT has no rule for {label(node)} of over two activations.")
    a, b = found
    others, y = [_other(t, a), _other(t, b)], output(node)

    def both(one: ir.Value, other: ir.Value) -> ir.Value:
        return t.write(node.op_type, one, other)

    here, there = both(a, b), both(*others)
    mixed = both(a, others[1]), both(others[0], b)  # each alone where it is here
    gains = [t.Sub(t.Add(here, one), t.Add(other, there)) for one, other in (mixed, mixed[::-1])]
    return tuple(
        quotient(
            t, t.unbroadcast(t.Mul(t.Mul(g, gain), 0.5), y, value), _delta(t, value),
            t.Mul(value, 0.0),
        )
        for value, gain in zip(found, gains, strict=True)
    )  # fmt: skip


def _length(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = sqrt(s), s = sum(x^2)
    x, y = operand(node), output(node)
    square = typed(t.Mul(y, y), y)
    exact = quotient(t, t.Mul(g, 0.5), y, t.Mul(g, 0.0))
    along = quotient(t, t.Mul(g, _delta(t, y)), _delta(t, square), exact)
    return (t.Mul(kept(t, node, along), t.Mul(_middle(t, x), 2.0)),)


RULES_OF_DEEPLIFT = table_of(
    "DeepLIFT",
    {
        "Mul": _product, "Div": _division, "MatMul": _matrix_product, "Einsum": _matrix_product,
        "Softmax": _softmax, "ReduceL2": _length, "LRN": _local_norm, "GridSample": _sample,
        **dict.fromkeys(("Max", "Min"), _larger_or_smaller), **dict.fromkeys(MAXIMA, _maximum),
    },
    rescale,
    norm_between,
)  # fmt: skip

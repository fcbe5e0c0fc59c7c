"""Relevance carried back by other rules than the derivative: DeepLIFT and LRP.

Both are written as cotangents g such that `value times g` is the relevance of a value. In that
form whatever is linear keeps its derivative, in all its spellings, and only a few operators have a
rule of their own. An operator that is neither linear nor listed is refused.

DeepLIFT runs on a batch of two halves, the images and their baselines, and sends the same g to
both: the multiplier. With `delta` the difference of the halves, a function of one number multiplies
by `delta y / delta x` (the rescale rule); a product `a b`, exactly, by the mean of the other factor
over the halves. So what the inputs get sums to the difference of the scores, normalisation and
attention included. Sources: Shrikumar et al., 1704.02685; the product's rule is the Shapley value
of two factors.

LRP splits the relevance of a sum among its terms. Sources: Bach et al., PLoS ONE 2015; Montavon et
al., "Layer-wise relevance propagation: an overview", 2019; gates and attention weights count as
constants, Ali et al., 2202.07304.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.merging import merge_affine
from pellucid.graph.normalizing import name_layer_norms
from pellucid.graph.rules import RULES
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, Rule, float_attr, int_attr
from pellucid.graph.tape import BACKWARD, Tape, array, label

__all__ = ["PROPAGATIONS", "Propagation"]

_NEAR = 1e-6  # differences and values below it are taken as none
_EPSILON = 1e-9
_GAMMA = 0.25

LINEAR = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Dropout", "Einsum", "Expand", "Flatten",
    "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "Identity", "MatMul",
    "Mean", "Mul", "Neg", "Pad", "QuantizeLinear", "ReduceMean", "ReduceSum", "Reshape",
    "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Upsample", "Where", "If", "CastLike", "Div",
))  # fmt: skip
UNARY = frozenset((
    "Abs", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Mish", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
))  # fmt: skip


@dataclass(frozen=True)
class Propagation:
    """A way to carry relevance back.

    Attributes
    ----------
    rules : by operator, like `pellucid.graph.rules.RULES`.
    unit : the rule of a function of one number, from (tape, x, y, g).
    rewrite : what is done to the graph first; the named tensors must keep their values.
    """

    rules: Mapping[str, Rule]
    unit: Callable[..., ir.Value]
    rewrite: Callable[[ir.Model, set[str]], None]


def _table(name: str, own: Mapping[str, Rule], unit: Callable[..., ir.Value]) -> dict[str, Rule]:
    """Return the rules of all operators: own ones, derivatives of linear ones, refusals."""

    def of_one_number(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
        if any(v is not None and v in t.wanted for v in node.inputs[1:]):
            raise UnsupportedError(f"{name} has no rule for {label(node)} of two activations.")
        (slope,) = RULES[node.op_type](t, node, g)[:1]
        assert slope is not None
        return (unit(t, operand(node), output(node), g, slope),)

    def refused(t: Tape, node: ir.Node, *gs: ir.Value) -> Cotangents:
        raise UnsupportedError(
            f"{name} has no rule for {label(node)}. Explain the network with integrated-gradients."
        )

    table: dict[str, Rule] = dict.fromkeys(RULES, refused)
    table |= {op: RULES[op] for op in LINEAR & RULES.keys()}
    table |= dict.fromkeys(UNARY & RULES.keys(), of_one_number)
    return table | dict(own)


def _derivative(t: Tape, node: Any, g: ir.Value) -> Cotangents:
    return RULES[node.op_type](t, node, g)


def _of_both(t: Tape, node: ir.Node) -> bool:
    return all(value is not None and value in t.wanted for value in node.inputs[:2])


def _like(node: ir.Node, inputs: Sequence[ir.Value | None]) -> Any:
    """Stand in for a node with other inputs, for a rule that only reads it."""
    return SimpleNamespace(
        inputs=tuple(inputs), outputs=node.outputs, attributes=node.attributes, name=node.name,
        op_type=node.op_type, domain=node.domain, metadata_props=node.metadata_props,
    )  # fmt: skip


# ---- DeepLIFT ------------------------------------------------------------------------------------


def _other(t: Tape, value: ir.Value) -> ir.Value:
    """Return the value of the other half: images where the baselines are, and vice versa."""
    images, baselines = t.write_many("Split", 2, value, axis=0, num_outputs=2)
    return _typed(t.Concat(baselines, images, axis=0), value)


def _typed(made: ir.Value, like: ir.Value) -> ir.Value:
    made.type, made.shape = like.type, like.shape
    return made


def _delta(t: Tape, value: ir.Value) -> ir.Value:
    return t.Sub(value, _other(t, value))


def _middle(t: Tape, value: ir.Value) -> ir.Value:
    return _typed(t.Mul(t.Add(value, _other(t, value)), 0.5), value)


def _quotient(t: Tape, over: ir.Value, under: ir.Value, otherwise: ir.Value) -> ir.Value:
    """Divide where the divisor is not next to nothing."""
    small = t.Less(t.Abs(under), _NEAR)
    return t.Where(small, otherwise, t.Div(over, t.Where(small, 1.0, under)))


def _rescale(
    t: Tape, x: ir.Value, y: ir.Value, g: ir.Value, slope: ir.Value | None = None
) -> ir.Value:
    """Multiply by the slope between the halves; where x is the same in both, by the derivative.

    Of a rectifier spelled out in several operators the derivative is not at hand, and nothing is
    passed on there.
    """
    otherwise = t.Mul(g, 0.0) if slope is None else slope
    return _quotient(t, t.Mul(g, _delta(t, y)), _delta(t, x), otherwise)


def _product(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    if a is b:
        return (t.Mul(g, t.Mul(_middle(t, a), 2.0)),)
    if not _of_both(t, node):
        return _derivative(t, node, g)
    return (
        t.unbroadcast(t.Mul(g, _middle(t, b)), y, a),
        t.unbroadcast(t.Mul(g, _middle(t, a)), y, b),
    )


def _division(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    if b not in t.wanted:
        return _derivative(t, node, g)
    inverse = _typed(t.Reciprocal(b), b)
    slope = t.Neg(t.Mul(inverse, _other(t, inverse)))  # of 1/b between the halves
    numerator = _middle(t, a) if a in t.wanted else a
    along_b = t.Mul(t.Mul(g, numerator), slope)
    along_a = t.unbroadcast(t.Mul(g, _middle(t, inverse)), y, a) if a in t.wanted else None
    return along_a, t.unbroadcast(along_b, y, b)


def _matrix_product(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    if not _of_both(t, node):
        return _derivative(t, node, g)
    middles = [_middle(t, operand(node, i)) for i in (0, 1)]
    t.wanted |= set(middles)
    return RULES[node.op_type](t, _like(node, [*middles, *node.inputs[2:]]), g)


def _maximum(t: Tape, node: ir.Node, g: ir.Value, *_indices: Any) -> Cotangents:
    """Give the place of each half's maximum what the larger half gained from it."""
    x, y = operand(node), output(node)
    other = _other(t, y)
    larger = t.Max(y, other)
    # Images: larger - baseline's; baselines: image's - larger.
    images, baselines = t.write_many("Split", 2, y, axis=0, num_outputs=2)
    most, _ = t.write_many("Split", 2, larger, axis=0, num_outputs=2)
    gained = t.Concat(t.Sub(most, baselines), t.Sub(images, most), axis=0)
    placed: ir.Value | None = RULES[node.op_type](t, node, _typed(t.Mul(g, gained), y))[0]
    assert placed is not None
    of_images, of_baselines = t.write_many("Split", 2, placed, axis=0, num_outputs=2)
    both = t.Add(of_images, of_baselines)
    x_images, x_baselines = t.write_many("Split", 2, x, axis=0, num_outputs=2)
    multiplier = _quotient(t, both, t.Sub(x_images, x_baselines), t.Mul(both, 0.0))
    return (_typed(t.Concat(multiplier, multiplier, axis=0), x),)


def _softmax(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = e r, e = exp(x - c), r = 1 / sum(e); c is the same in both halves
    x, axis = operand(node), int_attr(node, "axis", -1)
    peak = t.ReduceMax(t.Max(x, _other(t, x)), [axis], keepdims=1)
    e = _typed(t.Exp(t.Sub(x, peak)), x)
    r = t.Reciprocal(t.ReduceSum(e, [axis], keepdims=1))
    along_r = t.ReduceSum(t.Mul(g, _middle(t, e)), [axis], keepdims=1)
    along_sum = t.Neg(t.Mul(along_r, t.Mul(r, _other(t, r))))
    along_e = t.Add(t.Mul(g, _middle(t, r)), along_sum)
    return (_quotient(t, t.Mul(along_e, _delta(t, e)), _delta(t, x), t.Mul(along_e, e)),)


def _layer_norm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = d r scale + bias, d = x - mean(x), r = (mean(d^2) + eps)^(-1/2)
    x, scale = operand(node), operand(node, 1)
    rank = t.rank(x)
    axes = list(range(int_attr(node, "axis", -1) % rank, rank))
    d = _typed(t.Sub(x, t.ReduceMean(x, axes, keepdims=1)), x)
    variance = t.ReduceMean(t.Mul(d, d), axes, keepdims=1)
    r = t.Reciprocal(t.Sqrt(t.Add(variance, float_attr(node, "epsilon", 1e-5))))
    gs, middle = t.Mul(g, scale), _middle(t, d)
    along_r = t.ReduceSum(t.Mul(gs, middle), axes, keepdims=1)
    exact = t.Mul(t.Mul(along_r, -0.5), t.Mul(r, t.Mul(r, r)))
    along_variance = _quotient(t, t.Mul(along_r, _delta(t, r)), _delta(t, variance), exact)
    count = t.Cast(t.ReduceProd(t.Concat(*(t.size(x, a) for a in axes), axis=0), keepdims=1),
                   to=int(t.dtype))  # fmt: skip
    through = t.Mul(t.Div(t.Mul(along_variance, 2.0), count), middle)
    along_d = t.Add(t.Mul(gs, _middle(t, r)), through)
    return (t.Sub(along_d, t.ReduceMean(along_d, axes, keepdims=1)),)


_MAXIMA = ("MaxPool", "GlobalMaxPool", "ReduceMax")
_DEEPLIFT = _table(
    "DeepLIFT",
    {
        "Mul": _product, "Div": _division, "MatMul": _matrix_product, "Einsum": _matrix_product,
        "Softmax": _softmax, "LayerNormalization": _layer_norm, **dict.fromkeys(_MAXIMA, _maximum),
    },
    _rescale,
)  # fmt: skip


# ---- LRP -----------------------------------------------------------------------------------------


def _stabilised(t: Tape, z: ir.Value) -> ir.Value:
    """Push a divisor away from zero by its own sign."""
    return t.Add(z, t.Where(t.GreaterOrEqual(z, 0.0), _EPSILON, -_EPSILON))


def _passed_on(
    t: Tape, x: ir.Value, y: ir.Value, g: ir.Value, slope: ir.Value | None = None
) -> ir.Value:
    """Let the relevance through: x gets what y has; at zero there is none."""
    return _quotient(t, t.Mul(g, y), x, t.Mul(g, 0.0))


def _epsilon(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    if not _has_weights(t, node):
        return _gated(t, node, g)
    z = _with_bias(node)
    return _derivative(t, node, t.Div(t.Mul(g, z), _stabilised(t, z)))


def _gamma(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Favour the terms of the result's sign, not the bias: those `w x` count `1 + gamma` times."""
    if not _has_weights(t, node):
        return _gated(t, node, g)
    x, up, down = operand(node), *(_weights_only(t, node, sign) for sign in (1, -1))
    plus, minus = _of_sign(t, node, up, down), _of_sign(t, node, down, up)
    z = _with_bias(node)
    rises = t.GreaterOrEqual(z, 0.0)
    favoured = t.Add(z, t.Mul(t.Where(rises, plus, minus), _GAMMA))  # as large as z, or larger
    shares = t.Div(t.Mul(g, z), _stabilised(t, favoured))
    above, below = t.Where(rises, shares, 0.0), t.Where(rises, 0.0, shares)

    def along(weights: list[ir.Value | None], part: ir.Value) -> ir.Value:
        found = _derivative(t, _like(node, [x, *weights]), _typed(part, output(node)))[0]
        assert found is not None
        return found

    more = t.Where(
        t.GreaterOrEqual(x, 0.0),
        t.Add(along(up, above), along(down, below)),
        t.Add(along(down, above), along(up, below)),
    )
    (plain, *_) = _derivative(t, _like(node, node.inputs[:2]), _typed(shares, output(node)))
    assert plain is not None
    return (t.Add(plain, t.Mul(more, _GAMMA)),)


def _z_plus(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Only terms that push up count: positive inputs by positive weights, negative by negative."""
    if not _has_weights(t, node):
        return _gated(t, node, g)
    x, up, down = operand(node), *(_weights_only(t, node, sign) for sign in (1, -1))
    z = _of_sign(t, node, up, down)
    shares = _quotient(t, t.Mul(g, _with_bias(node)), z, t.Mul(g, 0.0))
    ((above, *_), (below, *_)) = (
        _derivative(t, _like(node, [x, *part]), shares) for part in (up, down)
    )
    return (t.Where(t.GreaterOrEqual(x, 0.0), above, below),)


def _of_sign(
    t: Tape, node: ir.Node, of_rising: list[ir.Value | None], of_falling: list[ir.Value | None]
) -> ir.Value:
    """Add up the terms of positive inputs by some weights and of negative inputs by others."""
    x = operand(node)
    rising, falling = _typed(t.Relu(x), x), _typed(t.Neg(t.Relu(t.Neg(x))), x)
    return t.Add(_again(t, node, [rising, *of_rising]), _again(t, node, [falling, *of_falling]))


def _same_sign(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Of a sum of activations only the terms of its sign count, so that none gets more than all.

    Both branches of a residual block may be large and cancel; in proportion to the terms, block
    after block would make more relevance of either sign.
    """

    def shares(same: ir.Value) -> tuple[ir.Value, ir.Value]:
        nothing = t.Mul(g, 0.0)
        return _quotient(t, t.Mul(g, output(node)), same, nothing), nothing

    return _by_sign(t, node, g, shares)


def _gamma_of_sum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Favour the terms of the sum's sign, as those of a layer are."""

    def shares(same: ir.Value) -> tuple[ir.Value, ir.Value]:
        y = output(node)
        plain = t.Div(t.Mul(g, y), _stabilised(t, t.Add(y, t.Mul(same, _GAMMA))))
        return t.Mul(plain, 1 + _GAMMA), plain

    return _by_sign(t, node, g, shares)


def _by_sign(
    t: Tape, node: ir.Node, g: ir.Value, shares: Callable[[ir.Value], tuple[ir.Value, ir.Value]]
) -> Cotangents:
    """Give the terms of a sum or difference one share where they have its sign, or another.

    Parameters
    ----------
    shares : gives both, from the sum of the terms that have the sign.
    """
    y, values = output(node), [operand(node, index) for index in range(len(node.inputs))]
    if not all(value in t.wanted for value in values):
        return _derivative(t, node, g)
    signs = [1.0, -1.0 if node.op_type == "Sub" else 1.0, *[1.0] * (len(values) - 2)]
    terms = [value if s > 0 else t.Neg(value) for s, value in zip(signs, values, strict=False)]
    along = [t.Greater(t.Mul(term, y), 0.0) for term in terms]
    own, other = shares(
        t.add([t.Where(a, term, 0.0) for a, term in zip(along, terms, strict=True)])
    )
    parts = [t.Where(a, own, other) for a in along]
    return tuple(
        t.unbroadcast(part if s > 0 else t.Neg(part), y, value)
        for s, part, value in zip(signs, parts, values, strict=False)
    )


def _with_bias(node: ir.Node) -> ir.Value:
    """Return what a layer gives, a bias included that the exporter added in a node of its own."""
    value = output(node)
    while True:
        readers = [n for n, _ in value.uses() if not (n.name or "").startswith(BACKWARD)]
        if len(readers) != 1 or readers[0].op_type not in ("Identity", "Add"):
            return value
        (reader,) = readers
        if reader.op_type == "Add":
            others = [array(v) for v in reader.inputs if v is not value]
            return value if not others or others[0] is None else reader.outputs[0]
        value = reader.outputs[0]


def _weights_only(t: Tape, node: ir.Node, sign: int) -> list[ir.Value | None]:
    """Return the weights of one sign, without a bias."""
    weights = array(node.inputs[1])
    assert weights is not None
    return [t.constant(sign * np.maximum(sign * weights, 0))]


def _again(t: Tape, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
    """Write a node once more, on other inputs."""
    attributes = {name: a.value for name, a in node.attributes.items()}
    return _typed(t.write(node.op_type, *inputs, **attributes), output(node))


def _has_weights(t: Tape, node: ir.Node) -> bool:
    return node.inputs[0] in t.wanted and array(node.inputs[1]) is not None


_GATES = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh")
_REARRANGING = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def _gated(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """A product: a gate is a constant factor; of two equals each gets half."""
    a, b = operand(node), operand(node, 1)
    gates = [_is_gate(value) for value in (a, b)]
    if a is b:
        return tuple(None if v is None else t.Mul(v, 0.5) for v in _derivative(t, node, g))
    if not _of_both(t, node):
        return _derivative(t, node, g)
    found = list(_derivative(t, node, g))
    if gates[0] != gates[1]:
        found[gates.index(True)] = None
        return found
    return tuple(None if v is None else t.Mul(v, 0.5) for v in found)


def _is_gate(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in _REARRANGING:
        first = producer.inputs[0]
        producer = None if first is None else first.producer()
    return producer is not None and producer.op_type in _GATES


def _constant_deviation(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """LayerNorm with its deviation as a constant."""
    x, rank = operand(node), t.rank(operand(node))
    axes = list(range(int_attr(node, "axis", -1) % rank, rank))
    d = t.Sub(x, t.ReduceMean(x, axes, keepdims=1))
    variance = t.ReduceMean(t.Mul(d, d), axes, keepdims=1)
    along = t.Div(t.Mul(g, operand(node, 1)),
                  t.Sqrt(t.Add(variance, float_attr(node, "epsilon", 1e-5))))  # fmt: skip
    return (t.Sub(along, t.ReduceMean(along, axes, keepdims=1)),)


def _constant_divisor(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (_derivative(t, node, g)[0], None)


def _nothing(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (None,)


_CONVOLUTIONS, _DENSE = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")


def _lrp(convolution: Rule, dense: Rule, total: Rule = _derivative) -> dict[str, Rule]:
    own: dict[str, Rule] = {
        "Mul": _gated, "Einsum": _gated, "Div": _constant_divisor, "Softmax": _nothing,
        "LayerNormalization": _constant_deviation,
        **{op: RULES[op] for op in _MAXIMA},
        **dict.fromkeys(_CONVOLUTIONS, convolution), **dict.fromkeys(_DENSE, dense),
        **dict.fromkeys(("Add", "Sub", "Sum"), total),
    }  # fmt: skip
    return _table("LRP", own, _passed_on)


# ---- the graph -----------------------------------------------------------------------------------


def _as_layers(model: ir.Model, named: set[str]) -> None:
    """Write normalisations as one operator, and merge what scales and shifts a layer's channels."""
    name_layer_norms(model, named)
    merge_affine(model, named)


PROPAGATIONS: dict[str, Propagation] = {
    "deeplift": Propagation(_DEEPLIFT, _rescale, name_layer_norms),
    "lrp-epsilon": Propagation(_lrp(_epsilon, _epsilon), _passed_on, _as_layers),
    "lrp-gamma": Propagation(_lrp(_gamma, _gamma, _gamma_of_sum), _passed_on, _as_layers),
    "lrp-z-plus": Propagation(_lrp(_z_plus, _z_plus, _same_sign), _passed_on, _as_layers),
    "lrp-composite": Propagation(_lrp(_z_plus, _epsilon, _same_sign), _passed_on, _as_layers),
}

"""LRP: the relevance of a sum is split among its terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.propagation.shared import (
    MAXIMA,
    activations,
    derivative,
    like,
    quotient,
    table_of,
    typed,
)
from pellucid.graph.rules import RULES
from pellucid.graph.rules.normalization import Norm, local_response
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, Rule, float_attr
from pellucid.graph.tape import BACKWARD, Tape, array, label

__all__ = ["RULES_OF_LRP", "constant_deviation", "passed_on"]

_EPSILON = 1e-9
_GAMMA = 0.25


def _stabilised(t: Tape, z: ir.Value) -> ir.Value:
    """Push a divisor away from zero by its own sign."""
    return t.Add(z, t.Where(t.GreaterOrEqual(z, 0.0), _EPSILON, -_EPSILON))


def passed_on(
    t: Tape, x: ir.Value, y: ir.Value, g: ir.Value, slope: ir.Value | None = None
) -> ir.Value:
    """Let the relevance through: x gets what y has; at zero there is none."""
    return quotient(t, t.Mul(g, y), x, t.Mul(g, 0.0))


def _epsilon(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    if not _has_weights(t, node):
        return _gated(t, node, g)
    z = _with_bias(node)
    return derivative(t, node, t.Div(t.Mul(g, z), _stabilised(t, z)))


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
        found = derivative(t, like(node, [x, *weights]), typed(part, output(node)))[0]
        assert found is not None
        return found

    more = t.Where(
        t.GreaterOrEqual(x, 0.0),
        t.Add(along(up, above), along(down, below)),
        t.Add(along(down, above), along(up, below)),
    )
    (plain, *_) = derivative(t, like(node, node.inputs[:2]), typed(shares, output(node)))
    assert plain is not None
    return (t.Add(plain, t.Mul(more, _GAMMA)),)


def _z_plus(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Only terms that push up count: positive inputs by positive weights, negative by negative."""
    if not _has_weights(t, node):
        return _gated(t, node, g)
    x, up, down = operand(node), *(_weights_only(t, node, sign) for sign in (1, -1))
    z = _of_sign(t, node, up, down)
    shares = quotient(t, t.Mul(g, _with_bias(node)), z, t.Mul(g, 0.0))
    ((above, *_), (below, *_)) = (
        derivative(t, like(node, [x, *part]), shares) for part in (up, down)
    )
    return (t.Where(t.GreaterOrEqual(x, 0.0), above, below),)


def _of_sign(
    t: Tape, node: ir.Node, of_rising: list[ir.Value | None], of_falling: list[ir.Value | None]
) -> ir.Value:
    """Add up the terms of positive inputs by some weights and of negative inputs by others."""
    x = operand(node)
    rising, falling = typed(t.Relu(x), x), typed(t.Neg(t.Relu(t.Neg(x))), x)
    return t.Add(_again(t, node, [rising, *of_rising]), _again(t, node, [falling, *of_falling]))


def _same_sign(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Of a sum of activations only the terms of its sign count, so that none gets more than all.

    Both branches of a residual block may be large and cancel; in proportion to the terms, block
    after block would make more relevance of either sign.
    """

    def shares(same: ir.Value) -> tuple[ir.Value, ir.Value]:
        nothing = t.Mul(g, 0.0)
        return quotient(t, t.Mul(g, output(node)), same, nothing), nothing

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
        return derivative(t, node, g)
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
    return typed(t.write(node.op_type, *inputs, **attributes), output(node))


def _has_weights(t: Tape, node: ir.Node) -> bool:
    return node.inputs[0] in t.wanted and array(node.inputs[1]) is not None


_GATES = {"Sigmoid": 2, "HardSigmoid": 2, "Softmax": 2, "Tanh": 1}
_REARRANGING = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def _gated(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """A product: a gate is a constant factor; of two equals each gets half."""
    found = activations(t, node)
    if len(found) < 2:
        return derivative(t, node, g)
    if len(node.inputs) > 2:
        raise UnsupportedError(f"LRP has no rule for {label(node)} of over two activations.")
    along, (a, b) = list(derivative(t, node, g)), found
    gates = [_gate(value) for value in (a, b)]
    if a is not b and gates[0] != gates[1]:
        along[gates.index(max(gates))] = None
        return along
    return tuple(None if v is None else t.Mul(v, 0.5) for v in along)


def _gate(value: ir.Value) -> int:
    """How much a value is a gate; in a recurrent cell a sigmoid lets through what a tanh gives."""
    producer = value.producer()
    while producer is not None and producer.op_type in (*_REARRANGING, "Sub"):
        opposite = producer.op_type == "Sub"  # 1 - gate
        if opposite and array(producer.inputs[0]) is None:
            break
        source = producer.inputs[opposite]
        producer = None if source is None else source.producer()
    return 0 if producer is None else _GATES.get(producer.op_type, 0)


def constant_deviation(t: Tape, norm: Norm, g: ir.Value) -> ir.Value:
    """A normalisation with its deviation as a constant."""
    gs = norm.folded(t, norm.scaled(t, g))
    return norm.unfolded(t, norm.level(t, t.Mul(gs, norm.statistics(t).r)))


def _constant_divisor(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (derivative(t, node, g)[0], None)


def _constant_places(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """A sample of a picture, with the places as constants."""
    return (derivative(t, node, g)[0] if operand(node) in t.wanted else None, None)


def _constant_response(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """LRN, with what it divides by as a constant."""
    return (t.Mul(g, t.Pow(local_response(t, node), -float_attr(node, "beta", 0.75))),)


def _nothing(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (None,)


_CONVOLUTIONS, _DENSE = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")


def _table(convolution: Rule, dense: Rule, total: Rule = derivative) -> dict[str, Rule]:
    own: dict[str, Rule] = {
        "Mul": _gated, "Einsum": _gated, "Div": _constant_divisor, "Softmax": _nothing,
        "GridSample": _constant_places, "LRN": _constant_response,
        **{op: RULES[op] for op in (*MAXIMA, "Max", "Min", "TopK")},
        **dict.fromkeys(_CONVOLUTIONS, convolution), **dict.fromkeys(_DENSE, dense),
        **dict.fromkeys(("Add", "Sub", "Sum"), total),
    }  # fmt: skip
    return table_of("LRP", own, passed_on, constant_deviation)


RULES_OF_LRP = {
    "lrp-epsilon": _table(_epsilon, _epsilon),
    "lrp-gamma": _table(_gamma, _gamma, _gamma_of_sum),
    "lrp-z-plus": _table(_z_plus, _z_plus, _same_sign),
    "lrp-composite": _table(_z_plus, _epsilon, _same_sign),
}

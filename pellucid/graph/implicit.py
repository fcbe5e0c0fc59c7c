"""What a non-linearity adds of its own: its value less its linear part.

Around an image, `y = f(x)` is the sum of its linear part `J x`, where J is the Jacobian at the
image, and of what is left, `y - J x`: the implicit bias of Srinivas and Fleuret, 1905.00780,
section 3. A rectifier has none, a ReLU6 has one where it stands at its bound, a product of two
activations loses one of the two that its linear part holds.

For a function of one number, and for softmax, J is its own transpose, and the rule of the
derivative gives `J x`. Attention counts as a whole, since softmax and the two products add much
that cancels: `softmax(S) V` is linear in the values, and twice in the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from pellucid.graph.affine import affine_step
from pellucid.graph.propagation.shared import NORMALISATIONS, UNARY
from pellucid.graph.rules import RULES
from pellucid.graph.rules.normalization import Norm, local_response, norm_of
from pellucid.graph.rules.rectifier import operand, output, zero
from pellucid.graph.rules.reduction import kept
from pellucid.graph.rules.table import float_attr, int_attr, str_attr
from pellucid.graph.tape import Tape, alike, array, dims

__all__ = ["ARRANGING", "ONE_BY_ONE", "bias_of_norm", "find_attention", "implicit_bias"]

Rule: TypeAlias = Callable[[Tape, ir.Node], "ir.Value | None"]

ARRANGING = frozenset((
    "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip
_PIECEWISE = frozenset(("Abs", "LeakyRelu", "PRelu", "Relu"))
_CURVED = UNARY - _PIECEWISE | {
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cosh", "Floor", "Mod", "Round",
    "Shrink", "Sign", "Sinh", "Tan",
}  # fmt: skip
_SCALING = frozenset(("Add", "Div", "Mul", "Sub", "Sum", "Where"))
_PRODUCTS = frozenset(("Einsum", "MatMul"))
ONE_BY_ONE = _CURVED | _PIECEWISE | _SCALING | {"BatchNormalization", "Max", "Min", "Neg"}


def implicit_bias(t: Tape, node: ir.Node) -> ir.Value | None:
    """Write what a node adds to the linear part of its activations, of the shape of its output.

    Parameters
    ----------
    t : its `wanted` are the activations.

    Returns
    -------
    bias : None if there is none, or no rule tells what it is.
    """
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(t, node)


def _active(t: Tape, node: ir.Node) -> list[int]:
    """Return which inputs are activations."""
    return [i for i, value in enumerate(node.inputs) if value is not None and value in t.wanted]


def _again(t: Tape, node: ir.Node, given: Mapping[ir.Value, ir.Value | float]) -> ir.Value:
    """Write a node once more with other values in place of some."""
    inputs = [value if value is None else given.get(value, value) for value in node.inputs]
    return t.write(node.op_type, *inputs, **{n: a.value for n, a in node.attributes.items()})


# ---- functions of single numbers -----------------------------------------------------------------


def _curved(t: Tape, node: ir.Node) -> ir.Value | None:
    y, active = output(node), _active(t, node)
    if not all(alike(dims(operand(node, index)), dims(y)) for index in active):
        return None
    slopes = [RULES[node.op_type](t, node, operand(node, i)) for i in active]
    linear = [found[i] for found, i in zip(slopes, active, strict=True) if i < len(found)]
    parts = [part for part in linear if part is not None]
    if not parts:  # it is constant around any image
        return y
    bias = t.Sub(y, t.add(parts))
    least = 8 * float(np.finfo(t.dtype.numpy()).eps)  # below it is rounding, not a bias
    return t.mask(t.Greater(t.Abs(bias), t.Mul(t.Abs(y), least)), bias)


def _bounded(t: Tape, node: ir.Node) -> ir.Value | None:
    """Clip, Max or Min: nothing where all that it cuts off at is zero."""
    others = [v for v in node.inputs if v is not None and v not in t.wanted]
    return None if _adds_nothing(others) else _curved(t, node)


def _adds_nothing(values: Sequence[ir.Value]) -> bool:
    """Whether values are constants of zeros, or of infinities that hide scores."""
    contents = [array(value) for value in values]
    return all(one is not None and not (one[np.isfinite(one)] != 0).any() for one in contents)


def _from_elsewhere(t: Tape, node: ir.Node) -> ir.Value | None:
    """Return what a node gives of no activation at all; `affine_step` knows the plain sums."""
    active = [operand(node, index) for index in _active(t, node)]
    start = 1 if node.op_type == "Where" else 0
    others = [v for v in node.inputs[start:] if v is not None and v not in t.wanted]
    if _adds_nothing(others) or affine_step(node, active[0]) is not None:
        return None
    return _again(t, node, {value: t.zeros(value) for value in active})


def _scattered(t: Tape, node: ir.Node) -> ir.Value | None:
    adds = str_attr(node, "reduction", "none") in ("none", "add")
    return _from_elsewhere(t, node) if adds else None


def _padded(t: Tape, node: ir.Node) -> ir.Value | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return None if value is None or zero(value) else _from_elsewhere(t, node)


# ---- functions of several ------------------------------------------------------------------------


def _product(t: Tape, node: ir.Node) -> ir.Value | None:
    surplus = len(_active(t, node)) - 1
    return t.Mul(output(node), -float(surplus)) if surplus else None


def _quotient(t: Tape, node: ir.Node) -> ir.Value | None:
    a, b, y = operand(node), operand(node, 1), output(node)
    if b not in t.wanted:
        return None
    return y if a in t.wanted else t.Mul(y, 2.0)


def _power(degree: float) -> Rule:
    """A function that grows with that power of its input has that many times y as linear part."""

    def rule(t: Tape, node: ir.Node) -> ir.Value:
        return output(node) if degree == 0 else t.Mul(output(node), 1.0 - degree)

    return rule


def _product_along(t: Tape, node: ir.Node) -> ir.Value:
    x, y = operand(node), output(node)
    counts = (t.ReduceProd(t.shape(value), None, keepdims=0) for value in (x, y))
    degree = t.Cast(t.Div(*counts), to=int(t.dtype))
    return t.Mul(y, t.Sub(1.0, degree))


def _determinant(t: Tape, node: ir.Node) -> ir.Value:
    degree = t.Cast(t.size(operand(node), -1), to=int(t.dtype))
    return t.Mul(output(node), t.Sub(1.0, degree))


def _log_sum(t: Tape, node: ir.Node) -> ir.Value:
    return t.Sub(output(node), 1.0)


def _log_sum_exp(t: Tape, node: ir.Node) -> ir.Value:
    # the linear part is the mean of x by its softmax p; of a log-softmax, x less that mean
    x, y = operand(node), output(node)
    if node.op_type == "LogSoftmax":
        weighted = t.Mul(t.Exp(y), x)
        mean = t.ReduceSum(weighted, [int_attr(node, "axis", -1)], keepdims=1)
        return t.Sub(mean, t.Sub(x, y))
    weighted = t.Mul(t.Exp(t.Sub(x, kept(t, node, y))), x)
    return t.Sub(y, t.write("ReduceSum", weighted, *node.inputs[1:], **node.attributes))


def _local_norm(t: Tape, node: ir.Node) -> ir.Value:
    # y = x s^-beta, of which s less its bias grows with the square of x
    s, beta = local_response(t, node), float_attr(node, "beta", 0.75)
    share = t.Div(t.Sub(s, float_attr(node, "bias", 1.0)), s)
    return t.Mul(output(node), t.Mul(share, 2 * beta))


# ---- normalisation: scaling x hardly changes it --------------------------------------------------


def bias_of_norm(t: Tape, norm: Norm) -> ir.Value:
    """Return what a normalisation adds, without its constant.

    If x grew, `u r` would grow with it, but for r, which falls by variance r / root of itself.
    """
    s = norm.statistics(t)
    kept = t.Div(t.Mul(s.variance, s.r), s.root)
    return norm.scaled(t, norm.unfolded(t, t.Mul(t.Mul(s.u, s.r), kept)))


def _norm(t: Tape, node: ir.Node) -> ir.Value:
    return bias_of_norm(t, norm_of(t, node))


# ---- attention -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """What leads from the scores to the mixed values, `softmax(scores) V`.

    Attributes
    ----------
    product : which computes the scores.
    scaling : nodes that scale, mask or arrange them.
    softmax : of the scores.
    arranging : nodes that arrange the weights.
    mixing : the product of weights and values.
    """

    product: ir.Node
    scaling: tuple[ir.Node, ...]
    softmax: ir.Node
    arranging: tuple[ir.Node, ...]
    mixing: ir.Node

    @property
    def inner(self) -> tuple[ir.Node, ...]:
        """All nodes but the last one."""
        return (self.product, *self.scaling, self.softmax, *self.arranging)

    def implicit_bias(self, t: Tape) -> ir.Value:
        """Write what attention adds to its linear part, the values mixed less twice J S mixed."""
        weights = output(self.arranging[-1] if self.arranging else self.softmax)
        x, surplus = output(self.product), t.Mul(output(self.product), -2.0)
        for node in self.scaling:
            surplus = _scaled(t, node, x, surplus)
            x = output(node)
        (along,) = RULES["Softmax"](t, self.softmax, surplus)
        assert along is not None
        for node in self.arranging:
            along = _again(t, node, {operand(node): along})
        return _again(t, self.mixing, {weights: along})


def find_attention(nodes: Sequence[ir.Node], active: Collection[ir.Value]) -> list[Attention]:
    """Find products with a softmax of another product, that both are of activations."""
    found = []
    for node in nodes:
        for weights in node.inputs[:2] if _of_two(node, active) else ():
            softmax, arranging = _back(weights, active, ARRANGING)
            if softmax is None or softmax.op_type != "Softmax":
                continue
            product, scaling = _back(softmax.inputs[0], active, ARRANGING | _SCALING)
            if product is not None and _of_two(product, active):
                found.append(Attention(product, scaling, softmax, arranging, node))
    return found


def _of_two(node: ir.Node, active: Collection[ir.Value]) -> bool:
    factors = node.inputs if node.op_type in _PRODUCTS else ()
    return len(factors) == 2 and all(value in active for value in factors)


def _back(
    value: ir.Value | None, active: Collection[ir.Value], through: Collection[str]
) -> tuple[ir.Node | None, tuple[ir.Node, ...]]:
    """Return the node before a value and before such steps of one activation, and the steps.

    None where anything else reads what is between.
    """
    steps: list[ir.Node] = []
    while value is not None:
        producer, readers = value.producer(), [n for n in value.consumers() if n.op_type != "Shape"]
        if producer is None or len(readers) > 1 or value.is_graph_output():
            break
        sources = [v for v in producer.inputs if v is not None and v in active]
        if producer.op_type not in through or len(sources) != 1:
            return producer, tuple(reversed(steps))
        steps.append(producer)
        (value,) = sources
    return None, ()


def _scaled(t: Tape, node: ir.Node, x: ir.Value, part: ir.Value) -> ir.Value:
    """Do with a part of x what a node does with x, but add nothing to it."""
    if node.op_type in ("Add", "Sum"):
        return part
    if node.op_type == "Sub":
        return part if node.inputs[0] is x else t.Neg(part)
    if node.op_type == "Where":
        return t.Where(operand(node), *(part if v is x else 0.0 for v in node.inputs[1:]))
    return _again(t, node, {x: part})


_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_CURVED, "Softmax"), _curved),
    **dict.fromkeys(("Clip", "Max", "Min"), _bounded),
    **dict.fromkeys(("Add", "Concat", "Sub", "Sum", "Where"), _from_elsewhere),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scattered),
    "Pad": _padded,
    **dict.fromkeys(("Mul", *_PRODUCTS), _product),
    "Div": _quotient,
    "Reciprocal": _power(-1),
    "Sqrt": _power(0.5),
    **dict.fromkeys(("Hardmax", "LpNormalization"), _power(0)),
    "ReduceSumSquare": _power(2),
    "ReduceProd": _product_along,
    "Det": _determinant,
    "ReduceLogSum": _log_sum,
    **dict.fromkeys(("LogSoftmax", "ReduceLogSumExp"), _log_sum_exp),
    "LRN": _local_norm,
    **dict.fromkeys(NORMALISATIONS, _norm),
}

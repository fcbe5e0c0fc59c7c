"""What the ways of carrying relevance back share: which operators keep their derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.rules import RULES
from pellucid.graph.rules.normalization import group_scaled
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, Rule, int_attr
from pellucid.graph.tape import Tape, label

NORMALISATIONS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization")
MAXIMA = ("GlobalMaxPool", "MaxPool", "ReduceMax")
_NEAR = 1e-6  # differences and values below it are taken as none

LINEAR = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Dropout", "Einsum", "Expand", "Flatten",
    "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "Identity", "MatMul",
    "Mean", "Mul", "Neg", "Pad", "QuantizeLinear", "ReduceMean", "ReduceSum", "Reshape",
    "Resize", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "If", "CastLike", "Div",
))  # fmt: skip
UNARY = frozenset((
    "Abs", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Mish", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
))  # fmt: skip


def of_one_number(name: str, unit: Callable[..., ir.Value]) -> Rule:
    """Return the rule of what is a function of one activation, number by number."""

    def rule(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
        if len(activations(t, node)) > 1:
            raise UnsupportedError(f"{name} has no rule for {label(node)} of two activations.")
        slopes = RULES[node.op_type](t, node, g)
        return tuple(
            None
            if slope is None or value not in t.wanted
            else unit(t, value, output(node), g, slope)
            for value, slope in zip(node.inputs, slopes, strict=False)
        )

    return rule


def table_of(name: str, own: Mapping[str, Rule], unit: Callable[..., ir.Value]) -> dict[str, Rule]:
    """Return the rules of all operators: own ones, derivatives of linear ones, refusals."""

    def refused(t: Tape, node: ir.Node, *gs: ir.Value) -> Cotangents:
        raise UnsupportedError(
            f"{name} has no rule for {label(node)}. Explain the network with integrated-gradients."
        )

    table: dict[str, Rule] = dict.fromkeys(RULES, refused)
    table |= {op: RULES[op] for op in LINEAR & RULES.keys()}
    table |= dict.fromkeys(UNARY & RULES.keys(), of_one_number(name, unit))
    return table | dict(own)


def derivative(t: Tape, node: Any, g: ir.Value) -> Cotangents:
    """Apply the rule of the derivative."""
    return RULES[node.op_type](t, node, g)


def activations(t: Tape, node: ir.Node) -> list[ir.Value]:
    """Return those operands of a node that depend on the input."""
    return [value for value in node.inputs if value is not None and value in t.wanted]


def like(node: ir.Node, inputs: Sequence[ir.Value | None]) -> Any:
    """Stand in for a node with other inputs, for a rule that only reads it."""
    return SimpleNamespace(
        inputs=tuple(inputs), outputs=node.outputs, attributes=node.attributes, name=node.name,
        op_type=node.op_type, domain=node.domain, metadata_props=node.metadata_props,
    )  # fmt: skip


def typed(made: ir.Value, pattern: ir.Value) -> ir.Value:
    """Give a value the type and shape of another."""
    made.type, made.shape = pattern.type, pattern.shape
    return made


def quotient(t: Tape, over: ir.Value, under: ir.Value, otherwise: ir.Value) -> ir.Value:
    """Divide where the divisor is not next to nothing."""
    small = t.Less(t.Abs(under), _NEAR)
    return t.Where(small, otherwise, t.Div(over, t.Where(small, 1.0, under)))


def by_scale(t: Tape, node: ir.Node, g: ir.Value) -> tuple[ir.Value, ir.Value, list[int]]:
    """Return what a normalisation normalises, over which axes, and the cotangent by its scale.

    Groups are normalised in a view `(N, groups, ...)`.
    """
    x, scale = operand(node), operand(node, 1)
    rank = t.rank(x)
    if node.op_type == "LayerNormalization":
        return x, t.Mul(g, scale), list(range(int_attr(node, "axis", -1) % rank, rank))
    if node.op_type == "InstanceNormalization":
        return x, t.Mul(g, t.Reshape(scale, [-1, *[1] * (rank - 2)])), list(range(2, rank))
    folded = [0, int_attr(node, "num_groups", 1), -1]
    view = t.Reshape(x, folded)
    view.type, view.shape = x.type, None
    return view, t.Reshape(group_scaled(t, node, g), folded), [2]

"""What the ways of carrying relevance back share: which operators keep their derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.rules import RULES
from pellucid.graph.rules.normalization import Norm, norm_of
from pellucid.graph.rules.rectifier import output
from pellucid.graph.rules.table import Cotangents, Rule
from pellucid.graph.tape import Tape, label

NORMALISATIONS = (
    "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "MeanVarianceNormalization", "RMSNormalization",
)  # fmt: skip
MAXIMA = ("GlobalMaxPool", "MaxPool", "ReduceMax")
_NEAR = 1e-6  # differences and values below it are taken as none

LINEAR = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose",
    "CumSum", "DFT", "DepthToSpace", "DequantizeLinear", "Dropout", "Einsum", "Expand", "Flatten",
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


NormRule: TypeAlias = Callable[[Tape, Norm, ir.Value], ir.Value]


def table_of(
    name: str, own: Mapping[str, Rule], unit: Callable[..., ir.Value], norm: NormRule
) -> dict[str, Rule]:
    """Return the rules of all operators: own ones, derivatives of linear ones, refusals.

    Parameters
    ----------
    unit : the rule of a function of one number.
    norm : the rule of a normalisation.
    """

    def refused(t: Tape, node: ir.Node, *gs: ir.Value) -> Cotangents:
        raise UnsupportedError(
            f"{name} has no rule for {label(node)}. Explain the network with integrated-gradients."
        )

    table: dict[str, Rule] = dict.fromkeys(RULES, refused)
    table |= {op: RULES[op] for op in LINEAR & RULES.keys()}
    table |= dict.fromkeys(UNARY & RULES.keys(), of_one_number(name, unit))
    table |= dict.fromkeys(NORMALISATIONS, lambda t, node, g: (norm(t, norm_of(t, node), g),))
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

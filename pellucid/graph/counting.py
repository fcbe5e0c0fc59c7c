"""Multiply-adds of ONNX nodes, for one sample.

Counted is what multiplies by weights or multiplies activations with each other: convolutions,
matrix products and recurrent cells. Publications count the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from onnx import NodeProto

from pellucid.graph.shapes import TensorType

__all__ = ["multiply_adds"]

Types = Mapping[str, TensorType]


def multiply_adds(node: NodeProto, types: Types) -> int | None:
    """Count a node's multiply-adds for one sample; None where shapes are unknown."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    try:
        return rule(node, types)
    except (KeyError, IndexError, TypeError):  # a shape is missing, or has an unknown size
        return None


def _sizes(types: Types, name: str) -> tuple[int, ...]:
    sizes = types[name].shape
    if None in sizes:
        raise KeyError(name)
    return sizes  # type: ignore[return-value]


def _convolution(node: NodeProto, types: Types) -> int:
    output, weight = _sizes(types, node.output[0]), _sizes(types, node.input[1])
    return prod(output) * prod(weight[1:])  # weight: (O, C / groups, *kernel)


def _transposed_convolution(node: NodeProto, types: Types) -> int:
    entry, weight = _sizes(types, node.input[0]), _sizes(types, node.input[1])
    return prod(entry) * prod(weight[1:])  # weight: (C, O / groups, *kernel)


def _product(node: NodeProto, types: Types) -> int:
    return prod(_sizes(types, node.output[0])) * _sizes(types, node.input[0])[-1]


def _gemm(node: NodeProto, types: Types) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    inner = _sizes(types, node.input[0])[0 if transposed else 1]
    return prod(_sizes(types, node.output[0])) * inner


def _einsum(node: NodeProto, types: Types) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes.update(zip(term, _sizes(types, name), strict=True))
    return prod(sizes.values()) if len(terms) > 1 else 0


def _recurrent(node: NodeProto, types: Types) -> int:
    entry = _sizes(types, node.input[0])  # (T, N, C)
    weight, recurrence = _sizes(types, node.input[1]), _sizes(types, node.input[2])
    return entry[0] * entry[1] * (prod(weight) + prod(recurrence))


def _attention(node: NodeProto, types: Types) -> int:
    query, key = _sizes(types, node.input[0]), _sizes(types, node.input[1])
    return 2 * prod(query) * key[-2]


_RULES: dict[str, Callable[[NodeProto, Types], int]] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": lambda n, t: prod(_sizes(t, n.output[0])) * prod(_sizes(t, n.input[3])[1:]),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
}

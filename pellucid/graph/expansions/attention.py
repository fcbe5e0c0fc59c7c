"""The attention operators of onnxruntime, as products and a softmax."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.expansions.table import given, unfused
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import float_attr, int_attr, ints_attr
from pellucid.graph.tape import Tape, label


@unfused("Attention")
def attention(t: Tape, node: ir.Node) -> list[ir.Value]:
    """Queries, keys and values are one product of the tokens: (B, S, D) (D, 3 H) -> (B, S, 3 H)."""
    _refuse(node, "a cache or rotations", given(node, 4), given(node, 6), "do_rotary")
    x, weights, bias = operand(node), operand(node, 1), given(node, 2)
    together = t.MatMul(x, weights)
    together = together if bias is None else t.Add(together, bias)
    sizes = ints_attr(node, "qkv_hidden_sizes", [])
    if not sizes:
        width = length(weights, 1)
        if width is None:
            raise UnsupportedError(f"{label(node)} has weights of unknown size.")
        sizes = [width // 3] * 3
    heads = int_attr(node, "num_heads", 1)
    parts = t.write_many("Split", 3, together, sizes, axis=-1)
    q, k, v = (_by_head(t, part, heads) for part in parts)
    scale = float_attr(node, "scale", 0.0) or 1 / math.sqrt(sizes[0] // heads)
    return [_attended(t, node, q, k, v, scale, given(node, 3), given(node, 5))]


@unfused("MultiHeadAttention")
def multi_head_attention(t: Tape, node: ir.Node) -> list[ir.Value]:
    """Queries, keys and values as (B, S, D), by head as (B, heads, S, D / heads), or packed."""
    _refuse(node, "a cache", *(given(node, index) for index in range(6, 10)))
    query, key, value, bias = operand(node), given(node, 1), given(node, 2), given(node, 3)
    heads = int_attr(node, "num_heads", 1)
    packed = t.rank(query) == 5
    width = length(query, -1)
    if width is None:
        raise UnsupportedError(f"{label(node)} has queries of unknown size.")
    if packed:  # (B, S, heads, 3, D / heads)
        q, k, v = _apart(t, query, 3)
    elif key is not None and value is None:  # (B, T, heads, 2, D / heads)
        q, (k, v) = _by_head(t, query, heads), _apart(t, key, 2)
    else:
        assert key is not None
        assert value is not None
        parts = [query, key, value]
        if bias is not None:
            parts = _shifted(t, node, parts, bias)
        q = _by_head(t, parts[0], heads)
        k, v = parts[1:] if t.rank(key) == 4 else (_by_head(t, part, heads) for part in parts[1:])
    if bias is not None and (packed or value is None):
        raise UnsupportedError(
            f"{label(node)} adds a bias to packed values: nothing spells it out."
        )
    scale = float_attr(node, "scale", 0.0) or 1 / math.sqrt(width if packed else width // heads)
    return [_attended(t, node, q, k, v, scale, given(node, 4), given(node, 5)), k, v]


def _refuse(node: ir.Node, what: str, *unknown: ir.Value | str | None) -> None:
    for one in unknown:
        if int_attr(node, one, 0) if isinstance(one, str) else one is not None:
            raise UnsupportedError(f"{label(node)} has {what}, which nothing spells out.")


def _shifted(t: Tape, node: ir.Node, parts: list[ir.Value], bias: ir.Value) -> list[ir.Value]:
    """Add its part of the bias to each of queries, keys and values."""
    widths = [length(part, 2) for part in parts if t.rank(part) == 3]
    known = [width for width in widths if width is not None]
    if len(known) < 3:
        raise UnsupportedError(f"{label(node)} adds a bias to values of unknown size.")
    shifts = t.write_many("Split", 3, bias, known, axis=0)
    return [t.Add(part, shift) for part, shift in zip(parts, shifts, strict=True)]


def _apart(t: Tape, packed: ir.Value, count: int) -> list[ir.Value]:
    """(B, S, heads, count, D / heads) -> count times (B, heads, S, D / heads)."""
    parts = t.write_many("Split", count, packed, [1] * count, axis=3)
    return [t.Transpose(t.Squeeze(part, [3]), perm=[0, 2, 1, 3]) for part in parts]


def _by_head(t: Tape, x: ir.Value, heads: int) -> ir.Value:
    """(B, S, D) -> (B, heads, S, D / heads)."""
    return t.Transpose(t.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _attended(
    t: Tape,
    node: ir.Node,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: float,
    mask: ir.Value | None,
    bias: ir.Value | None,
) -> ir.Value:
    """softmax(scale q k' + bias) v, heads side by side again: (B, S, D)."""
    scores = t.MatMul(t.Mul(q, scale), t.Transpose(k, perm=[0, 1, 3, 2]))  # (B, heads, S, T)
    scores = scores if bias is None else t.Add(scores, bias)
    hidden = float_attr(node, "mask_filter_value", -10000.0)
    if mask is not None:  # 1 where to look: (B, T), (B, S, T), (B, 1, S, T)
        rank = t.rank(mask)
        if rank not in (2, 3):
            raise UnsupportedError(
                f"{label(node)} has a mask of {rank} axes, which nothing spells out."
            )
        seen = t.Unsqueeze(mask, [1, 2] if rank == 2 else [1])
        scores = t.Where(t.Cast(seen, to=int(ir.DataType.BOOL)), scores, hidden)
    if int_attr(node, "unidirectional", 0):
        ones = t.Expand(1.0, t.Shape(scores, start=2, end=4))
        scores = t.Where(t.Greater(t.Trilu(ones, upper=0), 0.0), scores, float(np.float32(-1e30)))
    together = t.Transpose(t.MatMul(t.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    return t.Reshape(together, [0, 0, -1])

"""Matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pellucid.errors import UnsupportedError
from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import Cotangents, float_attr, int_attr, rule, str_attr
from pellucid.graph.tape import Tape, array, dims, label


@rule("MatMul")
def matmul(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    rank_a, rank_b = t.rank(a), t.rank(b)
    # vectors become matrices of one row or column
    g_rows = t.Unsqueeze(g, [-1]) if rank_b == 1 else g
    g_matrix = t.Unsqueeze(g_rows, [-2]) if rank_a == 1 else g_rows
    along_a = along_b = None
    if a in t.wanted:
        columns = t.Unsqueeze(b, [0]) if rank_b == 1 else t.swap_last(b, rank_b)
        product = t.MatMul(g_matrix, columns)  # (..., m, n) (..., n, k) -> (..., m, k)
        along_a = _summed(t, product, y, a, rank_a, rank_b)
    if b in t.wanted:
        rows = t.Unsqueeze(a, [-1]) if rank_a == 1 else t.swap_last(a, rank_a)
        product = t.MatMul(rows, g_matrix)  # (..., k, m) (..., m, n) -> (..., k, n)
        along_b = _summed(t, product, y, b, rank_b, rank_a)
    return along_a, along_b


def _summed(
    t: Tape, product: ir.Value, y: ir.Value, operand_: ir.Value, rank: int, other: int
) -> ir.Value:
    """Sum a product over the batch axes along which its operand was repeated."""
    batch = max(rank, other) - 2
    if rank == 1:  # (..., k, 1) or (..., 1, k) -> (k,)
        if batch > 0:
            product = t.ReduceSum(product, list(range(batch)), keepdims=0)
        return t.Reshape(product, [-1])
    if batch <= 0:
        return product
    lead = batch - max(rank - 2, 0)
    have, want = (dims(y) or ())[:batch], (dims(operand_) or ())[: rank - 2]
    ones = [
        lead + axis
        for axis, (w, h) in enumerate(zip(want, have[lead:], strict=True))
        if w == 1 and h != 1
    ]
    if ones:
        product = t.ReduceSum(product, ones, keepdims=1)
    return t.ReduceSum(product, list(range(lead)), keepdims=0) if lead else product


@rule("Gemm")
def gemm(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    # y = alpha A' B' + beta C
    a, b = operand(node), operand(node, 1)
    alpha, beta = float_attr(node, "alpha", 1.0), float_attr(node, "beta", 1.0)
    turned_a, turned_b = int_attr(node, "transA", 0), int_attr(node, "transB", 0)
    along_a = along_b = along_c = None
    if a in t.wanted:
        if turned_a:
            along_a = t.Gemm(b, g, alpha=alpha, transA=turned_b, transB=1)
        else:
            along_a = t.Gemm(g, b, alpha=alpha, transB=1 - turned_b)
    if b in t.wanted:
        if turned_b:
            along_b = t.Gemm(g, a, alpha=alpha, transA=1, transB=turned_a)
        else:
            along_b = t.Gemm(a, g, alpha=alpha, transA=1 - turned_a)
    c = (*node.inputs, None)[2]
    if c is not None and c in t.wanted:
        along_c = t.unbroadcast(t.Mul(g, beta), output(node), c)
    return along_a, along_b, along_c


@rule("Det")
def determinant(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Each element counts by its cofactor: the signed determinant without its row and column."""
    x = operand(node)
    rank, n = t.rank(x), length(x, -1)
    if n is None:
        raise UnsupportedError(f"{label(node)} is of matrices of unknown size: no derivative.")
    g = t.Unsqueeze(g, [-1, -2])
    if n == 1:
        return (g,)
    flat = t.Reshape(x, t.Concat(t.Shape(x, start=0, end=rank - 2), [n * n], axis=0))
    numbers = np.arange(n * n).reshape(n, n)
    without = [np.delete(np.delete(numbers, i, 0), j, 1) for i in range(n) for j in range(n)]
    places = np.stack(without).reshape(n, n, n - 1, n - 1)
    minors = t.Det(t.Gather(flat, places, axis=-1))  # (..., n, n)
    signs = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    return (t.Mul(g, t.Mul(minors, signs.astype(t.dtype.numpy()))),)


@rule("Einsum")
def einsum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    equation = str_attr(node, "equation", "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - set(",."))
        out = ("..." if "." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    result: list[ir.Value | None] = []
    for index, term in enumerate(terms):
        x = operand(node, index)
        if x not in t.wanted:
            result.append(None)
            continue
        if "." in left or any(len(set(u)) < len(u) for u in (*terms, out)):
            raise UnsupportedError(
                f"{label(node)} with the equation {equation!r} has no derivative: only equations "
                "without ellipsis and without a letter twice in one operand have."
            )
        others = [i for i in range(len(terms)) if i != index]
        known = set(out).union(*(terms[i] for i in others))
        found = "".join(c for c in term if c in known)
        back = f"{','.join([out, *(terms[i] for i in others)])}->{found}"
        along = t.Einsum(g, *(operand(node, i) for i in others), equation=back)
        if missing := [i for i, c in enumerate(term) if c not in known]:
            along = t.expand_like(t.Unsqueeze(along, missing), x)
        result.append(along)
    return result


@rule("DFT")
def fourier(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """The conjugate transform, without its norm; of real numbers the real part.

    Complex numbers are pairs along the last axis, so the cotangent is one of real numbers.
    """
    x, y = operand(node), output(node)
    rank = t.rank(x)
    given = array(node.inputs[2]) if len(node.inputs) > 2 else None
    old = node.graph is not None and node.graph.opset_imports.get("", 20) < 20  # an attribute
    axis = int_attr(node, "axis", 1) if old else -2 if given is None else int(given.reshape(()))
    axis %= rank
    n, there, parts = length(x, axis), length(y, axis), length(x, -1)
    inverse, half = int_attr(node, "inverse", 0), int_attr(node, "onesided", 0)
    size = array(node.inputs[1]) if len(node.inputs) > 1 else None
    total = n if size is None else int(size.reshape(()))
    if n is None or there is None or parts is None or total is None or (inverse and half):
        raise UnsupportedError(f"{label(node)} is of unknown length, or of half a spectrum.")
    g = t.padded(g, rank, axis, 0, total - there)  # of half a spectrum the rest counts nothing
    if old:
        turned = t.DFT(g, inverse=1 - inverse, axis=axis)
    else:
        turned = t.DFT(g, None, np.asarray(axis), inverse=1 - inverse)
    along = t.Mul(turned, 1 / total if inverse else float(total))
    if parts == 1:
        along = t.Slice(along, [0], [1], [rank - 1])
    if total > n:  # what was filled up with zeros
        return (t.Slice(along, [0], [n], [axis]),)
    return (t.padded(along, rank, axis, 0, n - total),)

"""Reductions over axes, and the softmaxes."""

from __future__ import annotations

import onnx_ir as ir

from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, int_attr, rule
from pellucid.graph.tape import Tape, axes_of, dims


def kept(t: Tape, node: ir.Node, reduced: ir.Value) -> ir.Value:
    """Give back the reduced axes, of length one, to a value shaped as the output."""
    x = operand(node)
    if int_attr(node, "keepdims", 1):
        return reduced
    rank = t.rank(x)
    axes = axes_of(node, rank)
    if axes is not None and axes:
        return t.Unsqueeze(reduced, axes)
    if len(node.inputs) > 1 and node.inputs[1] is not None and axes is None:
        return t.Unsqueeze(reduced, node.inputs[1])
    if int_attr(node, "noop_with_empty_axes", 0):
        return reduced
    return t.Reshape(reduced, [1] * rank)


@rule("ReduceSum")
def reduce_sum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.expand_like(kept(t, node, g), operand(node)),)


@rule("ReduceMean")
def reduce_mean(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, y = operand(node), output(node)
    axes, shape = axes_of(node, t.rank(x)), dims(x) or ()
    given = [shape[a] for a in axes] if axes else []
    if given and all(isinstance(d, int) for d in given):
        count = 1
        for d in given:
            count *= d if isinstance(d, int) else 1
        share = t.Mul(g, 1 / count)
    else:
        ratio = t.Div(
            t.ReduceProd(t.shape(x), None, keepdims=0), t.ReduceProd(t.shape(y), None, keepdims=0)
        )
        share = t.Div(g, t.Cast(ratio, to=int(t.dtype)))
    return (t.expand_like(kept(t, node, share), x),)


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Elements that tie share the cotangent, as for torch.amax and tf.reduce_max."""
    x = operand(node)
    hit = t.Equal(x, kept(t, node, output(node)))
    ones = t.Where(hit, 1.0, 0.0)
    count = t.ReduceSum(ones, *node.inputs[1:], keepdims=1, noop_with_empty_axes=_noop(node))
    return (t.mask(hit, t.Div(kept(t, node, g), count)),)


@rule("ReduceProd")
def reduce_prod(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, noop = operand(node), _noop(node)
    axes = node.inputs[1:]
    null = t.Equal(x, 0.0)
    zeros = t.ReduceSum(t.Where(null, 1.0, 0.0), *axes, keepdims=1, noop_with_empty_axes=noop)
    full = t.Where(null, 1.0, x)
    product = t.ReduceProd(full, *axes, keepdims=1, noop_with_empty_axes=noop)  # of the others
    # the product of all other elements: through one zero it reaches that element alone
    others = t.Where(
        t.Equal(zeros, 0.0),
        t.Div(product, full),
        t.mask(t.And(null, t.Equal(zeros, 1.0)), product),
    )
    return (t.Mul(kept(t, node, g), others),)


@rule("ReduceL1")
def reduce_l1(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(kept(t, node, g), t.Sign(operand(node))),)


@rule("ReduceL2")
def reduce_l2(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    norm = kept(t, node, output(node))
    null = t.Equal(norm, 0.0)
    ratio = t.Div(kept(t, node, g), t.Where(null, 1.0, norm))
    return (t.Mul(t.Where(null, 0.0, ratio), operand(node)),)


@rule("ReduceSumSquare")
def reduce_sum_square(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Mul(t.Mul(kept(t, node, g), 2.0), operand(node)),)


@rule("ReduceLogSum")
def reduce_log_sum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    share = t.Mul(g, t.Exp(t.Neg(output(node))))
    return (t.expand_like(kept(t, node, share), operand(node)),)


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    weights = t.Exp(t.Sub(operand(node), kept(t, node, output(node))))
    return (t.Mul(kept(t, node, g), weights),)


@rule("Softmax")
def softmax(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y, axis = output(node), int_attr(node, "axis", -1)
    if _guarded(y):  # a row without any candidate is NaN, and replaced further on
        y = t.Where(t.IsNaN(y), 0.0, y)
    weighted = t.Mul(g, y)
    return (t.Sub(weighted, t.Mul(y, t.ReduceSum(weighted, [axis], keepdims=1))),)


def _guarded(value: ir.Value) -> bool:
    """Whether something chooses between a value and another one."""
    return any(
        reader.op_type in ("Where", "IsNaN")
        or (reader.op_type in ("Cast", "Identity") and _guarded(reader.outputs[0]))
        for reader in value.consumers()
    )


@rule("LogSoftmax")
def log_softmax(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    total = t.ReduceSum(g, [int_attr(node, "axis", -1)], keepdims=1)
    return (t.Sub(g, t.Mul(t.Exp(output(node)), total)),)


def _noop(node: ir.Node) -> int:
    return int_attr(node, "noop_with_empty_axes", 0)

"""Arithmetic of several operands with broadcasting: cotangents are summed back to each operand."""

from __future__ import annotations

import onnx_ir as ir

from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, rule
from pellucid.graph.tape import Tape, array


@rule("Add")
def add(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    return tuple(t.unbroadcast(g, y, operand(node, i)) for i in (0, 1))


@rule("Sub")
def sub(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    y = output(node)
    right = t.Neg(t.unbroadcast(g, y, operand(node, 1)))
    return t.unbroadcast(g, y, operand(node)), right


@rule("Mul")
def mul(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    if a is b:
        return (t.Mul(g, t.Mul(a, 2.0)),)
    return t.unbroadcast(t.Mul(g, b), y, a), t.unbroadcast(t.Mul(g, a), y, b)


@rule("Div")
def div(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    by_b = t.Div(g, b)
    if b not in t.wanted:
        return (t.unbroadcast(by_b, y, a),)
    return t.unbroadcast(by_b, y, a), t.Neg(t.unbroadcast(t.Mul(by_b, y), y, b))


@rule("Pow")
def power(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    a, b, y = operand(node), operand(node, 1), output(node)
    exponent = array(b)
    if exponent is not None and exponent.size == 1:
        p = float(exponent.reshape(()))
        if p == 0:
            return ()
        slope = a if p == 2 else t.Pow(a, p - 1.0) if p != 1 else None
        along_a = t.Mul(g, p) if slope is None else t.Mul(g, t.Mul(slope, p))
        return (t.unbroadcast(along_a, y, a),)
    real = b if b.dtype == a.dtype else t.Cast(b, to=int(a.dtype or t.dtype))
    slope = t.Mul(real, t.Pow(a, t.Sub(real, 1.0)))
    along_a = t.unbroadcast(t.Where(t.Equal(real, 0.0), 0.0, t.Mul(g, slope)), y, a)
    if b not in t.wanted:
        return (along_a,)
    log = t.Log(t.Where(t.Greater(a, 0.0), a, 1.0))
    return along_a, t.unbroadcast(t.Mul(g, t.Mul(y, log)), y, b)


@rule("Sum")
def total(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return [t.unbroadcast(g, output(node), operand(node, i)) for i in range(len(node.inputs))]


@rule("Mean")
def mean(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return total(t, node, t.Mul(g, 1 / len(node.inputs)))


@rule("Max", "Min")
def extremum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    """Operands that tie share the cotangent, as torch.maximum has it."""
    y, count = output(node), len(node.inputs)
    if count == 1:
        return (g,)
    hits = [t.Equal(operand(node, i), y) for i in range(count)]
    ones = [t.Where(hit, 1.0, 0.0) for hit in hits]
    share = t.Div(g, t.add(ones))
    return [t.unbroadcast(t.mask(hits[i], share), y, operand(node, i)) for i in range(count)]


@rule("Where")
def where(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    condition, a, b = (operand(node, i) for i in range(3))
    y = output(node)
    along_a = t.unbroadcast(t.Where(condition, g, 0.0), y, a)
    return None, along_a, t.unbroadcast(t.Where(condition, 0.0, g), y, b)


@rule("Mod")
def remainder(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.unbroadcast(g, output(node), operand(node)),)

"""What a network adds of its own: the constants in its sums, and what its non-linearities add.

Around an image a network is linear in its input and in all that it adds of its own. The latter is
divided into steps, so that it does not depend on how an exporter writes the network: all that is
done to each number of a tensor by itself is one step. `act(scale (W x + b) + shift)` is one,
whether it is one node, three or twenty.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from pellucid.graph.affine import Numbers, affine_step, on_channels
from pellucid.graph.gradient import path, spell_out
from pellucid.graph.implicit import (
    ARRANGING,
    ONE_BY_ONE,
    bias_of_norm,
    find_attention,
    implicit_bias,
)
from pellucid.graph.normalizing import find_norms
from pellucid.graph.prepare import fold, prepare
from pellucid.graph.rules.table import float_attr
from pellucid.graph.tape import Tape, alike, array, dims

__all__ = ["Bias", "Decomposition", "decompose"]

_BY_CHANNEL = frozenset(("Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization"))
_WITH_BIAS = _BY_CHANNEL | {"Gemm", "LayerNormalization"}
_PREFIX = "implicit/"  # of the tensors that are computed


@dataclass(frozen=True)
class Bias:
    """What is added at one tensor.

    Attributes
    ----------
    name : of the tensor: the sum that the bias is part of, or the value of the non-linearity.
    value : an array that broadcasts to it, or the name of the tensor that holds it where it
        depends on the image.
    step : biases of the same step belong to the same numbers.
    inputs : from which the tensor follows; shapes do not count.
    """

    name: str
    value: Numbers | str
    step: str
    inputs: frozenset[str]


@dataclass(frozen=True)
class Decomposition:
    """A graph and what it adds of its own.

    Attributes
    ----------
    model : the graph, with nodes that compute the biases that depend on the image.
    biases : in the order of the graph.
    """

    model: ir.Model
    biases: tuple[Bias, ...]


def decompose(model: onnx.ModelProto) -> Decomposition:
    """Find all that a graph adds to what follows from its inputs; the graph is not changed."""
    clean = prepare(model)
    graph = clean.graph
    spell_out(clean, *([v.name or "" for v in ends] for ends in (graph.outputs, graph.inputs)))
    nodes, active = path(graph, graph.outputs, graph.inputs)
    origins = {v.name or "": path(graph, graph.outputs, [v])[1] for v in graph.inputs}
    norms = find_norms(nodes, graph, graph.outputs)
    steps, tape = _steps(nodes, active, norms), Tape(graph, _PREFIX)
    tape.wanted = active
    attentions = {one.mixing: one for one in find_attention(nodes, active)}
    within = {node for one in attentions.values() for node in one.inner}
    within |= {node for one in norms.values() for node in one.inner}
    found: list[tuple[ir.Value, Numbers | str]] = []
    computed: dict[str, ir.Value] = {}
    for node in nodes:
        y = node.outputs[0]
        if y not in active or node in within:
            continue
        attention, spelled = attentions.get(node), norms.get(node)
        constant = spelled.bias if spelled else _constant(node, active)
        if constant is not None:
            found.append((y, constant))
        tape.dtype = y.dtype or ir.DataType.FLOAT
        if spelled:
            bias: ir.Value | None = bias_of_norm(tape, spelled.norm)
        else:
            bias = attention.implicit_bias(tape) if attention else implicit_bias(tape, node)
        if bias is not None:
            bias.type, bias.shape = y.type, y.shape
            computed[bias.name or ""] = bias
            found.append((y, bias.name or ""))
    settled = _append(clean, tape, computed.values())
    biases = []
    for y, one in found:
        inputs = frozenset(name for name, following in origins.items() if y in following)
        value = settled.get(one, one) if isinstance(one, str) else one
        biases.append(Bias(y.name or "", value, steps[y].name or "", inputs))
    return Decomposition(clean, tuple(biases))


def _append(model: ir.Model, tape: Tape, computed: Collection[ir.Value]) -> dict[str, Numbers]:
    """Let a graph give what a tape computes; return what turns out to be constant, by name."""
    graph = model.graph
    graph.extend(tape.nodes)
    for constant in tape.initializers:
        graph.register_initializer(constant)
    ends = list(graph.outputs)
    graph.outputs.extend(value for value in computed if value not in ends)
    fold(model)
    settled = {v.name or "": _once(a) for v in graph.outputs if (a := array(v)) is not None}
    kept = [value for value in graph.outputs if value.name not in settled]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    return settled


def _once(rows: Numbers) -> Numbers:
    """Keep one of equal rows, which a fixed batch has."""
    return rows[:1] if (rows == rows[:1]).all() else rows


def _steps(
    nodes: Sequence[ir.Node], active: Collection[ir.Value], norms: Collection[ir.Node]
) -> dict[ir.Value, ir.Value]:
    """Return for each activation the one of which it is a function number by number."""
    found: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        y = node.outputs[0]
        sources = [v for v in node.inputs if v is not None and v in active]
        begins = {found.get(value, value) for value in sources}
        kept = all(alike(dims(value), dims(y)) for value in sources)
        same = node.op_type in ARRANGING or (node.op_type in ONE_BY_ONE and kept)
        if same and len(begins) == 1 and node not in norms:
            found[y] = begins.pop()
        found |= {value: value for value in node.outputs if value not in found}
    return found


def _constant(node: ir.Node, active: Collection[ir.Value]) -> Numbers | None:
    """Return what a node adds by constants, of the rank of its output."""
    shape = dims(node.outputs[0])
    if shape is None:
        return None
    rank, op = len(shape), node.op_type
    if op in _WITH_BIAS and len(node.inputs) > 2 and (given := array(node.inputs[2])) is not None:
        factor = float_attr(node, "beta", 1.0) if op == "Gemm" else 1.0
        bias = on_channels(given, rank) if op in _BY_CHANNEL else given * np.float64(factor)
    else:
        (x, *others) = [v for v in node.inputs if v is not None and v in active]
        step = None if others else affine_step(node, x)
        bias = np.zeros(()) if step is None else step[1]
    bias = np.where(np.isfinite(bias), bias, 0)  # infinities hide what they are added to
    bias = bias.reshape(*[1] * (rank - bias.ndim), *bias.shape)
    return bias if bias.any() else None

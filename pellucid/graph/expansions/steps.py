"""Scan and Loop written out step by step, where the number of steps is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pellucid.graph.expansions.table import expansion, given
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import int_attr, ints_attr
from pellucid.graph.tape import Tape, array

_MOST = 512  # steps that are still written out


@expansion("Scan")
def scan(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    body, count = node.attributes["body"].as_graph(), int_attr(node, "num_scan_inputs", 1)
    kept = len(node.inputs) - count
    sources = [operand(node, kept + index) for index in range(count)]
    axes = ints_attr(node, "scan_input_axes", [0] * count)
    turned = ints_attr(node, "scan_input_directions", [0] * count)
    steps = length(sources[0], axes[0])
    if steps is None or not 0 < steps <= _MOST or _has_bodies(body):
        return None
    slices = [
        _slices(t, source, axis, steps)[:: -1 if back else 1]
        for source, axis, back in zip(sources, axes, turned, strict=True)
    ]
    states = [operand(node, index) for index in range(kept)]
    seen = []
    for parts in zip(*slices, strict=True):
        results = _inlined(t, body, [*states, *parts])
        states = results[:kept]
        seen.append(results[kept:])
    columns = list(zip(*seen, strict=True))
    axes = ints_attr(node, "scan_output_axes", [0] * len(columns))
    turned = ints_attr(node, "scan_output_directions", [0] * len(columns))
    stacked = [
        _stacked(t, column[:: -1 if back else 1], axis)
        for column, axis, back in zip(columns, axes, turned, strict=True)
    ]
    return [*states, *stacked]


@expansion("Loop")
def loop(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """Only loops that nothing ends before their number of steps."""
    body, count, going = node.attributes["body"].as_graph(), array(given(node, 0)), given(node, 1)
    if count is None or (going is not None and not _always(going)) or _has_bodies(body):
        return None
    if not 0 < count <= _MOST or not _goes_on(body):
        return None
    states = [operand(node, index) for index in range(2, len(node.inputs))]
    yes, seen = t.constant(np.asarray(True)), []
    for step in range(int(count.reshape(()))):
        results = _inlined(t, body, [t.constant(np.asarray(step)), yes, *states])[1:]
        seen.append(results[len(states) :])
        states = results[: len(states)]
    return [*states, *(_stacked(t, column, 0) for column in zip(*seen, strict=True))]


def _always(condition: ir.Value) -> bool:
    contents = array(condition)
    return contents is not None and bool(contents.all())


def _goes_on(body: ir.Graph) -> bool:
    """Whether the condition that a body hands out is the one it got, or constantly true."""
    value = body.outputs[0]
    while (producer := value.producer()) is not None and producer.op_type == "Identity":
        value = operand(producer)
    if value is body.inputs[1] or _always(value):
        return True
    contents = None if producer is None else producer.attributes.get("value")
    return contents is not None and bool(np.all(contents.as_tensor().numpy()))


def _has_bodies(body: ir.Graph) -> bool:
    return any(isinstance(a.value, ir.Graph) for n in body for a in n.attributes.values())


def _slices(t: Tape, source: ir.Value, axis: int, steps: int) -> list[ir.Value]:
    parts: Sequence[ir.Value] = [source]
    if steps > 1:
        parts = t.write_many("Split", steps, source, [1] * steps, axis=axis)
    return [t.Squeeze(part, [axis]) for part in parts]


def _stacked(t: Tape, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return t.Concat(*(t.Unsqueeze(value, [axis]) for value in values), axis=axis)


def _inlined(t: Tape, body: ir.Graph, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Write the nodes of a body with values for its inputs; return its outputs."""
    standing: dict[ir.Value, ir.Value] = dict(zip(body.inputs, inputs, strict=True))
    for value in body.initializers.values():
        if (contents := array(value)) is not None:
            standing[value] = t.constant(contents)
    for node in body:
        if node.op_type == "Constant" and "value" in node.attributes:
            standing[node.outputs[0]] = t.constant(node.attributes["value"].as_tensor().numpy())
            continue
        copies = t.write_many(
            node.op_type,
            len(node.outputs),
            *(_standing(standing, value) for value in node.inputs),
            **node.attributes,
        )
        standing.update(zip(node.outputs, copies, strict=False))
    return [standing.get(value, value) for value in body.outputs]


def _standing(known: Mapping[ir.Value, ir.Value], value: ir.Value | None) -> ir.Value | None:
    return None if value is None else known.get(value, value)

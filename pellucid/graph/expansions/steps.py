"""Scan and Loop written out step by step, where the number of steps is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from pellucid.graph.expansions.table import expansion
from pellucid.graph.expansions.trips import Trips, trips, unrollable
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import int_attr, ints_attr
from pellucid.graph.tape import Tape, array


@expansion("Scan")
def scan(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    body, count = node.attributes["body"].as_graph(), int_attr(node, "num_scan_inputs", 1)
    kept = len(node.inputs) - count
    sources = [operand(node, kept + index) for index in range(count)]
    axes = ints_attr(node, "scan_input_axes", [0] * count)
    turned = ints_attr(node, "scan_input_directions", [0] * count)
    steps = length(sources[0], axes[0])
    if not unrollable(steps, node) or _has_bodies(body):
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
    """Only loops whose number of steps follows from constants."""
    body = node.attributes["body"].as_graph()
    if _has_bodies(body):
        return None
    found = trips(node)
    if not unrollable(None if found is None else found.count, node) or found is None:
        return None
    parts = _read_in_steps(t, node, found)
    states = [operand(node, index) for index in range(2, len(node.inputs))]
    yes, seen = t.constant(np.asarray(True)), []
    for step in range(found.count):
        number = t.constant(np.asarray(step))
        known = {value: each[step] for value, each in parts.items()}
        results = _inlined(t, body, [number, yes, *states], known)[1:]
        seen.append(results[len(states) :])
        states = results[: len(states)]
    return [*states, *(_stacked(t, column, 0) for column in zip(*seen, strict=True))]


def _read_in_steps(t: Tape, node: ir.Node, found: Trips) -> dict[ir.Value, list[ir.Value]]:
    """Cut what a body reads one place a step, so that no step touches the whole of it."""
    body, parts = node.attributes["body"].as_graph(), {}
    inner = {*body.inputs, *(value for each in body for value in each.outputs)}
    for each in body:
        if each.op_type != "Gather" or int_attr(each, "axis", 0):
            continue
        source, places = operand(each), found.places.get(operand(each, 1))
        if source in inner or places is None or places.ndim != 1:
            continue
        size = length(source, 0)
        if size is not None and sorted(places) == list(range(size)):
            slices = _slices(t, source, 0, size)
            parts[each.outputs[0]] = [slices[place] for place in places]
    return parts


def _has_bodies(body: ir.Graph) -> bool:
    return any(isinstance(a.value, ir.Graph) for n in body for a in n.attributes.values())


def _slices(t: Tape, source: ir.Value, axis: int, steps: int) -> list[ir.Value]:
    parts: Sequence[ir.Value] = [source]
    if steps > 1:
        parts = t.write_many("Split", steps, source, axis=axis, num_outputs=steps)
    return [t.Squeeze(part, [axis]) for part in parts]


def _stacked(t: Tape, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return t.Concat(*(t.Unsqueeze(value, [axis]) for value in values), axis=axis)


def _inlined(
    t: Tape,
    body: ir.Graph,
    inputs: Sequence[ir.Value],
    known: Mapping[ir.Value, ir.Value] = MappingProxyType({}),
) -> list[ir.Value]:
    """Write the nodes of a body with values for its inputs; return its outputs."""
    standing = dict(zip(body.inputs, inputs, strict=True)) | dict(known)
    for value in body.initializers.values():
        if (contents := array(value)) is not None:
            standing[value] = t.constant(contents)
    for node in body:
        if node.outputs[0] in known:
            continue
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

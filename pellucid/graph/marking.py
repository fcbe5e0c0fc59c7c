"""The last step of an export: marks become inner tensors that bear the layers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import ModelProto, NodeProto

from pellucid.graph.form import Call, OnnxForm, PortForm
from pellucid.graph.prepare import with_constants_computed

__all__ = ["finished_form"]


def finished_form(
    model: ModelProto,
    ports: tuple[Sequence[PortForm], Sequence[PortForm]],
    calls: Sequence[Call],
    weights: Mapping[str, int],
    initializers: Mapping[str, str],
    name: str,
    separator: str,
) -> OnnxForm:
    """Make a form of an exported model whose outputs are its own ones and all marks.

    Inputs, outputs, weights and the values of calls get their own names, whatever the exporter
    called them. What it wrote about nodes (source files and lines) is left out, and what it left
    to be computed at every run though it is constant, is computed.

    Parameters
    ----------
    ports : inputs and outputs, with the exporter's tensors.
    calls : with the exporter's names of the marks.
    initializers : new names of weights.
    """
    model = with_constants_computed(model, initializers)  # while the marks keep their nodes alive
    graph = model.graph
    inputs, outputs = ports
    marks = list(graph.output)
    types = {value.name: value.type for value in marks}
    del graph.output[:]
    known = {value.name for value in (*graph.value_info, *graph.input)}
    graph.value_info.extend(mark for mark in marks if mark.name not in known)

    taken = {value.name for value in (*graph.input, *graph.initializer)}
    taken.update(tensor for node in graph.node for tensor in node.output)
    wanted = {port.tensor: port.name for port in inputs}
    wanted |= {call.outputs[0]: call.name for call in calls if call.outputs[0] not in wanted}
    wanted |= initializers
    table: dict[str, str] = {}
    for old, new in wanted.items():
        if new not in taken:
            table[old] = new
            taken.add(new)
    _rename(model, table)
    ends = []
    for port in outputs:
        source, tensor = table.get(port.tensor, port.tensor), port.name
        while tensor in taken:
            tensor += "_"
        taken.add(tensor)
        graph.node.append(onnx.helper.make_node("Identity", [source], [tensor], tensor))
        graph.output.append(onnx.ValueInfoProto(name=tensor, type=types.get(port.tensor)))
        ends.append(replace(port, tensor=tensor))
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return OnnxForm(
        model,
        tuple(replace(port, tensor=table.get(port.tensor, port.tensor)) for port in inputs),
        tuple(ends),
        tuple(
            replace(
                call,
                inputs=tuple(table.get(mark, mark) for mark in call.inputs),
                outputs=tuple(table.get(mark, mark) for mark in call.outputs),
            )
            for call in calls
        ),
        separator,
        weights,
        name,
    )


def _rename(model: ModelProto, table: Mapping[str, str]) -> None:
    graph = model.graph
    for node in graph.node:
        _read_by_new_names(node, table)
        node.output[:] = [table.get(name, name) for name in node.output]
    for item in (*graph.initializer, *graph.value_info, *graph.input):
        item.name = table.get(item.name, item.name)


def _read_by_new_names(node: NodeProto, table: Mapping[str, str]) -> None:
    """Rename what a node reads, and what its branches and bodies take from outside."""
    node.input[:] = [table.get(name, name) for name in node.input]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _read_by_new_names(inner, table)
        for value in attribute.g.output:  # a branch may hand out what it took from outside
            value.name = table.get(value.name, value.name)

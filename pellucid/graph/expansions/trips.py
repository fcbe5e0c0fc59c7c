"""How often a loop runs, where that follows from constants.

TensorFlow's loops go on while a count is below a limit, and read a sequence at the place where the
count stands. What decides about going on, and these places, are a small part of the loop that
needs none of its activations, so that part is run by itself, beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pellucid.graph.expansions.table import given
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.tape import array

__all__ = ["MOST", "Trips", "trips", "unrollable"]

MOST = 512  # steps that are still written out
_SMALL = 64  # elements of what a loop counts with


@dataclass(frozen=True)
class Trips:
    """What is known of a loop before it runs.

    Attributes
    ----------
    count : its number of steps, `MOST + 1` where there are more.
    places : by step, the indices in the body that follow from constants: (count, ...).
    """

    count: int
    places: dict[ir.Value, NDArray[Any]]


@dataclass
class _Part:
    """A part of a body that follows from constants alone."""

    nodes: set[ir.Node] = field(default_factory=set)
    states: set[int] = field(default_factory=set)  # indices among the loop's inputs
    constants: set[ir.Value] = field(default_factory=set)  # from outside or of the body


def unrollable(steps: int | None, node: ir.Node) -> TypeGuard[int]:
    """Whether an operator of so many steps may be written out; the node notes why not."""
    node.meta.pop("kept", None)
    if steps is None:
        node.meta["kept"] = (
            "How many steps it takes shows only when it runs: what it reads must have a fixed "
            "length, and no activation may end it."
        )
    elif steps > MOST:
        node.meta["kept"] = (
            f"It takes more than {MOST} steps, too many to be written out; the engine of a "
            "framework, engine='native', has no such limit."
        )
    return steps is not None and 0 < steps <= MOST


def trips(node: ir.Node) -> Trips | None:
    """Count the steps of a Loop; None where activations decide when it ends."""
    body, limit, going = node.attributes["body"].as_graph(), given(node, 0), given(node, 1)
    if any(v is not None and array(v) is None for v in (limit, going)):
        return None
    part = _part(node, body.outputs[:1])
    if part is None:
        return None
    gathers = [each for each in body if each.op_type == "Gather"]
    places = []
    for value in dict.fromkeys(operand(each, 1) for each in gathers):
        if (found := _part(node, [value])) is not None:
            places.append(value)
            part.nodes |= found.nodes
            part.states |= found.states
            part.constants |= found.constants
    steps, *read = _run(node, part, places)
    return Trips(len(steps), dict(zip(places, read, strict=True)))


def _part(node: ir.Node, values: Iterable[ir.Value]) -> _Part | None:
    """Collect what values of a body are computed from; None where that is no constant."""
    body = node.attributes["body"].as_graph()
    inputs = {value: index for index, value in enumerate(body.inputs)}
    part, seen, waiting = _Part(), set(), list(values)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        index, producer = inputs.get(value), value.producer()
        if index is not None:
            if index > 1 and not _is_small(operand(node, index)):
                return None
            if index:  # what it is in the next step
                waiting.append(body.outputs[index - 1])
                part.states.add(index)
        elif producer is not None and producer.graph is body:
            part.nodes.add(producer)
            waiting += [source for source in producer.inputs if source is not None]
        elif _is_small(value):
            part.constants.add(value)
        else:
            return None
    part.states.discard(1)
    return part


def _is_small(value: ir.Value) -> bool:
    contents = array(value)
    return contents is not None and contents.size <= _SMALL


def _run(node: ir.Node, part: _Part, places: list[ir.Value]) -> list[NDArray[Any]]:
    """Run a part of a loop by itself: the numbers of its steps, and values by step."""
    from pellucid.graph.runtime import session

    body, states = node.attributes["body"].as_graph(), sorted(part.states)
    limit, going = (array(given(node, index)) for index in (0, 1))
    count = MOST + 1 if limit is None else min(int(limit.reshape(())), MOST + 1)
    starts = [np.asarray(count, np.int64), np.asarray(going is None or bool(going.all()))]
    starts += [np.asarray(array(operand(node, index))) for index in states]
    tensors = [numpy_helper.from_array(a, f"start/{i}") for i, a in enumerate(starts)]
    tensors += [
        numpy_helper.from_array(np.asarray(array(value)), value.name) for value in part.constants
    ]
    seen = [body.inputs[0], *places]
    results = [body.outputs[0], *(body.outputs[index - 1] for index in states), *seen]
    names = [f"part/{index}" for index in range(len(results))]
    copies = [
        helper.make_node("Identity", [value.name or ""], [name])
        for value, name in zip(results, names, strict=True)
    ]
    inner = helper.make_graph(
        [*(ir.serde.serialize_node(each) for each in body if each in part.nodes), *copies],
        "part",
        [
            _port(body.inputs[index], body.inputs[index].name or "", start.shape)
            for index, start in zip((0, 1, *states), starts, strict=True)
        ],
        [_port(value, name) for value, name in zip(results, names, strict=True)],
    )
    outputs = [f"end/{index}" for index in range(len(states) + len(seen))]
    whole = helper.make_node(
        "Loop", [f"start/{index}" for index in range(len(starts))], outputs, body=inner
    )
    wanted = [helper.make_empty_tensor_value_info(name) for name in outputs[len(states) :]]
    graph = helper.make_graph([whole], "trips", [], wanted, tensors)
    assert node.graph is not None
    opsets = [helper.make_opsetid(d, v) for d, v in node.graph.opset_imports.items()]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    found: list[NDArray[Any]] = session(proto, optimize=False).run(None, {})
    return found


def _port(value: ir.Value, name: str, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    kind = TensorProto.UNDEFINED if value.dtype is None else int(value.dtype)
    return helper.make_tensor_value_info(name, kind, shape)

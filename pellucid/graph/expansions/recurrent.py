"""LSTM, GRU and RNN written out step by step, so that the rules of their operators apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.expansions.table import expansion
from pellucid.graph.expansions.trips import unrollable
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import int_attr, str_attr
from pellucid.graph.tape import Tape, array

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ACTIVATIONS = frozenset((
    "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh",
))  # fmt: skip

Step = Callable[[Tape, ir.Value, list[ir.Value]], list[ir.Value]]


def _plain(node: ir.Node) -> bool:
    x, weights, recurrence = node.inputs[:3]
    optional = [*node.inputs[3:], *[None] * 5]
    bias, lengths, peepholes = optional[0], optional[1], optional[4]
    time = 1 if int_attr(node, "layout", 0) else 0
    steps = None if x is None else length(x, time)
    return (
        unrollable(steps, node)
        and array(weights) is not None
        and array(recurrence) is not None
        and (bias is None or array(bias) is not None)
        and lengths is None
        and peepholes is None
        and all(name in _ACTIVATIONS for name in _activations(node))
        and "activation_alpha" not in node.attributes
        and "activation_beta" not in node.attributes
        and "clip" not in node.attributes
        and not int_attr(node, "input_forget", 0)
    )


def _activations(node: ir.Node) -> list[str]:
    """Names of the activations of all directions, one direction after the other."""
    chosen = node.attributes.get("activations")
    if chosen is not None:
        return list(chosen.as_strings())
    both = str_attr(node, "direction", "forward") == "bidirectional"
    return _DEFAULTS[node.op_type] * (2 if both else 1)


@expansion("LSTM", "GRU", "RNN")
def unrolled(t: Tape, node: ir.Node) -> list[ir.Value] | None:
    """One step after the other.

    Layers of unknown length, with sequence lengths, peepholes, clipping, activations that have
    parameters, or weights that are no constants stay as they are.
    """
    if not _plain(node):
        return None
    x, batch_first = operand(node), int_attr(node, "layout", 0)
    if batch_first:
        batch, steps = t.size(x, 0), length(x, 1)
        x = t.Transpose(x, perm=[1, 0, 2])
    else:
        batch, steps = t.size(x, 1), length(x, 0)
    assert steps is not None
    direction = str_attr(node, "direction", "forward")
    ways = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[direction]
    outputs, ends = [], []
    for index, way in enumerate(ways):
        seen, states = _one_way(t, node, x, batch, steps, index, way)
        outputs.append(t.Unsqueeze(seen, [1]))  # (T, N, H) -> (T, 1, N, H)
        ends.append(states)
    whole = t.Concat(*outputs, axis=1)  # (T, D, N, H)
    last = [t.Concat(*(t.Unsqueeze(s[i], [0]) for s in ends), axis=0) for i in range(len(ends[0]))]
    if batch_first:
        whole = t.Transpose(whole, perm=[2, 0, 1, 3])
        last = [t.Transpose(value, perm=[1, 0, 2]) for value in last]
    return [whole, *last]


def _one_way(
    t: Tape, node: ir.Node, x: ir.Value, batch: ir.Value, steps: int, index: int, way: int
) -> tuple[ir.Value, list[ir.Value]]:
    weights, recurrence = (_part(node.inputs[i], index) for i in (1, 2))
    hidden = recurrence.shape[1]
    optional = [*node.inputs[3:], *[None] * 4]
    gates = weights.shape[0]
    bias = np.zeros(2 * gates, weights.dtype)
    if optional[0] is not None:
        bias = _part(optional[0], index)
    kinds = len(_DEFAULTS[node.op_type])
    names = _activations(node)[index * kinds : (index + 1) * kinds]
    activations = [
        partial(_hard_sigmoid if n == "HardSigmoid" else Tape.write, t, n) for n in names
    ]
    step, folded = _steps(node, activations, recurrence, bias[gates:], hidden)
    # what the input gives to all gates of all steps at once: (T, N, I) -> (T, N, gates)
    driven = t.Add(t.MatMul(x, np.ascontiguousarray(weights.T)), bias[:gates] + folded)
    parts: Sequence[ir.Value] = [driven]
    if steps > 1:
        parts = t.write_many("Split", steps, driven, axis=0, num_outputs=steps)
    states = []
    for start in optional[2:4] if node.op_type == "LSTM" else optional[2:3]:
        if start is None:
            states.append(t.Expand(0.0, t.Concat(batch, [hidden], axis=0)))
        else:
            axis = 1 if int_attr(node, "layout", 0) else 0
            states.append(t.Gather(start, index, axis=axis))
    seen = []
    for part in parts[::way]:
        states = step(t, t.Squeeze(part, [0]), states)
        seen.append(t.Unsqueeze(states[0], [0]))
    return t.Concat(*seen[::way], axis=0), states


def _hard_sigmoid(t: Tape, _name: str, x: ir.Value) -> ir.Value:
    """Spell it as Keras does, from which it comes: the cut at zero counts as a rectifier there."""
    return t.Clip(t.Add(t.Mul(x, 0.2), 0.5), 0.0, 1.0)


def _part(value: ir.Value | None, index: int) -> NDArray[Any]:
    contents = array(value)
    assert contents is not None
    return np.asarray(contents[index])


def _steps(
    node: ir.Node,
    activations: Sequence[Callable[[ir.Value], ir.Value]],
    recurrence: NDArray[Any],
    bias: NDArray[Any],
    hidden: int,
) -> tuple[Step, NDArray[Any]]:
    """One step of the recurrence, and the part of its bias that can be added beforehand."""
    matrix = np.ascontiguousarray(recurrence.T)  # (H, gates)

    def lstm(t: Tape, driven: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
        h, c = states
        total = t.Add(driven, t.MatMul(h, matrix))
        i, o, f, new = t.write_many("Split", 4, total, [hidden] * 4, axis=-1)
        gate, candidate, shown = activations
        c = t.Add(t.Mul(gate(f), c), t.Mul(gate(i), candidate(new)))
        return [t.Mul(gate(o), shown(c)), c]

    def gru(t: Tape, driven: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
        (h,), (gate, activation) = states, activations
        z, r, new = t.write_many("Split", 3, driven, [hidden] * 3, axis=-1)
        update = gate(t.Add(z, t.MatMul(h, matrix[:, :hidden])))
        reset = gate(t.Add(r, t.MatMul(h, matrix[:, hidden : 2 * hidden])))
        last = matrix[:, 2 * hidden :]
        if int_attr(node, "linear_before_reset", 0):
            recalled = t.Mul(reset, t.Add(t.MatMul(h, last), bias[2 * hidden :]))
        else:
            recalled = t.MatMul(t.Mul(reset, h), last)
        candidate = activation(t.Add(new, recalled))
        return [t.Add(t.Mul(update, h), t.Mul(t.Sub(1.0, update), candidate))]

    def rnn(t: Tape, driven: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
        return [activations[0](t.Add(driven, t.MatMul(states[0], matrix)))]

    if node.op_type == "GRU" and int_attr(node, "linear_before_reset", 0):
        early = bias.copy()
        early[2 * hidden :] = 0
        return gru, early
    return {"LSTM": lstm, "GRU": gru, "RNN": rnn}[node.op_type], bias

"""What a network adds of its own: the constants in its sums, and the bounds of its activations.

A bias counts where its sum ends. `(W x + b) scale + shift` is one sum, whether an exporter left it
in three nodes or folded it into one convolution, so its bias is `b scale + shift`, behind the last
of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.gradient import path
from pellucid.graph.prepare import prepare
from pellucid.graph.rules.normalization import affine
from pellucid.graph.rules.table import float_attr, ints_attr
from pellucid.graph.tape import array

__all__ = ["biases", "bounds", "origins"]

Numbers = NDArray[Any]

_BY_CHANNEL = frozenset(("Conv", "ConvTranspose", "InstanceNormalization"))
_PASSING = frozenset(("Add", "Cast", "Dropout", "Identity", "Neg", "Sub", "Sum"))


def biases(model: onnx.ModelProto, *, merged: bool = True) -> dict[str, Numbers]:
    """Find the constants that a graph adds to what follows from its inputs.

    Parameters
    ----------
    model : the graph; it is not changed.
    merged : carry a bias to the end of its sum; otherwise each stays where it is added.

    Returns
    -------
    found : `{tensor: bias}`, the tensor being the sum and the bias an array of the same rank that
        broadcasts to it, float64.
    """
    graph = prepare(model).graph
    nodes, reached = path(graph, graph.outputs, graph.inputs)
    found: dict[ir.Value, Numbers] = {}
    for node in nodes:
        sources = [v for v in node.inputs if v is not None and v in reached]
        (y, *others) = node.outputs
        if len(sources) != 1 or others or y.shape is None:
            continue
        x, rank = sources[0], len(y.shape)
        carried, own = _carried(node, x, rank), _own(node, x, rank)
        alone = len(x.consumers()) == 1 and not x.is_graph_output()
        if merged and alone and x in found and carried is not None:
            moved = carried(found.pop(x))
            own = moved if own is None else moved + own
        if own is not None and own.any():
            found[y] = own
    names = _names(model)
    return {v.name: bias for v, bias in found.items() if v.name in names}


def bounds(model: onnx.ModelProto) -> dict[str, tuple[float, ...]]:
    """Find the values at which activations are cut off, such as 6 for ReLU6; zero is none.

    Returns
    -------
    found : `{tensor: bounds}`. Where the tensor has such a value, it is a constant.
    """
    graph, names = prepare(model).graph, _names(model)
    found = {}
    for node in path(graph, graph.outputs, graph.inputs)[0]:
        if node.op_type in ("Clip", "Min", "Max"):
            constants = [array(value) for value in node.inputs]
            scalars = [float(c.reshape(())) for c in constants if c is not None and c.size == 1]
            if given := tuple(bound for bound in scalars if bound and np.isfinite(bound)):
                found[node.outputs[0].name] = given
    return {name: given for name, given in found.items() if name in names}


def origins(model: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """Find from the values of which inputs each tensor follows; their shapes do not count.

    Returns
    -------
    found : `{tensor: inputs}`, without tensors that follow from none.
    """
    graph, names = prepare(model).graph, _names(model)
    found: dict[str, frozenset[str]] = {}
    for given in graph.inputs:
        for value in path(graph, graph.outputs, [given])[1]:
            if value.name in names:
                found[value.name] = found.get(value.name, frozenset()) | {given.name or ""}
    return found


def _names(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


def _own(node: ir.Node, x: ir.Value, rank: int) -> Numbers | None:
    """Return what a node adds to its only input that is no constant."""
    op, constants = node.op_type, [array(v) for v in node.inputs]
    if op == "BatchNormalization":
        found = affine(node)
        return None if found is None else _on_channels(found[1], rank)
    if op in _BY_CHANNEL or op in ("Gemm", "LayerNormalization"):
        bias = constants[2] if len(constants) > 2 else None
        if bias is None:
            return None
        if op in _BY_CHANNEL:
            return _on_channels(bias.astype(np.float64), rank)
        factor = float_attr(node, "beta", 1.0) if op == "Gemm" else 1.0
        return _ranked(factor * bias.astype(np.float64), rank)
    if op in ("Add", "Sub", "Sum") and any(c is not None for c in constants):
        total = np.asarray(sum(c.astype(np.float64) for c in constants if c is not None))
        return _ranked(-total if op == "Sub" and node.inputs[0] is x else total, rank)
    return None


def _carried(node: ir.Node, x: ir.Value, rank: int) -> Callable[[Numbers], Numbers] | None:
    """Return what a node makes of the bias of its input, None where the sum ends before it."""
    op = node.op_type
    if op in ("Mul", "Div"):
        factor = array(node.inputs[1] if node.inputs[0] is x else node.inputs[0])
        if factor is None or (op == "Div" and node.inputs[1] is x):
            return None
        scale = factor.astype(np.float64) ** (1 if op == "Mul" else -1)
        return lambda bias: _ranked(bias * scale, rank)
    if op == "BatchNormalization":
        found = affine(node)
        along_channels = None if found is None else _on_channels(found[0], rank)
        return None if along_channels is None else lambda bias: bias * along_channels
    if op == "Transpose":
        order = ints_attr(node, "perm", list(range(rank))[::-1])
        return lambda bias: bias.transpose(order)
    if op in _PASSING:
        turned = op == "Neg" or (op == "Sub" and node.inputs[1] is x)
        return lambda bias: _ranked(-bias if turned else bias, rank)
    return None


def _on_channels(values: Numbers, rank: int) -> Numbers:
    return values.reshape(1, -1, *[1] * (rank - 2))


def _ranked(values: Numbers, rank: int) -> Numbers:
    return values.reshape(*[1] * (rank - values.ndim), *values.shape)

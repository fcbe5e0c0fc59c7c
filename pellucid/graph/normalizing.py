"""Layer normalisation that an exporter spelled out, written as the one operator that it is.

Keras exports it in a dozen operators, `tf_keras` by a BatchNormalization whose statistics are
computed, older PyTorch in nine. A rule of a layer's kind sees none of them. Whatever the spelling,
it is a function of one tensor; so what follows from a tensor and its means is evaluated on noise,
and compared with what LayerNormalization would answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.prepare import evaluate
from pellucid.graph.rules.table import float_attr
from pellucid.graph.tape import alike, array, dims

__all__ = ["name_layer_norms"]

_MEANS = frozenset(("ReduceMean", "ReduceSum"))
_VIEWS = frozenset(("Cast", "Identity", "Reshape", "Unsqueeze"))
_STEPS = _MEANS | _VIEWS | frozenset((
    "Add", "BatchNormalization", "Concat", "Div", "Expand", "Gather", "Mul", "Neg", "Pow",
    "Reciprocal", "ReduceProd", "ReduceSumSquare", "Shape", "Slice", "Sqrt", "Squeeze", "Sub",
    "Transpose",
))  # fmt: skip
_LONGEST = 64  # nodes in one spelling and what may follow it
_BATCH = 5  # rows of noise where the size of an axis is free
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Norm:
    """`scale (x - mean) / sqrt(variance + epsilon) + bias` over the last axes of x."""

    axis: int
    epsilon: float
    scale: NDArray[Any]
    bias: NDArray[Any]


def name_layer_norms(model: ir.Model, named: set[str]) -> None:
    """Write every layer normalisation as LayerNormalization.

    Parameters
    ----------
    model : is changed.
    named : tensors that keep their values and their way to the outputs.
    """
    position = {node: index for index, node in enumerate(model.graph)}
    for node in list(model.graph):
        if node.graph is not None and node.op_type in _MEANS:  # no part of one found before
            for source in _sources(node):
                if _rewritten(model, source, named, position):
                    break


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a mean may be of: its input before it was viewed in another shape, and after."""
    views, value = [], node.inputs[0]
    while value is not None:
        views.append(value)
        producer = value.producer()
        value = producer.inputs[0] if producer and producer.op_type in _VIEWS else None
    yield from (v for v in reversed(views) if v.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE))


def _rewritten(
    model: ir.Model, source: ir.Value, named: set[str], position: dict[ir.Node, int]
) -> bool:
    """Write what normalises one tensor as LayerNormalization; say whether there was any."""
    shape = dims(source)
    if shape is None or len(shape) < 2 or not isinstance(shape[-1], int):
        return False
    region = sorted(_following(source), key=lambda node: position[node])
    roots = [n for n in region if n.op_type != "Identity" and alike(dims(n.outputs[0]), shape)]
    if not roots:
        return False
    x = _noise(shape, source)
    found = evaluate(model, region, {source: x}, [root.outputs[0] for root in roots])
    epsilons = _epsilons(region)
    inside: set[ir.Node] = set()
    for root, y in zip(reversed(roots), reversed(found), strict=True):
        if root in inside or (norm := _fitted(x, y, epsilons)) is None:
            continue
        inner = _between(source, root)
        if not any(value.name in named for node in inner - {root} for value in node.outputs):
            _replace(model.graph, source, root, norm)
            inside |= inner
    for node in reversed(region):
        unused = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if node in inside and unused:
            model.graph.remove(node, safe=True)
    return bool(inside)


def _following(source: ir.Value) -> set[ir.Node]:
    """Return the nodes that compute from one tensor and constants alone."""
    known, found, waiting = {source}, set[ir.Node](), [source]
    while waiting and len(found) < _LONGEST:
        for node in waiting.pop(0).consumers():
            given = (v is None or v in known or array(v) is not None for v in node.inputs)
            if node not in found and node.op_type in _STEPS and all(given):
                found.add(node)
                known.update(node.outputs)
                waiting.extend(node.outputs)
    return found


def _between(source: ir.Value, root: ir.Node) -> set[ir.Node]:
    """Return a node and all before it that follow from one tensor."""
    found, waiting = {root}, [root]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None or value is source else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def _noise(shape: Sequence[Any], source: ir.Value) -> NDArray[Any]:
    """Draw rows of very different spread, the first of them zero."""
    assert source.dtype is not None
    sizes = [size if isinstance(size, int) else _BATCH for size in shape]
    axis = 0 if sizes[0] > 1 else 1
    spread = np.logspace(-2, 1, sizes[axis])
    spread[0] = 0
    factor = spread.reshape([-1 if index == axis else 1 for index in range(len(sizes))])
    noise = np.random.default_rng(0).standard_normal(sizes) + 0.5
    return np.asarray(noise * factor, source.dtype.numpy())


def _epsilons(region: Sequence[ir.Node]) -> list[float]:
    """Return the small constants among some nodes, one of which keeps the deviation from zero."""
    given = [float_attr(n, "epsilon", 1e-5) for n in region if n.op_type == "BatchNormalization"]
    for node in region:
        constants = [array(value) for value in node.inputs] if node.op_type == "Add" else []
        given += [float(c.reshape(())) for c in constants if c is not None and c.size == 1]
    return list(dict.fromkeys(one for one in given if 0 < one < 0.1))


def _fitted(x: NDArray[Any], y: NDArray[Any], epsilons: Sequence[float]) -> _Norm | None:
    """Return the normalisation that makes y of x, or None."""
    if y.shape != x.shape or not np.isfinite(y).all():
        return None
    for axis in range(x.ndim - 1, 0, -1):
        shape = x.shape[axis:]
        rows, answers = (one.reshape(-1, *shape).astype(np.float64) for one in (x, y))
        if len(rows) < 4:  # any answers would fit
            return None
        if rows[0].size == 1:
            continue
        axes, bias = tuple(range(1, rows.ndim)), answers[0]
        centred = rows - rows.mean(axis=axes, keepdims=True)
        variance = (centred**2).mean(axis=axes, keepdims=True)
        for epsilon in epsilons:
            hat = centred / np.sqrt(variance + epsilon)
            scale = ((answers - bias) * hat).sum(axis=0) / (hat**2).sum(axis=0)
            off = np.abs(scale * hat + bias - answers).max()
            if off <= _TOLERANCE * np.abs(answers - bias).max():
                return _Norm(axis - x.ndim, epsilon, scale.astype(x.dtype), bias.astype(x.dtype))
    return None


def _replace(graph: ir.Graph, source: ir.Value, root: ir.Node, norm: _Norm) -> None:
    """Let LayerNormalization compute what a node computes, under the same name."""
    value, stem = root.outputs[0], root.name or root.outputs[0].name
    operands = [source]
    for name, contents in (("scale", norm.scale), ("bias", norm.bias)):
        tensor = ir.tensor(contents, name=f"{stem}/{name}")
        constant = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(contents.shape),
            const_value=tensor,
        )  # fmt: skip
        graph.register_initializer(constant)
        operands.append(constant)
    result = ir.Value(name=value.name, type=value.type, shape=value.shape)
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    value.name = f"{value.name}/spelled"
    attributes = {"axis": norm.axis, "epsilon": norm.epsilon}
    made = ir.Node(
        "", "LayerNormalization", operands, outputs=[result], name=f"{stem}/layer_norm",
        attributes=ir.convenience.convert_attributes(attributes),
        metadata_props=root.metadata_props,
    )  # fmt: skip
    graph.insert_before(root, made)

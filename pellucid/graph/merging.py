"""Merging what follows a layer into the layer, so that a network is the same from every exporter.

A bias, a BatchNorm or a constant factor may stand in the convolution, behind it as an operator of
its own, or spelled out as a product and a sum, with the channels turned in between. The function is
the same, and so is its derivative; but relevance that is split among the terms of a sum depends on
what the sum is. So every convolution and dense layer takes in all that follows it channel by
channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.affine import affine_step
from pellucid.graph.rules.table import float_attr, int_attr, ints_attr
from pellucid.graph.tape import Dim, array, dims

__all__ = ["merge_affine"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
Vector = NDArray[Any]  # one number for each channel
Axes = tuple[int, ...]  # that hold the channels between them, the first one counting slowest


@dataclass(frozen=True)
class _Affine:
    """`scale * x + shift` for each channel, `(C,)`, and the nodes that compute it."""

    scale: Vector
    shift: Vector
    nodes: tuple[ir.Node, ...]


def merge_affine(model: ir.Model, named: set[str]) -> None:
    """Merge what scales and shifts the channels of a layer into the layer's weights and bias.

    Parameters
    ----------
    model : is changed.
    named : tensors that keep their values.
    """
    for node in list(model.graph):
        axis = _channel_axis_of_weights(node)
        if axis is None:
            continue
        weights, before = array(node.inputs[1]), _bias(node)
        assert weights is not None
        channels = weights.shape[axis]
        if node.op_type == "ConvTranspose":
            channels *= int_attr(node, "group", 1)
        if before is None or before.size not in (1, channels):
            continue
        found = _following(node, channels, named)
        if found.nodes:
            bias = found.scale * before.reshape(-1) + found.shift
            _write(model.graph, node, _scaled(node, weights, axis, found.scale), bias)
            for step in found.nodes:
                _drop(model.graph, step)


def _channel_axis_of_weights(node: ir.Node) -> int | None:
    """Return the axis of the output channels, or None if the node is no layer with weights."""
    weights = array(node.inputs[1]) if len(node.inputs) > 1 else None
    if weights is None or node.inputs[0] is None or array(node.inputs[0]) is not None:
        return None
    if node.op_type in _CONVOLUTIONS:
        return 0 if node.op_type == "Conv" else 1
    if node.op_type == "Gemm":
        return 0 if int_attr(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" and weights.ndim == 2 else None


def _bias(node: ir.Node) -> Vector | None:
    """Return the bias that a layer has of its own, or None if that is no constant."""
    third = node.inputs[2] if len(node.inputs) > 2 else None
    if third is None:
        return np.zeros(1)
    contents = array(third)
    return None if contents is None else np.asarray(contents, np.float64) * _beta(node)


def _beta(node: ir.Node) -> float:
    return float_attr(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0


def _scaled(node: ir.Node, weights: NDArray[Any], axis: int, scale: Vector) -> NDArray[Any]:
    if (scale == 1).all():
        return weights
    if node.op_type == "ConvTranspose":  # (C_in, C_out / groups, ...)
        groups = int_attr(node, "group", 1)
        parts = weights.reshape(groups, -1, *weights.shape[1:])
        factor = scale.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
        return np.asarray((parts * factor).reshape(weights.shape), weights.dtype)
    factor = scale.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    return np.asarray(weights * factor, weights.dtype)


# ---- what follows --------------------------------------------------------------------------------


def _following(node: ir.Node, channels: int, named: set[str]) -> _Affine:
    """Walk on from a layer as long as each channel is only scaled, shifted or moved."""
    scale, shift, nodes = np.ones(channels), np.zeros(channels), []
    value: ir.Value = node.outputs[0]
    axes: Axes | None = (1,)
    if node.op_type not in _CONVOLUTIONS:
        axes = (len(dims(value) or ()) - 1,)
    while axes is not None and dims(value):
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output() or value.name in named:
            break
        reader = uses[0].node
        step = _step(reader, value, axes, channels)
        if step is None:
            axes = _moved(reader, axes, channels)
        else:
            scale, shift = scale * step[0], shift * step[0] + step[1]
            nodes.append(reader)
        value = reader.outputs[0]
    return _Affine(scale, shift, tuple(nodes))


def _moved(reader: ir.Node, axes: Axes, channels: int) -> Axes | None:
    """Return where a node puts the axes of the channels, or None if it does not keep them."""
    if reader.op_type == "Identity":
        return axes
    before, after = (dims(one) if one else None for one in (reader.inputs[0], reader.outputs[0]))
    if before is None or after is None:
        return None
    if reader.op_type == "Transpose":
        order = ints_attr(reader, "perm", list(range(len(before)))[::-1])
        return tuple(order.index(axis) for axis in axes)
    if reader.op_type in ("Squeeze", "Unsqueeze"):
        given = array(reader.inputs[1]) if len(reader.inputs) > 1 else None
        if given is None:
            return None
        rank = max(len(before), len(after))
        changed = {int(one) % rank for one in given.reshape(-1)}
        if reader.op_type == "Squeeze":
            return tuple(axis - sum(one < axis for one in changed) for axis in axes)
        kept = [one for one in range(rank) if one not in changed]
        return tuple(kept[axis] for axis in axes)
    if reader.op_type == "Reshape" and _last(before, channels) == axes:
        return _last(after, channels)
    return None


def _last(shape: Sequence[Dim], channels: int) -> Axes | None:
    """Return the last axes of a shape that hold the channels between them, as heads do."""
    axes: list[int] = []
    held = 1
    for axis, size in reversed(list(enumerate(shape))):
        if held == channels or not isinstance(size, int):
            break
        held *= size
        axes += [axis] if size > 1 else []
    return tuple(reversed(axes)) if held == channels else None


def _step(
    reader: ir.Node, value: ir.Value, axes: Axes, channels: int
) -> tuple[Vector, Vector] | None:
    """Return factor and summand of each channel, or None if a node is no such map."""
    found, shape = affine_step(reader, value), dims(value)
    if found is None or shape is None:
        return None
    scale, shift = (_per_channel(one, shape, axes, channels) for one in found)
    return None if scale is None or shift is None else (scale, shift)


def _per_channel(
    contents: NDArray[Any], shape: Sequence[Dim], axes: Axes, channels: int
) -> Vector | None:
    if contents.ndim > len(shape):
        return None
    own = (1,) * (len(shape) - contents.ndim) + contents.shape
    others = [index for index in range(len(own)) if index not in axes]
    sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
    if any(own[index] != 1 for index in others) or np.prod(sizes) != channels:
        return None
    held = np.asarray(contents, np.float64).reshape(own).transpose([*axes, *others])
    return np.broadcast_to(held.reshape([own[axis] for axis in axes]), sizes).reshape(-1)


# ---- writing -------------------------------------------------------------------------------------


def _write(graph: ir.Graph, node: ir.Node, weights: NDArray[Any], bias: Vector) -> None:
    """Give a layer its weights and bias; a matrix product gets its bias in a sum behind it."""
    stem, value = node.name or node.outputs[0].name or "layer", node.outputs[0]
    bias = np.asarray(bias, weights.dtype)
    if weights is not array(node.inputs[1]):
        node.replace_input_with(1, _initializer(graph, f"{stem}/weights", weights))
    if node.op_type != "MatMul":
        node.resize_inputs(3)
        node.replace_input_with(2, _initializer(graph, f"{stem}/bias", bias))
        if node.op_type == "Gemm":
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        return
    result = ir.Value(name=f"{value.name}/biased", type=value.type, shape=value.shape)
    value.replace_all_uses_with(result)
    inputs = (value, _initializer(graph, f"{stem}/bias", bias))
    graph.insert_after(node, ir.Node("", "Add", inputs, outputs=[result], name=f"{stem}/add"))


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    """Take a node out; what it read bears its result's name."""
    result = node.outputs[0]
    value = next(one for one in node.inputs if one is not None and array(one) is None)
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    name = result.name
    graph.remove(node, safe=True)
    value.name = name


def _initializer(graph: ir.Graph, name: str, contents: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(contents, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(contents.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value

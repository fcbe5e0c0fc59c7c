"""What every tensor of an ONNX graph holds for one sample: element type and shape.

Sizes that a file leaves open are needed to count anything. The batch is taken as one, other free
sizes as those of a usual image. Which axes grow with the batch shows when the same is inferred
for another batch size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TypeProto, ValueInfoProto

from pellucid.graph.prepare import unfused
from pellucid.graph.protobuf import Shape, dimensions, real_inputs, skeleton_of
from pellucid.graph.shape_values import shape_values

__all__ = ["TensorType", "known_shapes", "tensor_types"]

_FREE_SIZE = 224
_ROUNDS = 5
_PRODUCT = re.compile(r"(\d+)\*(\w+)|(\w+)\*(\d+)")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor for one sample.

    Attributes
    ----------
    shape : sizes for a batch of one, None where unknown.
    symbolic : the same with None for axes that grow with the batch.
    dtype : NumPy name of the element type.
    """

    shape: Shape
    symbolic: Shape
    dtype: str = "float32"

    @property
    def count(self) -> int | None:
        """Number of elements for one sample."""
        total = 1
        for size in self.shape:
            if size is None:
                return None
            total *= size
        return total

    @property
    def bytes(self) -> int:
        """Size for one sample, zero where unknown."""
        try:
            width = np.dtype(self.dtype).itemsize
        except TypeError:
            width = 2 if "16" in self.dtype else 1
        return (self.count or 0) * width


def known_shapes(model: ModelProto) -> dict[str, Shape]:
    """Infer the shape of every tensor that has a known rank; open sizes are None.

    Large weights are left out of what is inferred from, which is faster and works for models
    above the two gigabytes of protobuf.
    """
    skeleton = _skeleton(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # a graph that inference cannot follow still runs; its shapes stay unknown
        inferred = skeleton.graph
    known: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = dimensions(value)
        if shape is not None:
            known[value.name] = shape
    return known


def _skeleton(model: ModelProto) -> ModelProto:
    """What is inferred from: onnx knows no shapes behind an operator of a runtime's own."""
    skeleton = skeleton_of(model)
    try:
        return unfused(skeleton)
    except Exception:  # what cannot be opened keeps the shapes that the file gives
        return skeleton


def tensor_types(
    model: ModelProto,
    sizes: Mapping[str, Shape] | None = None,
    known: Mapping[str, Shape] | None = None,
) -> dict[str, TensorType]:
    """Infer the type of every tensor that has a known rank.

    Parameters
    ----------
    sizes : shapes of inputs, batch included, where they are known better than in the file.
    known : shapes of inner tensors that the framework knows; None in first place is the batch.
    """
    one, two = (_inferred(model, batch, sizes or {}, known or {}) for batch in (1, 3))
    found = {}
    for name, (dtype, shape) in one.items():
        other = two.get(name, (dtype, shape))[1]
        same = len(other) == len(shape)
        symbolic = tuple(
            size if same and size == larger else None
            for size, larger in zip(shape, other if same else shape, strict=True)
        )
        found[name] = TensorType(shape, symbolic if same else (None,) * len(shape), dtype)
    for tensor in model.graph.initializer:
        shape = tuple(tensor.dims)
        found[tensor.name] = TensorType(shape, shape, _dtype(tensor.data_type))
    return found


def _inferred(
    model: ModelProto, batch: int, sizes: Mapping[str, Shape], known: Mapping[str, Shape]
) -> dict[str, tuple[str, Shape]]:
    skeleton = _skeleton(model)
    graph = skeleton.graph
    inputs = {value.name for value in real_inputs(model.graph)}
    symbols: dict[str, int] = {}
    ports = [shape for v in graph.input if v.name in inputs and (shape := dimensions(v))]
    batch = next((shape[0] for shape in ports if shape[0]), batch)  # where a file fixes it
    for value in graph.input:
        if value.name in inputs:
            _fix_input(value, batch, sizes.get(value.name, ()), symbols)
    for value in (*graph.value_info, *graph.output):
        _fix(value.type, symbols)
    for value in graph.value_info:
        shape = known.get(value.name)
        if shape and value.type.tensor_type.elem_type:
            kind = value.type.tensor_type.elem_type
            full = [batch if axis == 0 else size for axis, size in enumerate(shape)]
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, full))
    found: dict[str, tuple[str, Shape]] = {}
    for _ in range(_ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        except Exception:  # what inference cannot follow keeps the shapes that the file gives
            inferred = graph
        found = {
            value.name: (_dtype(value.type.tensor_type.elem_type), shape)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if (shape := dimensions(value)) is not None
        }
        names = [name for node in graph.node for name in node.output if name]
        if all(name in found and None not in found[name][1] for name in names):
            break
        if not _put_values(graph, {name: shape for name, (_, shape) in found.items()}):
            break
    return found


def _put_values(graph: GraphProto, shapes: Mapping[str, Shape]) -> bool:
    """Replace shape arithmetic by its results; say whether there was any."""
    values = shape_values(graph, shapes)
    kept = [node for node in graph.node if not values.keys() >= {n for n in node.output if n}]
    gone = {name for node in graph.node for name in node.output} - {
        name for node in kept for name in node.output
    }
    if not gone:
        return False
    del graph.node[:]
    graph.node.extend(kept)
    infos = [info for info in graph.value_info if info.name not in gone]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(values[name], name) for name in gone if name in values
    )
    return True


def _fix_input(value: ValueInfoProto, batch: int, known: Shape, symbols: dict[str, int]) -> None:
    """Give every open size of an input a number, and note which symbol it stands for."""
    dims = value.type.tensor_type.shape.dim
    for axis, dim in enumerate(dims):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            continue
        size = known[axis] if axis < len(known) and axis and known[axis] else None
        number = batch if axis == 0 else size or _FREE_SIZE
        if dim.dim_param:
            symbols.setdefault(dim.dim_param, number)
        dim.dim_value = number


def _fix(kind: TypeProto, symbols: Mapping[str, int]) -> None:
    for dim in kind.tensor_type.shape.dim:
        if not dim.HasField("dim_param"):
            continue
        name, factor = dim.dim_param.replace(" ", ""), 1
        if match := _PRODUCT.fullmatch(name):
            factor, name = int(match[1] or match[4]), match[2] or match[3]
        if name in symbols:
            dim.dim_value = factor * symbols[name]
        else:
            dim.Clear()


def _dtype(element: int) -> str:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)).name
    except (KeyError, TypeError, ValueError):
        return "unknown"

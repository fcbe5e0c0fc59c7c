"""Shape arithmetic carried out.

Frameworks compute the target of a reshape with a dozen small operations on the shape of some
tensor. Once that shape is known these are numbers, and shape inference gets past the reshape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, numpy_helper

from pellucid.graph.protobuf import Shape, constants

__all__ = ["shape_values"]

# Nothing here makes more elements than it is given, so no file can make this expensive.
_ARITHMETIC = frozenset((
    "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Max", "Min", "Floor", "Ceil", "Cast",
    "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Identity", "ReduceProd",
    "ReduceSum", "ReduceMax", "ReduceMin", "Equal", "Where", "Less", "Greater", "Not", "Sqrt",
    "Transpose", "Split",
))  # fmt: skip
_MOST = 64  # elements of a shape or of what is computed from it


def shape_values(graph: GraphProto, shapes: Mapping[str, Shape]) -> dict[str, NDArray[np.generic]]:
    """Compute what depends on known shapes only.

    Parameters
    ----------
    graph : its nodes in an order in which they can be computed.
    shapes : of tensors, as far as they are known.

    Returns
    -------
    dict
        `{tensor: value}` of all results of shape arithmetic.
    """
    from onnx.reference import ReferenceEvaluator

    known = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in constants(graph).items()
        if np.prod(tensor.dims, initial=1) <= _MOST and not tensor.external_data
    }
    shapes = {**shapes, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    found: dict[str, NDArray[np.generic]] = {}
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            shape = shapes.get(node.input[0])
            if shape is not None and None not in shape:
                found[node.output[0]] = known[node.output[0]] = _measured(node, shape)
        elif node.op_type in _ARITHMETIC and all(n in known for n in node.input if n):
            if not any(name in found for name in node.input):
                continue
            try:
                feed = {name: known[name] for name in node.input if name}
                results = ReferenceEvaluator(node).run(None, feed)
            except Exception:  # an operator that the reference lacks stays unknown
                continue
            for name, value in zip(node.output, results, strict=False):
                array = np.asarray(value)
                if array.size <= _MOST:
                    found[name] = known[name] = array
    return found


def _measured(node: NodeProto, shape: Shape) -> NDArray[np.generic]:
    if node.op_type == "Size":
        return np.asarray(np.prod(np.asarray(shape, np.int64)), np.int64)
    bounds = {a.name: a.i for a in node.attribute}
    return np.asarray(shape, np.int64)[bounds.get("start", 0) : bounds.get("end", len(shape))]

"""Nodes that multiply each number by a constant and add another to it, however they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.rules.normalization import affine
from pellucid.graph.tape import array, dims

__all__ = ["Numbers", "affine_step", "on_channels"]

Numbers = NDArray[Any]

_NONE = np.zeros(())
_ONE = np.ones(())


def affine_step(node: ir.Node, x: ir.Value) -> tuple[Numbers, Numbers] | None:
    """Return factor and summand by which a node makes its result of x.

    Returns
    -------
    factor, summand : float64 arrays that broadcast to x; None if the node is no such map.
    """
    op = node.op_type
    if op == "BatchNormalization":
        found, shape = affine(node), dims(x)
        if found is None or shape is None:
            return None
        return on_channels(found[0], len(shape)), on_channels(found[1], len(shape))
    if op not in ("Add", "Div", "Mul", "Sub", "Sum"):
        return None
    others = [array(value) for value in node.inputs if value is not x]
    constants = [np.asarray(one, np.float64) for one in others if one is not None]
    first = node.inputs[0] is x
    if len(constants) != len(node.inputs) - 1 or (op == "Div" and not first):
        return None
    if op in ("Add", "Sum"):
        return _ONE, sum(constants, _NONE)
    (constant,) = constants
    if op == "Sub":
        return (_ONE, -constant) if first else (-_ONE, constant)
    return (constant if op == "Mul" else 1 / constant), _NONE


def on_channels(values: Numbers, rank: int) -> Numbers:
    """View one number per channel, `(C,)`, as `(1, C, 1, ...)`."""
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (rank - 2))

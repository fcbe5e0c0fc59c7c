"""Staying in the runtime's own layout between convolutions.

onnxruntime keeps tensors between convolutions in blocks of channels. Convolutions, products and
sums know that layout; a comparison, a choice or a view costs a reordering there and one back.
Half the time of a naive backward pass goes into these, so masks are written by operators that
know the layout, and a cotangent that comes from elsewhere is brought into it once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pellucid.graph.tape import Tape, dims

__all__ = [
    "channels",
    "channels_first",
    "channels_last",
    "in_blocks",
    "step",
    "step_below",
    "to_blocks",
]

BLOCK = 16  # channels that the runtime keeps together, at most
_KEEPING = {
    "BatchNormalization", "Clip", "HardSigmoid", "Identity", "MaxPool", "Relu", "Sigmoid", "Tanh",
}  # fmt: skip


def channels(value: ir.Value) -> int | None:
    """Number of channels of an image-like value that may be kept in blocks."""
    shape = dims(value) or ()
    count = shape[1] if len(shape) == 4 else None
    return count if isinstance(count, int) and count % BLOCK == 0 else None


def in_blocks(t: Tape, value: ir.Value) -> bool:
    """Whether the runtime will likely hold a value in blocks of channels."""
    if value not in t.blocks:
        t.blocks[value] = _in_blocks(t, value)
    return t.blocks[value]


def _in_blocks(t: Tape, value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Conv":
        weight = node.inputs[1]
        shape = (dims(weight) if weight is not None else None) or (0,)
        group = node.attributes.get("group")
        dense = group is None or group.as_int() in (1, shape[0])
        return dense and len(shape) == 4 and isinstance(shape[0], int) and shape[0] % BLOCK == 0
    if node.op_type in _KEEPING:
        first = node.inputs[0]
        return first is not None and in_blocks(t, first)
    if node.op_type in ("Add", "Mul"):
        return all(v is not None and in_blocks(t, v) for v in node.inputs)
    return False


def to_blocks(t: Tape, g: ir.Value, count: int) -> ir.Value:
    """Bring a value of `count` channels into blocks, by a convolution that changes nothing."""
    if in_blocks(t, g):
        return g
    node = g.producer()
    if node is not None and node.op_type == "Relu" and node.inputs[0] is not None:
        return t.Relu(to_blocks(t, node.inputs[0], count))  # which fuses with the convolution
    return t.Conv(g, np.ones((count, 1, 1, 1), np.float32), group=count)


def channels_last(t: Tape, value: ir.Value) -> ir.Value:
    """View (N, C, H, W) as (N, H, W, C), where parts of an axis are moved in runs of channels."""
    return t.Transpose(value, perm=[0, 2, 3, 1])


def channels_first(t: Tape, value: ir.Value) -> ir.Value:
    """View (N, H, W, C) as (N, C, H, W); the runtime joins this with its own reordering."""
    return t.Transpose(value, perm=[0, 3, 1, 2])


def step(t: Tape, y: ir.Value) -> ir.Value:
    """1 where y > 0, else 0: a product with the greatest number, cut at 0 and 1, in one pass."""
    return t.HardSigmoid(y, alpha=float(np.finfo(np.float32).max), beta=0.0)


def step_below(t: Tape, y: ir.Value, bound: float) -> ir.Value:
    """1 where y < bound, else 0; a power of two keeps the product at the bound exact."""
    return t.HardSigmoid(y, alpha=-(2.0**120), beta=bound * 2.0**120)

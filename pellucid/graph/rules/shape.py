"""Operators that move elements without choosing among them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from pellucid.graph.rules.rectifier import operand, output
from pellucid.graph.rules.table import Cotangents, int_attr, ints_attr, rule, str_attr
from pellucid.graph.tape import Tape, array, dims


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.reshape_like(g, operand(node)),)


@rule("Transpose")
def transpose(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    default = range(t.rank(operand(node)) - 1, -1, -1)
    order = ints_attr(node, "perm", default)
    return (t.Transpose(g, perm=[int(a) for a in np.argsort(order)]),)


@rule("Expand")
def expand(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.unbroadcast(g, output(node), operand(node)),)


@rule("Concat")
def concat(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    parts = [value for value in node.inputs if value is not None]
    axis = int_attr(node, "axis", 0)
    if len(parts) == 1:
        return (g,)
    lengths = [t.size(part, axis) for part in parts]
    known = [array(length) for length in lengths]
    if all(length is not None for length in known):
        sizes = [int(length[0]) for length in known if length is not None]
        if all(part in t.wanted for part in parts):
            return tuple(t.write_many("Split", len(parts), g, sizes, axis=axis))
        edges = [int(edge) for edge in np.cumsum([0, *sizes])]
        bounds = [([a], [b]) for a, b in pairwise(edges)]
        return [
            t.Slice(g, *bound, [axis]) if part in t.wanted else None
            for bound, part in zip(bounds, parts, strict=True)
        ]
    split = t.Concat(*lengths, axis=0)
    return tuple(t.write_many("Split", len(parts), g, split, axis=axis))


@rule("Split")
def split(t: Tape, node: ir.Node, *gs: ir.Value | None) -> Cotangents:
    parts = [t.zeros(out) if g is None else g for g, out in zip(gs, node.outputs, strict=True)]
    return (t.Concat(*parts, axis=int_attr(node, "axis", 0)),)


@rule("DepthToSpace")
def depth_to_space(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    block, x = int_attr(node, "blocksize", 1), operand(node)
    if str_attr(node, "mode", "DCR") == "DCR":
        return (t.SpaceToDepth(g, blocksize=block),)
    # (N, C, h b, w b) -> (N, C, h, b, w, b) -> (N, C, b, b, h, w) -> (N, C b b, h, w)
    rows, columns = t.size(x, 2), t.size(x, 3)
    channels = t.size(output(node), 1)
    tiles = t.Reshape(g, t.Concat(t.size(x, 0), channels, rows, [block], columns, [block], axis=0))
    return (t.reshape_like(t.Transpose(tiles, perm=[0, 1, 3, 5, 2, 4]), x),)


@rule("SpaceToDepth")
def space_to_depth(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.DepthToSpace(g, blocksize=int_attr(node, "blocksize", 1)),)


@rule("Tile")
def tile(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    x, repeats = operand(node), operand(node, 1)
    rank = t.rank(x)
    # (r0 d0, r1 d1, ...) -> (r0, d0, r1, d1, ...), summed over the repeats
    pairs = t.Concat(t.Unsqueeze(repeats, [1]), t.Unsqueeze(t.shape(x), [1]), axis=1)  # (rank, 2)
    apart = t.Reshape(g, t.Reshape(pairs, [-1]))
    return (t.ReduceSum(apart, list(range(0, 2 * rank, 2)), keepdims=0),)


@rule("Trilu")
def trilu(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    return (t.Trilu(g, *node.inputs[1:], upper=int_attr(node, "upper", 1)),)


@rule("ReverseSequence")
def reverse_sequence(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    axes = {
        "batch_axis": int_attr(node, "batch_axis", 1),
        "time_axis": int_attr(node, "time_axis", 0),
    }
    return (t.ReverseSequence(g, operand(node, 1), **axes),)


@rule("CumSum")
def cumulative_sum(t: Tape, node: ir.Node, g: ir.Value) -> Cotangents:
    reverse, exclusive = int_attr(node, "reverse", 0), int_attr(node, "exclusive", 0)
    return (t.CumSum(g, operand(node, 1), reverse=1 - reverse, exclusive=exclusive),)


def length(value: ir.Value, axis: int) -> int | None:
    """Length of an axis where it is known."""
    known = dims(value)
    found = known[axis] if known is not None else None
    return found if isinstance(found, int) else None

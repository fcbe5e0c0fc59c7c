"""Where the channels of each tensor of an ONNX graph are.

ONNX computes with channels first. Graphs that come from TensorFlow take pictures with channels
last, and turn them, and sometimes what comes out, by `Transpose` nodes; between these nodes and
the ends lie tensors with their channels last.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from pellucid.graph.protobuf import Shape

__all__ = ["channel_axes"]

_CHANNELS_FIRST = frozenset((
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "BatchNormalization",
    "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization", "LRN",
    "MaxUnpool", "DepthToSpace", "SpaceToDepth", "QLinearConv", "ConvInteger", "GroupNormalization",
))  # fmt: skip


# A new order of the values: what an axis means afterwards is anyone's guess.
_REARRANGED = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Einsum", "Gather", "GatherND",
))  # fmt: skip


def channel_axes(
    graph: GraphProto, known: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape]
) -> dict[str, tuple[int, ...]]:
    """Return for each tensor the permutation from channels first to its own axes, () for none.

    Tensors of which nothing is known, like the tokens of a transformer, are left out.

    Parameters
    ----------
    graph : the graph, its nodes in order.
    known : tensors whose axes are known: the inputs, and others that win over what follows here.
    shapes : of the tensors, as far as they are known.
    """
    found = dict(known)
    for node in graph.node:
        for name in node.output:
            axes = None if name in known else _axes(node, name, found, shapes)
            if name and axes is not None:
                found[name] = axes
    return found


def _axes(
    node: NodeProto,
    name: str,
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, Shape],
) -> tuple[int, ...] | None:
    if node.op_type in _CHANNELS_FIRST:
        return ()
    if node.op_type in _REARRANGED:
        return None
    if node.op_type == "Transpose":
        if node.input[0] not in found:
            return None
        order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
        before = found[node.input[0]] or tuple(range(len(order)))
        if len(before) != len(order):
            return None
        after = tuple(before[axis] for axis in order)
        if after == tuple(range(len(after))):
            return ()
        return after if after == (0, *range(2, len(after)), 1) else None
    rank = len(shapes[name]) if name in shapes else None
    sources = [found[source] for source in node.input if source in found]
    turned = (axes for axes in sources if axes and rank in (None, len(axes)))
    return next(turned, () if sources else None)

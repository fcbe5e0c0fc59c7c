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


def channel_axes(
    graph: GraphProto, known: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape]
) -> dict[str, tuple[int, ...]]:
    """Return for each tensor the permutation from channels first to its own axes, () for none.

    Parameters
    ----------
    graph : the graph, its nodes in order.
    known : tensors whose axes are known: the inputs, and others that win over what follows here.
    shapes : of the tensors, as far as they are known.
    """
    found = dict(known)
    for node in graph.node:
        for name in node.output:
            if name and name not in known:
                found[name] = _axes(node, name, found, shapes)
    return found


def _axes(
    node: NodeProto,
    name: str,
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, Shape],
) -> tuple[int, ...]:
    if node.op_type in _CHANNELS_FIRST:
        return ()
    sources = [source for source in node.input if source in found]
    if node.op_type == "Transpose":
        order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
        before = found.get(node.input[0], ()) or tuple(range(len(order)))
        if len(before) != len(order):
            return ()
        after = tuple(before[axis] for axis in order)
        return after if after == (0, *range(2, len(after)), 1) else ()
    rank = len(shapes[name]) if name in shapes else None
    ranked = (found[source] for source in sources if found[source])
    return next((axes for axes in ranked if rank in (None, len(axes))), ())

"""Sequences of tensors written as the tensors themselves.

PyTorch's exporter writes `split` and `chunk` as a sequence from which parts are taken by their
number. Where the lengths are known, that is a Split, which has a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

from pellucid.graph.rules.shape import length
from pellucid.graph.rules.table import int_attr

__all__ = ["open_sequences"]

_MAKERS = (
    "SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase",
)  # fmt: skip
_READERS = ("SequenceAt", "SequenceLength", "ConcatFromSequence")
_Parts = dict[ir.Value, "list[ir.Value] | None"]


def open_sequences(graph: ir.Graph) -> bool:
    """Let whoever reads a sequence of known parts read these; return whether anybody did.

    Tensors keep their names. Shapes and element types must have been inferred.
    """
    known: _Parts = {}
    opened = [node for node in list(graph) if node.op_type in _READERS and _opened(node, known)]
    for node in reversed(list(graph)):
        if node.op_type in _MAKERS and not any(
            v.uses() or v.is_graph_output() for v in node.outputs
        ):
            graph.remove(node, safe=True)
    return bool(opened)


def _opened(node: ir.Node, known: _Parts) -> bool:
    parts = _parts(node.inputs[0], known)
    if parts is None:
        return False
    if node.op_type == "SequenceLength":
        _become(node, "Constant", [], [ir.AttrTensor("value", ir.tensor(np.int64(len(parts))))])
        return True
    if node.op_type == "SequenceAt":
        position = _number(node.inputs[1])
        if position is None or not -len(parts) <= position < len(parts):
            return False
        _become(node, "Identity", [parts[position]])
        return True
    axis = int_attr(node, "axis", 0)
    if int_attr(node, "new_axis", 0):
        parts = [_beside(node, "Unsqueeze", part, axis) for part in parts]
    _become(node, "Concat", parts, [ir.AttrInt64("axis", axis)])
    return True


def _become(
    node: ir.Node, operator: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
) -> None:
    node.op_type = operator
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in attributes})


def _parts(value: ir.Value | None, known: _Parts) -> list[ir.Value] | None:
    """Return the tensors of a sequence, None where they are not known before the run."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        return None
    if value not in known:
        known[value] = _made(node, known)
    return known[value]


def _made(node: ir.Node, known: _Parts) -> list[ir.Value] | None:
    if node.op_type == "SplitToSequence":
        return _split(node)
    if node.op_type in ("SequenceConstruct", "SequenceEmpty"):
        return [value for value in node.inputs if value is not None]
    before = _parts(node.inputs[0], known) if node.op_type in _MAKERS else None
    if before is None:
        return None
    last = len(before) - (node.op_type == "SequenceErase")
    at = 2 if node.op_type == "SequenceInsert" else 1
    position = _number(node.inputs[at]) if len(node.inputs) > at else last
    if position is None:
        return None
    rest = list(before)
    if node.op_type == "SequenceErase":
        del rest[position]
    elif (new := node.inputs[1]) is not None:
        rest.insert(position if position >= 0 else position + len(rest), new)
    return rest


def _split(node: ir.Node) -> list[ir.Value] | None:
    whole, axis = node.inputs[0], int_attr(node, "axis", 0)
    assert whole is not None
    assert node.graph is not None
    size, given = length(whole, axis), node.inputs[1] if len(node.inputs) > 1 else None
    lengths = _constant(given) if given is not None else np.asarray(1)
    if lengths is None:
        return None
    if lengths.ndim == 0:
        if size is None:
            return None
        step = int(lengths)
        lengths = np.asarray([min(step, size - start) for start in range(0, size, step)])
    name = node.outputs[0].name
    sizes = _constant_node(f"{name}/lengths", lengths)
    cut = ir.Node(
        "",
        "Split",
        [whole, sizes.outputs[0]],
        [ir.AttrInt64("axis", axis)],
        num_outputs=len(lengths),
        name=f"{node.name}/Split",
    )
    for index, part in enumerate(cut.outputs):
        part.name, part.type = f"{name}/{index}", whole.type
        if whole.shape is not None:
            part.shape = whole.shape.copy()
            part.shape[axis] = int(lengths[index])
    for made in (sizes, cut):
        made.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, [sizes, cut])
    if given is None and not int_attr(node, "keepdims", 1):
        return [_beside(node, "Squeeze", part, axis) for part in cut.outputs]
    return list(cut.outputs)


def _beside(node: ir.Node, operator: str, value: ir.Value, axis: int) -> ir.Value:
    """Write an operator over one axis of a value before a node."""
    assert node.graph is not None
    name = f"{value.name}/{operator}"
    axes = _constant_node(f"{name}/axes", np.asarray([axis]))
    new = ir.Node("", operator, [value, axes.outputs[0]], name=name)
    new.outputs[0].name, new.outputs[0].type = name, value.type
    node.graph.insert_before(node, [axes, new])
    return new.outputs[0]


def _constant_node(name: str, contents: NDArray[np.int64]) -> ir.Node:
    tensor = ir.tensor(contents.astype(np.int64), name=name)
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    node.outputs[0].shape = ir.Shape(contents.shape)
    return node


def _constant(value: ir.Value | None) -> NDArray[np.int64] | None:
    tensor = None if value is None else convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy(), np.int64)


def _number(value: ir.Value | None) -> int | None:
    contents = _constant(value)
    return None if contents is None else int(contents.reshape(()))

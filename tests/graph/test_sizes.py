"""Sizes that a file leaves open."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from pellucid.graph.prepare import prepare
from tests.graph.oracle import network

N = helper.make_node


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("axis", [0, 1])
def test_sizes_are_read_off_shapes_of_which_others_are_open(axis: int) -> None:
    x = np.ones((2, 5), np.float32)
    nodes = [
        N("Shape", ["x"], ["s"]), N("Cast", ["s"], ["c"], to=6),
        N("Slice", ["c", "start", "end"], ["l"]), N("Squeeze", ["l"], ["n"]),
        N("Unsqueeze", ["n", "zero"], ["u"]), N("Gather", ["u", "zero"], ["g"]),
        N("Cast", ["g"], ["r"], to=1), N("Mul", ["x", "r"], ["y"]),
    ]  # fmt: skip
    constants = {"start": np.asarray([axis]), "end": np.asarray([axis + 1])}
    model = network(nodes, {"x": x}, {**constants, "zero": np.asarray([0])}, dynamic=(0,))
    clean = prepare(model)
    assert ("Shape" in kinds(clean)) == (axis == 0)
    assert len(clean.graph) == (8 if axis == 0 else 1)
    session = onnxruntime.InferenceSession(ir.to_proto(clean).SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x * x.shape[axis])


def test_slices_along_axes_of_which_nothing_is_cut_keep_the_batch() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    ends = np.asarray([2**31 - 1, 3, 2**63 - 1])
    nodes = [
        N("Slice", ["x", "starts", "ends", "axes"], ["a"]),
        N("Slice", ["a", "zeros", "ends", "axes", "ones"], ["b"]),
        N("Slice", ["b", "zeros", "far"], ["y"]),
    ]
    constants = {
        "starts": np.asarray([0, 1, 0]), "ends": ends, "axes": np.asarray([0, 2, 1]),
        "zeros": np.zeros(3, np.int64), "ones": np.ones(3, np.int64),
        "far": np.full(3, 2**31 - 1),
    }  # fmt: skip
    model = network(nodes, {"x": x}, constants, dynamic=(0,))
    clean = prepare(model)
    assert kinds(clean) == ["Slice", "Slice", "Identity"]
    shapes = [[str(d) for d in node.outputs[0].shape or ()] for node in clean.graph]
    assert shapes == [["x0", "3", "2"]] * 3
    session = onnxruntime.InferenceSession(ir.to_proto(clean).SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x[:, :, 1:3])


def test_symbols_that_were_made_up_give_way_to_those_of_inputs() -> None:
    x = np.ones((2, 3), np.float32)
    model = network([N("Exp", ["x"], ["e"]), N("Sin", ["e"], ["y"])], {"x": x}, dynamic=(0,))
    info = helper.make_tensor_value_info
    for made_up, expected in (("unk__7", "x0"), ("rows", "rows")):
        marked = onnx.ModelProto.FromString(model.SerializeToString())
        marked.graph.value_info.append(info("e", onnx.TensorProto.FLOAT, [made_up, 3]))
        clean = prepare(marked)
        assert [str(size) for size in clean.graph[0].outputs[0].shape or ()] == [expected, "3"]

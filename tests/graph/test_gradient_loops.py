"""Scan and Loop, of a given length and of one that a counter decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from pellucid.errors import UnsupportedError
from pellucid.graph.gradient import differentiate
from tests.graph.oracle import check_by_torch, network

N = helper.make_node
RNG = np.random.default_rng(4)


def port(name: str, kind: int = 1) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "backward"])
def test_scan_is_unrolled(direction: int) -> None:
    """State and steps: h -> tanh(w h + x), with a weight from outside the body."""
    body = helper.make_graph(
        [
            N("Mul", ["h", "w"], ["m"]), N("Add", ["m", "part"], ["a"]),
            N("Tanh", ["a"], ["next"]), N("Mul", ["next", "half"], ["seen"]),
        ],
        "body", [port("h"), port("part")], [port("next"), port("seen")],
        [onnx.numpy_helper.from_array(np.float32(0.5), "half")],
    )  # fmt: skip
    nodes = [
        N("Scan", ["start", "x"], ["last", "all"], body=body, num_scan_inputs=1,
          scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=[direction],
          scan_output_directions=[direction]),
        N("Unsqueeze", ["last", "one"], ["l"]),
        N("Concat", ["all", "l"], ["y"], axis=1),
    ]  # fmt: skip
    inputs = {"start": RNG.normal(size=(2, 3)), "x": RNG.normal(size=(2, 5, 3))}
    model = network(nodes, inputs, {"w": np.asarray(0.7), "one": np.asarray([1])}, dynamic=(0,))

    def function(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for step in range(5)[:: -1 if direction else 1]:
            h = torch.tanh(float(np.float32(0.7)) * h + x[:, step])
            seen.append(h / 2)
        return torch.stack([*seen[:: -1 if direction else 1], h], 1)

    check_by_torch(model, function, inputs)


@pytest.mark.parametrize("carried", [False, True], ids=["true", "carried"])
def test_loop_of_known_length_is_unrolled(carried: bool) -> None:
    going = N("Identity", ["going"], ["on"])
    if not carried:
        yes = onnx.numpy_helper.from_array(np.asarray(True))
        going = N("Constant", [], ["on"], value=yes)
    body = helper.make_graph(
        [
            going, N("Cast", ["i"], ["f"], to=1), N("Add", ["h", "f"], ["a"]),
            N("Sin", ["a"], ["s"]), N("Mul", ["s", "x"], ["next"]), N("Exp", ["s"], ["seen"]),
        ],
        "body", [port("i", 7), port("going", 9), port("h")],
        [port("on", 9), port("next"), port("seen")],
    )  # fmt: skip
    nodes = [
        N("Loop", ["count", "start", "x"], ["last", "all"], body=body),
        N("Add", ["last", "all"], ["y"]),
    ]
    x = RNG.normal(size=(2, 3))
    constants = {"count": np.asarray(4), "start": np.asarray(True)}

    def function(x: torch.Tensor) -> torch.Tensor:
        h, seen = x, []
        for step in range(4):
            s = torch.sin(h + step)
            h = s * x
            seen.append(s.exp())
        return h + torch.stack(seen)

    check_by_torch(network(nodes, {"x": x}, constants), function, {"x": x})


def counting(
    rows: int, *, limit: int | None = None, going: list[onnx.NodeProto] | None = None
) -> list[onnx.NodeProto]:
    """Write h -> tanh(w h + x[time]) as TensorFlow writes a loop over the rows of a sequence.

    A state counts the time; the loop goes on while it is below the number of rows.
    """
    body = helper.make_graph(
        [
            N("Split", ["weights"], ["w", "b"], axis=0, num_outputs=2),
            N("Gather", ["x", "time"], ["row"]), N("MatMul", ["h", "m"], ["wh"]),
            N("Add", ["row", "wh"], ["sum"]), N("Add", ["sum", "b"], ["biased"]),
            N("Mul", ["biased", "w"], ["scaled"]), N("Tanh", ["scaled"], ["next"]),
            N("Identity", ["next"], ["seen"]), N("Add", ["time", "one"], ["later"]),
            *(going or [
                N("Cast", ["later"], ["count"], to=1), N("Cast", ["number"], ["trip"], to=1),
                N("Less", ["count", "rows"], ["early"]), N("Less", ["trip", "rows"], ["few"]),
                N("And", ["early", "few"], ["on"]),
            ]),
        ],
        "body",
        [port("number", 7), port("was", 9), port("time", 6), port("h"), port("weights")],
        [port("on", 9), port("later", 6), port("next"), port("weights"), port("seen")],
        [
            onnx.numpy_helper.from_array(np.int32(1), "one"),
            onnx.numpy_helper.from_array(np.float32(rows), "rows"),
        ],
    )  # fmt: skip
    return [
        N("Loop", ["limit" if limit else "", "begin", "start", "zeros", "both"],
          ["", "last", "", "all"], body=body, name="while"),
        N("Concat", ["all", "ending"], ["y"], axis=0),
    ]  # fmt: skip


def counted(x: np.ndarray, nodes: list[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """Network of a counting loop; the first state's batch is read off the input's shape."""
    before = [
        N("Shape", ["x"], ["shape"]), N("Cast", ["shape"], ["sizes"], to=6),
        N("Slice", ["sizes", "first", "second"], ["batch"]),
        N("Concat", ["batch", "width"], ["full"], axis=0), N("Cast", ["full"], ["long"], to=7),
        N("Expand", ["nil", "long"], ["zeros"]),
    ]  # fmt: skip
    after = [N("Unsqueeze", ["last", "axis"], ["ending"])]
    given = {
        "begin": np.asarray(True), "start": np.int32(0), "nil": np.asarray(0.0),
        "first": np.asarray([1]), "second": np.asarray([2]), "width": np.asarray([3], np.int32),
        "axis": np.asarray([0]), "m": WEIGHTS, "both": BOTH, **constants,
    }  # fmt: skip
    return network([*before, nodes[0], *after, *nodes[1:]], {"x": x}, given, dynamic=(1,))


WEIGHTS, BOTH = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 3))


def recurrence(x: torch.Tensor) -> torch.Tensor:
    m, (w, b) = (torch.tensor(a.astype(np.float32)).double() for a in (WEIGHTS, BOTH))
    h, seen = torch.zeros_like(x[0]), []
    for row in x:
        h = torch.tanh((row + h @ m + b) * w)
        seen.append(h)
    return torch.stack([*seen, h])


@pytest.mark.parametrize("limit", [None, 3, 4, 2**62])
def test_loop_that_counts_to_a_constant_is_unrolled(limit: int | None) -> None:
    x = RNG.normal(size=(4, 2, 3))
    model = counted(x, counting(4, limit=limit), **({"limit": np.asarray(limit)} if limit else {}))
    check_by_torch(model, lambda x: recurrence(x[:limit]), {"x": x})


def test_unrolled_loop_reads_each_step_once_and_keeps_no_arithmetic_of_shapes() -> None:
    x = RNG.normal(size=(6, 2, 3))
    gradient = differentiate(counted(x, counting(6)), ["y"], ["x"])
    kinds = [node.op_type for node in gradient.model.graph]
    assert not {"Loop", "Gather", "Pad", "NonZero", "ReduceSum", "Less"} & set(kinds)
    assert kinds.count("Split") == 3  # of the input; of the cotangent, and that of all steps
    assert kinds.count("Shape") == 1  # of the free batch
    (given,) = (value for value in gradient.model.graph.outputs if value.name == "grad/x")
    assert [str(size) for size in given.shape or ()] == ["6", "x1", "3"]


def test_loop_of_many_steps_is_refused_with_their_number() -> None:
    model = counted(RNG.normal(size=(600, 1, 3)), counting(600))
    with pytest.raises(UnsupportedError, match=r"Loop \(node 'while'.*more than 512 steps.*native"):
        differentiate(model, ["y"], ["x"])


def test_loop_that_activations_end_is_refused() -> None:
    until = [N("ReduceSum", ["next"], ["total"], keepdims=0), N("Less", ["total", "rows"], ["on"])]
    model = counted(RNG.normal(size=(4, 2, 3)), counting(4, going=until))
    with pytest.raises(UnsupportedError, match=r"Loop .node 'while'.*no activation may end it"):
        differentiate(model, ["y"], ["x"])

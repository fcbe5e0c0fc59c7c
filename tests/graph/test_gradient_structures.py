"""Recurrent layers, constant branches and operators that ONNX itself spells out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from pellucid.errors import UnsupportedError
from pellucid.graph.gradient import differentiate
from tests.graph.oracle import check_by_torch, network, pulled_back

N = helper.make_node
RNG = np.random.default_rng(4)


def gates(kind: str, value: torch.Tensor) -> np.ndarray:
    """Reorder torch's gates to ONNX's: LSTM i f g o -> i o f g, GRU r z n -> z r n."""
    order = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[kind]
    parts = np.split(value.detach().numpy(), len(order))
    return np.concatenate([parts[i] for i in order])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("used", ["sequence", "last state"])
def test_recurrent_layer_is_unrolled(kind: str, both: bool, used: str) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(3, 4, bidirectional=both).double()
    ends = ["", "_reverse"] if both else [""]

    def stacked(name: str) -> np.ndarray:
        return np.stack([gates(kind, getattr(layer, name + end)) for end in ends])

    bias = np.concatenate([stacked("bias_ih_l0"), stacked("bias_hh_l0")], 1)
    constants = {"w": stacked("weight_ih_l0"), "r": stacked("weight_hh_l0"), "b": bias}
    attributes: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if both else "forward"
    nodes = [
        N(kind, ["x", "w", "r", "b"], ["s", "h"], hidden_size=4, direction=direction, **attributes)
    ]
    nodes += [N("Identity", ["s" if used == "sequence" else "h"], ["y"])]
    x = RNG.normal(size=(5, 2, 3))

    def function(x: torch.Tensor) -> torch.Tensor:
        y, state = layer(x)
        if used == "last state":
            return state[0] if kind == "LSTM" else state
        return y.reshape(5, 2, len(ends), 4).transpose(1, 2)

    model = network(nodes, {"x": x}, constants, dynamic=(1,))
    check_by_torch(model, function, {"x": x})


def test_recurrent_layer_with_the_batch_first_and_a_first_state() -> None:
    x, h = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 1, 4))
    constants = {"w": RNG.normal(size=(1, 12, 3)), "r": RNG.normal(size=(1, 12, 4))}
    nodes = [N("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=4, layout=1)]
    swapped = [
        N("Transpose", ["x"], ["a"], perm=[1, 0, 2]),
        N("Transpose", ["h"], ["b"], perm=[1, 0, 2]),
        N("GRU", ["a", "w", "r", "", "", "b"], ["c"], hidden_size=4),
        N("Transpose", ["c"], ["y"], perm=[2, 0, 1, 3]),
    ]
    inputs = {"x": x, "h": h}
    g = RNG.normal(size=(2, 5, 1, 4))
    found = [
        pulled_back(network(n, inputs, constants), inputs, {"y": g}, ["x", "h"], fetch=[])
        for n in (nodes, swapped)
    ]
    for name in inputs:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)
        assert np.abs(found[0][name]).max() > 0


@pytest.mark.parametrize("chosen", [["Relu"], ["HardSigmoid"], ["Softsign", "Elu"]], ids=str)
def test_recurrent_layer_with_other_activations(chosen: list[str]) -> None:
    x = RNG.normal(size=(5, 2, 3))
    ways = len(chosen)
    w, r = RNG.normal(size=(ways, 4, 3)), RNG.normal(size=(ways, 4, 4))
    direction = "bidirectional" if ways == 2 else "forward"
    nodes = [N("RNN", list("xwr"), ["y"], hidden_size=4, direction=direction, activations=chosen)]
    functions = {
        "Relu": torch.relu, "Softsign": nn.functional.softsign, "Elu": nn.functional.elu,
        "HardSigmoid": lambda z: (0.2 * z + 0.5).clamp(0, 1),
    }  # fmt: skip

    def function(x: torch.Tensor) -> torch.Tensor:
        columns = []
        for way, (name, *weights) in enumerate(zip(chosen, w, r, strict=True)):
            a, b = (torch.tensor(m.astype(np.float32)).double().T for m in weights)
            h, seen = torch.zeros(2, 4).double(), []
            for row in x.flip(0) if way else x:
                h = functions[name](row @ a + h @ b)
                seen.append(h)
            columns.append(torch.stack(seen[:: -1 if way else 1]))
        return torch.stack(columns, 1)

    check_by_torch(network(nodes, {"x": x}, {"w": w, "r": r}, dynamic=(1,)), function, {"x": x})


@pytest.mark.parametrize("taken", [True, False])
def test_constant_branch_is_taken(taken: bool) -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info("o", 1, None)]
        return helper.make_graph([N(op, ["x"], ["i"]), N("Exp", ["i"], ["o"])], op, [], out)

    nodes = [
        N("If", ["c"], ["h"], name="if", then_branch=branch("Sin"), else_branch=branch("Cos")),
        N("Identity", ["h"], ["y"]),
    ]
    x = RNG.normal(size=(2, 3))
    model = network(nodes, {"x": x}, {"c": np.asarray(taken)})
    check_by_torch(model, lambda x: (x.sin() if taken else x.cos()).exp(), {"x": x})


def port(name: str, kind: int = 1) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


RELU = [N("Relu", ["h"], ["r"])]
SPELLED = [N("Neg", ["h"], ["n"]), N("Relu", ["n"], ["q"]), N("Add", ["h", "q"], ["r"])]


def branching(
    relu: list[onnx.NodeProto] = RELU,
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Two branches over what is computed before them, chosen by the sign of a sum."""
    half = onnx.numpy_helper.from_array(np.float32(0.5), "half")
    positive = helper.make_graph(
        [*relu, N("MatMul", ["r", "w"], ["m"]), N("Add", ["m", "x"], ["o"])],
        "positive", [], [port("o")],
    )  # fmt: skip
    negative = helper.make_graph(
        [N("Sin", ["h"], ["s"]), N("Mul", ["s", "half"], ["p"])],
        "negative",
        [],
        [port("p")],
        [half],
    )
    nodes = [
        N("Sub", ["x", "one"], ["h"]), N("ReduceSum", ["x"], ["t"], keepdims=0),
        N("Greater", ["t", "zero"], ["c"]),
        N("If", ["c"], ["z"], name="if", then_branch=positive, else_branch=negative),
        N("Tanh", ["z"], ["y"]),
    ]  # fmt: skip
    constants = {"w": RNG.normal(size=(4, 4)), "one": np.asarray(1.0), "zero": np.asarray(0.0)}
    return nodes, constants


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("dynamic", [(), (0,)], ids=["static", "dynamic"])
def test_branch_that_is_taken_at_run_time(positive: bool, dynamic: tuple) -> None:
    nodes, constants = branching()
    x = np.abs(RNG.normal(size=(3, 4))) * (1 if positive else -1)
    model = network(nodes, {"x": x}, constants, dynamic=dynamic)
    before = model.SerializeToString()
    w = torch.tensor(constants["w"].astype(np.float32).astype(np.float64))

    def function(x: torch.Tensor) -> torch.Tensor:
        h = x - 1
        return (h.relu() @ w + x if x.sum() > 0 else h.sin() / 2).tanh()

    check_by_torch(model, function, {"x": x})
    assert model.SerializeToString() == before  # also the names in its branches


@pytest.mark.parametrize("relu", [RELU, SPELLED], ids=["named", "spelled"])
def test_rectifier_in_a_branch_is_guided(relu: list[onnx.NodeProto]) -> None:
    nodes, constants = branching(relu)
    x = np.abs(RNG.normal(size=(3, 4)))
    inside = [N("Relu", ["h"], ["r"]), N("MatMul", ["r", "w"], ["m"]), N("Add", ["m", "x"], ["z"])]
    plain = [nodes[0], *inside, nodes[-1]]
    g = {"y": RNG.normal(size=(3, 4))}
    found = [
        pulled_back(network(n, {"x": x}, constants), {"x": x}, g, ["x"], relu=rule)["x"]
        for n, rule in ((nodes, "guided"), (plain, "guided"), (plain, "exact"))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_branch_with_an_operator_without_a_rule_is_named() -> None:
    odd = helper.make_graph([N("Unique", ["x"], ["u"])], "odd", [], [port("u")])
    even = helper.make_graph([N("Flatten", ["x"], ["f"])], "even", [], [port("f")])
    nodes = [
        N("ReduceSum", ["x"], ["t"], keepdims=0), N("Greater", ["t", "zero"], ["c"]),
        N("If", ["c"], ["z"], name="fork", then_branch=odd, else_branch=even),
        N("Exp", ["z"], ["y"], name="behind"),
    ]  # fmt: skip
    model = network(nodes, {"x": RNG.normal(size=(2, 3))}, {"zero": np.asarray(0.0)})
    with pytest.raises(UnsupportedError, match=r"If \(node 'fork'.*Nor have Unique.*'behind'"):
        differentiate(model, ["y"], ["x"])


def test_operators_without_a_rule_are_spelled_out_by_onnx() -> None:
    nodes = [
        N("AffineGrid", ["x", "size"], ["grid"], align_corners=1),
        N("ReduceSum", ["grid", "axis"], ["y"], keepdims=0),
    ]
    constants = {"size": np.asarray([2, 1, 3, 4], np.int64), "axis": np.asarray([3], np.int64)}
    x = RNG.normal(size=(2, 2, 3))
    model = network(nodes, {"x": x}, constants, opset=20)

    def function(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.affine_grid(x, [2, 1, 3, 4], align_corners=True).sum(3)

    check_by_torch(model, function, {"x": x})


def test_attention_operator() -> None:
    inputs = {n: RNG.normal(size=(2, 3, 4, 5)) for n in "qkv"}
    model = network([N("Attention", list("qkv"), ["y"])], inputs, opset=23)
    check_by_torch(model, nn.functional.scaled_dot_product_attention, inputs)


def test_local_functions_are_inlined() -> None:
    x = RNG.normal(size=(2, 3))
    model = network([N("Twice", ["x"], ["y"], domain="own")], {"x": x})
    body = [N("Exp", ["a"], ["b"]), N("Add", ["b", "b"], ["c"])]
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["c"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    check_by_torch(model, lambda x: 2 * x.exp(), {"x": x})


def test_old_initializers_listed_as_inputs_stay_constants() -> None:
    x, w = RNG.normal(size=(2, 3)), RNG.normal(size=(3, 4))
    model = network([N("MatMul", ["x", "w"], ["y"])], {"x": x}, {"w": w})
    model.graph.input.append(helper.make_tensor_value_info("w", 1, (3, 4)))
    check_by_torch(model, lambda x: x @ torch.tensor(w.astype(np.float32)).double(), {"x": x})


def _taken(*positions: int) -> list[onnx.NodeProto]:
    """Take tensors from the sequence `s` and concatenate them."""
    nodes, names = [], []
    for index, position in enumerate(positions):
        nodes.append(N("Constant", [], [f"i{index}"], value_int=position))
        nodes.append(N("SequenceAt", ["s", f"i{index}"], [f"p{index}"]))
        names.append(f"p{index}")
    return [*nodes, N("Concat", names, ["y"], axis=1)]


@pytest.mark.parametrize("given", ["size", "lengths", "none", "no dimension"])
def test_parts_of_a_sequence_are_parts_of_a_split(given: str) -> None:
    x = RNG.normal(size=(2, 5, 3))
    splits = {"size": np.int64(2), "lengths": np.array([1, 3, 1])}
    sizes = {"size": 2, "lengths": [1, 3, 1], "none": 1, "no dimension": 1}
    inputs = ["x", "n"] if given in splits else ["x"]
    squeezed = {"keepdims": 0} if given == "no dimension" else {}
    model = network(
        [N("SplitToSequence", inputs, ["s"], axis=1, **squeezed), *_taken(2, 0, -1)],
        {"x": x},
        {"n": splits[given]} if given in splits else {},
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, sizes[given], 1)
        parts = [part[:, 0] for part in parts] if squeezed else parts
        return torch.cat([parts[2], parts[0], parts[-1]], 1)

    check_by_torch(model, function, {"x": x})


@pytest.mark.parametrize("stacked", [0, 1])
def test_sequences_that_are_put_together_are_read(stacked: int) -> None:
    x, z = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))
    nodes = [
        N("Constant", [], ["zero"], value_int=0),
        N("SequenceEmpty", [], ["e"]),
        N("SequenceInsert", ["e", "x"], ["s1"]),
        N("SequenceInsert", ["s1", "z", "zero"], ["s2"]),
        N("SequenceInsert", ["s2", "x"], ["s3"]),
        N("SequenceErase", ["s3"], ["s4"]),  # z, x
        N("SequenceLength", ["s4"], ["count"]),
        N("Cast", ["count"], ["real"], to=onnx.TensorProto.FLOAT),
        N("ConcatFromSequence", ["s4"], ["c"], axis=1, new_axis=stacked),
        N("Mul", ["c", "real"], ["d"]),
        N("SequenceConstruct", ["d", "d"], ["f"]),
        N("SequenceAt", ["f", "zero"], ["y"]),
    ]
    model = network(nodes, {"x": x, "z": z}, {})
    joined = torch.stack if stacked else torch.cat
    check_by_torch(model, lambda x, z: 2 * joined([z, x], 1), {"x": x, "z": z})

"""Rectifier rules reach every way of writing a rectifier, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from tests.graph.oracle import close, network, pulled_back

N = helper.make_node
CONSTANTS = {
    "zero": np.asarray(0.0), "half": np.asarray(0.5), "one": np.asarray(1.0),
    "three": np.asarray(3.0), "six": np.asarray(6.0), "root": np.asarray(np.sqrt(2.0)),
    "two": np.asarray(2.0), "slope": np.asarray(0.2), "slopes": np.full((3, 1), 0.2),
    "cube": np.asarray(0.044715), "c": np.asarray(np.sqrt(2 / np.pi)), "minus": np.asarray(-1.0),
    "tiny": np.asarray(1e-12),
}  # fmt: skip

SPELLINGS: dict[str, tuple[list[onnx.NodeProto], Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": ([N("Relu", ["h"], ["y"])], F.relu),
    "clip": ([N("Clip", ["h", "zero"], ["y"])], F.relu),
    "relu6": ([N("Clip", ["h", "zero", "six"], ["y"])], F.relu6),
    "max": ([N("Max", ["zero", "h"], ["y"])], F.relu),
    "relu6 by min and max": (
        [N("Max", ["h", "zero"], ["m"]), N("Min", ["m", "six"], ["y"])],
        F.relu6,
    ),
    "relu6 by max and min": (
        [N("Min", ["h", "six"], ["m"]), N("Max", ["zero", "m"], ["y"])],
        F.relu6,
    ),
    "relu6 by relu and min": ([N("Min", ["h", "six"], ["m"]), N("Relu", ["m"], ["y"])], F.relu6),
    "leaky up to a limit": (
        [N("Clip", ["h", "zero", "six"], ["r"]), N("Neg", ["h"], ["n"]), N("Relu", ["n"], ["s"]),
         N("Mul", ["s", "slope"], ["t"]), N("Sub", ["r", "t"], ["y"])],
        lambda x: F.leaky_relu(x, 0.2).clamp(max=6),
    ),
    "written where negative": (
        [N("Less", ["h", "zero"], ["b"]), N("NonZero", ["b"], ["n"]),
         N("Transpose", ["n"], ["i"], perm=[1, 0]), N("GatherND", ["h", "i"], ["u"]),
         N("Shape", ["u"], ["k"]), N("Expand", ["zero", "k"], ["w"]),
         N("ScatterND", ["h", "i", "w"], ["y"])],
        F.relu,
    ),
    "mask": (
        [N("Greater", ["h", "zero"], ["b"]), N("Cast", ["b"], ["m"], to=1),
         N("Mul", ["h", "m"], ["y"])],
        F.relu,
    ),
    "where": (
        [N("Greater", ["h", "zero"], ["b"]), N("Where", ["b", "h", "zero"], ["y"])],
        F.relu,
    ),
    "mean with its magnitude": (
        [N("Abs", ["h"], ["a"]), N("Add", ["h", "a"], ["s"]), N("Mul", ["s", "half"], ["y"])],
        F.relu,
    ),
    "magnitude as a root": (
        [N("Mul", ["h", "h"], ["q"]), N("Sqrt", ["q"], ["a"]), N("Add", ["h", "a"], ["s"]),
         N("Div", ["s", "two"], ["y"])],
        F.relu,
    ),
    "negative minimum": (
        [N("Neg", ["h"], ["n"]), N("Min", ["n", "zero"], ["m"]), N("Neg", ["m"], ["y"])],
        F.relu,
    ),
    "with the other rectifier": (
        [N("Neg", ["h"], ["n"]), N("Relu", ["n"], ["r"]), N("Add", ["h", "r"], ["y"])],
        F.relu,
    ),
    "less or equal, in three": (
        [N("Less", ["h", "zero"], ["l"]), N("Equal", ["h", "zero"], ["e"]),
         N("Or", ["l", "e"], ["b"]), N("Where", ["b", "zero", "h"], ["y"])],
        F.relu,
    ),
    "zeros of its shape": (
        [N("Shape", ["h"], ["n"]), N("Expand", ["zero", "n"], ["z"]),
         N("Greater", ["h", "z"], ["b"]), N("Where", ["b", "h", "z"], ["y"])],
        F.relu,
    ),
    "a maximum with zeros of its shape": (
        [N("Shape", ["h"], ["n"]), N("ConstantOfShape", ["n"], ["z"]), N("Max", ["z", "h"], ["y"])],
        F.relu,
    ),
    "leaky": ([N("LeakyRelu", ["h"], ["y"], alpha=0.2)], lambda x: F.leaky_relu(x, 0.2)),
    "leaky by max": (
        [N("Mul", ["h", "slope"], ["m"]), N("Max", ["h", "m"], ["y"])],
        lambda x: F.leaky_relu(x, 0.2),
    ),
    "prelu": ([N("PRelu", ["h", "slopes"], ["y"])], lambda x: F.leaky_relu(x, 0.2)),
    "elu": ([N("Elu", ["h"], ["y"])], F.elu),
    "selu": ([N("Selu", ["h"], ["y"])], F.selu),
    "celu": ([N("Celu", ["h"], ["y"], alpha=0.5)], lambda x: F.celu(x, 0.5)),
    "elu by where": (
        [N("Exp", ["h"], ["e"]), N("Sub", ["e", "one"], ["m"]), N("Greater", ["h", "zero"], ["b"]),
         N("Where", ["b", "h", "m"], ["y"])],
        F.elu,
    ),
    "silu": ([N("Sigmoid", ["h"], ["s"]), N("Mul", ["h", "s"], ["y"])], F.silu),
    "mish": ([N("Mish", ["h"], ["y"])], F.mish),
    "mish spelled out": (
        [N("Softplus", ["h"], ["s"]), N("Tanh", ["s"], ["t"]), N("Mul", ["t", "h"], ["y"])],
        F.mish,
    ),
    "hard swish": ([N("HardSwish", ["h"], ["y"])], F.hardswish),
    "hard swish spelled out": (
        [N("Add", ["h", "three"], ["a"]), N("Clip", ["a", "zero", "six"], ["r"]),
         N("Mul", ["h", "r"], ["m"]), N("Div", ["m", "six"], ["y"])],
        F.hardswish,
    ),
    "gelu": ([N("Gelu", ["h"], ["y"])], F.gelu),
    "gelu spelled out": (
        [N("Div", ["h", "root"], ["d"]), N("Erf", ["d"], ["e"]), N("Add", ["e", "one"], ["a"]),
         N("Mul", ["h", "half"], ["b"]), N("Mul", ["b", "a"], ["y"])],
        F.gelu,
    ),
    "gelu in another order": (
        [N("Div", ["h", "root"], ["d"]), N("Erf", ["d"], ["e"]), N("Add", ["one", "e"], ["a"]),
         N("Mul", ["h", "a"], ["b"]), N("Mul", ["b", "half"], ["y"])],
        F.gelu,
    ),
    "gelu by tanh": (
        [N("Pow", ["h", "three"], ["p"]), N("Mul", ["p", "cube"], ["q"]),
         N("Add", ["h", "q"], ["r"]),
         N("Mul", ["r", "c"], ["s"]), N("Tanh", ["s"], ["t"]), N("Add", ["t", "one"], ["a"]),
         N("Mul", ["h", "a"], ["b"]), N("Mul", ["b", "half"], ["y"])],
        lambda x: F.gelu(x, approximate="tanh"),
    ),
}  # fmt: skip


def model_of(nodes: list[onnx.NodeProto], x: np.ndarray) -> onnx.ModelProto:
    """h = 2 x first, so that the rectifier is inside the network."""
    return network([N("Mul", ["x", "two"], ["h"]), *nodes], {"x": x}, CONSTANTS, opset=22)


@pytest.mark.parametrize("relu", ["exact", "guided", "deconv"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rectifier_rule_holds_however_it_is_written(spelling: str, relu: Any) -> None:
    nodes, function = SPELLINGS[spelling]
    rng = np.random.default_rng(2)
    x, g = rng.normal(size=(2, 3, 50)) * 2, rng.normal(size=(2, 3, 50))
    h = torch.tensor(2 * x, requires_grad=True)
    positive = g if relu == "exact" else np.maximum(g, 0)
    (exact,) = torch.autograd.grad(function(h), h, torch.tensor(positive))
    want = 2 * (positive if relu == "deconv" else exact.numpy())
    found = pulled_back(model_of(nodes, x), {"x": x}, {"y": g}, ["x"], relu=relu)
    close(found["x"], want, 1e-4)


OTHERS: dict[str, list[onnx.NodeProto]] = {
    "sigmoid": [N("Sigmoid", ["h"], ["y"])],
    "softplus": [N("Softplus", ["h"], ["y"])],
    "absolute": [N("Neg", ["h"], ["n"]), N("Max", ["h", "n"], ["y"])],
    "square": [N("Mul", ["h", "h"], ["y"])],
    "double": [N("Add", ["h", "h"], ["y"])],
    "clip around zero": [N("Clip", ["h", "minus", "one"], ["y"])],
    "cut below": [N("Add", ["h", "zero"], ["s"]), N("Max", ["s", "minus"], ["y"])],
    "kept from zero": [N("Add", ["h", "zero"], ["s"]), N("Max", ["s", "tiny"], ["y"])],
    "residual": [N("Sin", ["h"], ["s"]), N("Add", ["h", "s"], ["y"])],
    "gate": [
        N("ReduceMean", ["h"], ["m"]),
        N("Sigmoid", ["m"], ["s"]),
        N("Mul", ["h", "s"], ["y"]),
    ],
}


@pytest.mark.parametrize("relu", ["guided", "deconv"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_rectifier_keeps_its_derivative(name: str, relu: Any) -> None:
    rng = np.random.default_rng(2)
    x, g = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    model = model_of(OTHERS[name], x)
    want = pulled_back(model, {"x": x}, {"y": g}, ["x"])
    found = pulled_back(model, {"x": x}, {"y": g}, ["x"], relu=relu)
    close(found["x"], want["x"], 1e-6)

"""Biases wherever a graph may hold them: by hand, and input and biases sum to what comes out."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.graph.biases import biases, bounds
from pellucid.methods.full_gradient import full_grad
from pellucid.methods.objective import Objective


def model(body, constants=""):
    given = ", ".join(filter(None, ("float[1,2,1,1] c = {3, -5}", constants)))
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        graph (float[N,2,2,2] x) => (float[N,2,2,2] y) <{given}>
        {{ {body} }}
    """)


def channels(found):
    return {name: bias.reshape(-1).tolist() for name, bias in found.items()}


NORM = "float[2] g = {2, 4}, float[2] b = {1, 1}, float[2] m = {1, 3}, float[2] v = {4, 1}"


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("y = Add(x, c)", "", {"y": [3, -5]}),
        ("y = Add(c, x)", "", {"y": [3, -5]}),
        ("y = Sub(x, c)", "", {"y": [-3, 5]}),
        ("y = Sub(c, x)", "", {"y": [3, -5]}),
        ("s = Add(x, c) y = Sub(c, s)", "", {"y": [0, 0]}),
        ("s = Add(x, c) y = Neg(s)", "", {"y": [-3, 5]}),
        ("s = Add(x, c) y = Mul(s, c)", "", {"y": [9, 25]}),
        ("s = Add(x, c) y = Div(s, d)", "float[1] d = {2}", {"y": [1.5, -2.5]}),
        ("s = Add(x, c) y = Relu(s)", "", {"s": [3, -5]}),
        ("s = Add(x, c) r = Relu(s) y = Add(r, s)", "", {"s": [3, -5]}),
        ("y = BatchNormalization <epsilon = 0.0> (x, g, b, m, v)", NORM, {"y": [0, -11]}),
        ("s = Add(x, c) y = BatchNormalization <epsilon = 0.0> (s, g, b, m, v)", NORM,
         {"y": [3, -31]}),
        ("y = Conv(x, w, b)", "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {7, 8}",
         {"y": [7, 8]}),
        ("y = ConvTranspose(x, w, b)", "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {7, 8}",
         {"y": [7, 8]}),
        ("s = Add(x, c) p = Exp(s) y = Mul(p, s)", "", {"s": [3, -5]}),
    ],
)  # fmt: skip
def test_a_bias_counts_where_its_sum_ends(body, constants, expected):
    expected = {name: bias for name, bias in expected.items() if any(bias)}
    assert channels(biases(model(body, constants))) == expected


def test_apart_every_bias_stays_where_it_is_added():
    body = "s = Add(x, c) y = BatchNormalization <epsilon = 0.0> (s, g, b, m, v)"
    assert channels(biases(model(body, NORM), merged=False)) == {"s": [3, -5], "y": [0, -11]}


def test_a_transposed_bias_is_transposed():
    body = "s = Add(x, c) t = Transpose <perm = [0, 2, 3, 1]> (s) y = Add(t, t)"
    (bias,) = biases(model(body)).values()
    assert bias.shape == (1, 1, 1, 2)


def test_a_dense_layer_s_bias_has_its_factor():
    body = "f = Flatten(x) s = Gemm <beta = 0.5> (f, w, b) k = Relu(s) y = Reshape(k, i)"
    ones, counted = ", ".join(["1"] * 64), ", ".join(map(str, range(8)))
    constants = f"float[8,8] w = {{{ones}}}, float[8] b = {{{counted}}}, "
    constants += "int64[4] i = {-1, 2, 2, 2}"
    assert channels(biases(model(body, constants))) == {"s": [k / 2 for k in range(8)]}


def test_bounds_are_those_that_are_not_zero():
    constants = "float low = {0}, float high = {6}, float two = {2}"
    found = bounds(model("r = Clip(x, low, high) y = Min(r, two)", constants))
    assert found == {"r": (6.0,), "y": (2.0,)}


@pytest.mark.parametrize(
    "body",
    [
        "s = Add(x, c) r = Relu(s) p = Sub(c, r) m = LeakyRelu(p) y = Add(m, s)",
        "s = Sub(x, c) r = Clip(s, low, high) p = Mul(r, c) y = Add(p, x)",
        "s = Add(x, c) r = Max(s, low) q = Min(r, high) t = Transpose <perm = [0, 1, 3, 2]> (q) "
        "y = Sub(t, x)",
    ],
)
def test_input_and_biases_sum_to_what_comes_out(body):
    adapter = OnnxAdapter(model(body, "float low = {-1}, float high = {4}"))
    x = 4 * np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((2, 2, 2)).astype(np.float32)
    objective = Objective(adapter, weights)
    full_grad(adapter, x, objective)
    size = np.abs(objective.scores).max()
    assert size > 1
    assert np.abs(objective.details["completeness_delta"]).max() < 1e-5 * size

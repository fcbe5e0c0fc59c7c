"""What a graph adds of its own: by hand, and input and biases sum to what comes out."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.graph.biases import decompose
from pellucid.graph.gradient import differentiate
from pellucid.graph.runtime import session
from pellucid.methods.full_gradient import full_grad
from pellucid.methods.objective import Objective

X = 4 * np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype(np.float32)


def model(body, constants="", real="float"):
    given = ", ".join(filter(None, ("float[1,2,1,1] c = {3, -5}", constants)))
    ports = f"(float[N,2,2,2] x) => (float[N,2,2,2] y) <{given}>".replace("float", real)
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 23]> graph {ports} {{ {body} }}
    """)


def constants_of(graph):
    biases = decompose(graph).biases
    assert not any(isinstance(bias.value, str) for bias in biases)
    return {bias.name: bias.value.reshape(-1).tolist() for bias in biases}


NORM = "float[2] g = {2, 4}, float[2] b = {1, 1}, float[2] m = {1, 3}, float[2] v = {4, 1}"


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("y = Add(x, c)", "", {"y": [3, -5]}),
        ("y = Add(c, x)", "", {"y": [3, -5]}),
        ("y = Sum(c, x, c)", "", {"y": [6, -10]}),
        ("y = Sub(x, c)", "", {"y": [-3, 5]}),
        ("y = Sub(c, x)", "", {"y": [3, -5]}),
        ("s = Add(x, c) y = Mul(s, c)", "", {"s": [3, -5]}),
        ("s = Add(x, c) y = Relu(s)", "", {"s": [3, -5]}),
        ("s = Add(x, c) r = Relu(s) y = Add(r, s)", "", {"s": [3, -5]}),
        ("s = Add(x, c) y = BatchNormalization <epsilon = 0.0> (s, g, b, m, v)", NORM,
         {"s": [3, -5], "y": [0, -11]}),
        ("y = Conv(x, w, b)", "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {7, 8}",
         {"y": [7, 8]}),
        ("y = ConvTranspose(x, w, b)", "float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {7, 8}",
         {"y": [7, 8]}),
        ("a = Max(x, z) b = MaxPool <kernel_shape = [1, 1]> (a) y = LeakyRelu(b)",
         "float z = {0}", {}),
    ],
)  # fmt: skip
def test_constants_count_where_they_are_added(body, constants, expected):
    assert constants_of(model(body, constants)) == expected


def test_a_dense_layer_s_bias_has_its_factor():
    body = "f = Flatten(x) s = Gemm <beta = 0.5> (f, w, b) k = Relu(s) y = Reshape(k, i)"
    ones, counted = ", ".join(["1"] * 64), ", ".join(map(str, range(8)))
    constants = f"float[8,8] w = {{{ones}}}, float[8] b = {{{counted}}}, "
    constants += "int64[4] i = {-1, 2, 2, 2}"
    assert constants_of(model(body, constants)) == {"s": [k / 2 for k in range(8)]}


NUMBERS = (
    "float low = {-1}, float high = {4}, float six = {6}, float zero = {0}, float half = {0.5}, "
    "float root = {0.70710678}, float one = {1}, float three = {3}, float sixth = {0.16666667}, "
    "float[2] l = {2, 3}, float[2] k = {4, 5}, int64[1] last = {-1}, int64[2] lasts = {-2, -1}, "
    "float[1,2,2,2] minus = {-1, -1, -1, -1, -1, -1, -1, -1}, "
    "int64[8] around = {0, 0, 0, -1, 0, 0, 0, 1}, int64[1,1] row = {0}, "
    "float[1,2,2,2] filler = {1, 2, 3, 4, 5, 6, 7, 8}"
)
L, K, C = (torch.tensor(pair).double() for pair in ([2, 3], [4, 5], [[[3]], [[-5]]]))
FUNCTIONS = {
    "f = Gelu(x)": F.gelu,
    "f = Sigmoid(x)": torch.sigmoid,
    "f = Elu(x)": F.elu,
    "f = Clip(x, low, high)": lambda x: x.clamp(-1, 4),
    "f = Clip(x, zero, six)": F.relu6,
    "f = Min(x, half)": lambda x: x.clamp(max=0.5),
    "f = Pow(x, three)": lambda x: x**3,
    "f = Floor(x)": torch.floor,
    "f = Reciprocal(x)": torch.reciprocal,
    "f = Softmax <axis = 1> (x)": lambda x: x.softmax(1),
    "f = Mul(x, x)": lambda x: x * x,
    "f = Div(c, x)": lambda x: C / x,
    "f = MatMul(x, x)": lambda x: x @ x,
    "f = LayerNormalization <axis = -1, epsilon = 0.5> (x, l, k)":
        lambda x: F.layer_norm(x, (2,), L, K, 0.5),
    "f = InstanceNormalization <epsilon = 0.5> (x, l, k)":
        lambda x: F.instance_norm(x, None, None, L, K, eps=0.5),
    "f = RMSNormalization <axis = -1, epsilon = 0.5> (x, l)":
        lambda x: F.rms_norm(x, (2,), L, 0.5),
    "f = MeanVarianceNormalization <axes = [1, 2]> (x)":
        lambda x: (x - x.mean((1, 2), True)) / x.std((1, 2), correction=0, keepdim=True),
    "f = ReduceLogSumExp (x, last)": lambda x: x.logsumexp(-1, True),
    "f = LogSoftmax <axis = 1> (x)": lambda x: x.log_softmax(1),
    "f = ReduceProd (x, last)": lambda x: x.prod(-1, True),
    "f = LRN <alpha = 0.5, beta = 0.7, bias = 2.0, size = 3> (x)":
        lambda x: F.local_response_norm(x, 3, 0.5, 0.7, 2.0),
    "f = Hardmax <axis = 1> (x)":
        lambda x: F.one_hot(x.argmax(1), 2).permute(0, 3, 1, 2).double() + 0 * x,
    "f = Pad (x, around, half)": lambda x: F.pad(x, (-1, 1), value=0.5),
}  # fmt: skip


@pytest.mark.parametrize("body", FUNCTIONS)
def test_a_function_adds_its_value_less_its_linear_part(body):
    """That is y - J x, of which torch computes the latter forward."""
    tensor = torch.from_numpy(X).double()
    y, linear = torch.func.jvp(FUNCTIONS[body], (tensor,), (tensor,))
    adapter = OnnxAdapter(model(f"{body} y = Mul(f, minus)", NUMBERS))
    biases = adapter.biases()
    assert {bias.name for bias in biases} == {"tensor f"}
    computed = [bias.value for bias in biases if isinstance(bias.value, str)]
    objective = Objective(adapter, np.ones((2, 2, 2), np.float32))
    values, _ = adapter.pullback(X, objective, ["tensor f"], fetch=(*computed, *objective.fetch))
    constants = [bias.value for bias in biases if not isinstance(bias.value, str)]
    added = sum([*constants, *(values[name] for name in computed)])
    size = float(y.abs().max())
    np.testing.assert_allclose(added, (y - linear).numpy(), rtol=1e-4, atol=1e-6 * size)


BODIES = [
    *(f"{body} y = Mul(f, minus)" for body in FUNCTIONS),
    "q = Det(x) f = Unsqueeze(q, lasts) y = Mul(f, minus)",
    "s = Sigmoid(x) y = ScatterND(s, row, filler)",
    "s = Add(x, c) r = Relu(s) p = Sub(c, r) m = LeakyRelu(p) y = Add(m, s)",
    "s = Sub(x, c) r = Clip(s, low, high) p = Mul(r, c) y = Add(p, x)",
    "s = Add(x, c) r = Max(s, low) q = Min(r, high) t = Transpose <perm = [0, 1, 3, 2]> (q) "
    "y = Sub(t, x)",
    "a = Abs(x) s = Sqrt(a) g = Sigmoid(x) p = Mul(s, g) y = Div(p, s)",
    "m = GlobalAveragePool(x) g = Sigmoid(m) y = Mul(x, g)",
    "m = Softmax <axis = -1> (x) p = MatMul(m, x) y = Add(m, p)",
    "z = Shape(x) e = Expand(c, z) s = Add(x, e) j = Concat <axis = 1> (e, s) "
    "r = Relu(j) q, y = Split <axis = 1, num_outputs = 2> (r)",
    "o = Greater(x, zero) y = Where(o, x, c)",
]


@pytest.mark.parametrize("body", BODIES)
def test_input_and_biases_sum_to_what_comes_out(body):
    adapter = OnnxAdapter(model(body, NUMBERS))
    weights = np.random.default_rng(1).standard_normal((2, 2, 2)).astype(np.float32)
    objective = Objective(adapter, weights)
    full_grad(adapter, X, objective)
    size = np.abs(objective.scores).max()
    assert size > 0.5
    assert np.abs(objective.details["completeness_delta"]).max() < 1e-5 * max(size, 1)


FLOAT_ALONE = (  # for the runtime
    "InstanceNormalization", "LRN", "Gelu", "Elu", "Hardmax", "MeanVariance", "Det", "LeakyRelu",
    "GlobalAveragePool",
)  # fmt: skip


@pytest.mark.parametrize("body", [b for b in BODIES if not any(op in b for op in FLOAT_ALONE)])
def test_in_double_precision_they_sum_to_it_exactly(body):
    decomposed, x = decompose(model(body, NUMBERS, "double")), 3 * X.astype(np.float64)
    names = list(dict.fromkeys(["x", *(bias.name for bias in decomposed.biases)]))
    computed = [bias.value for bias in decomposed.biases if isinstance(bias.value, str)]
    gradient = differentiate(decomposed.model, ["y"], names, fetch=["y", *computed])
    weights = np.random.default_rng(1).standard_normal(x.shape)
    runner = session(ir.to_proto(gradient.model))
    names = [value.name for value in runner.get_outputs()]
    results = dict(zip(names, runner.run(None, {"x": x, "seed/y": weights}), strict=True))
    total = (x * results["grad/x"]).sum()
    for bias in decomposed.biases:
        value = results[bias.value] if isinstance(bias.value, str) else bias.value
        total += (value * results[f"grad/{bias.name}"]).sum()
    np.testing.assert_allclose(total, (weights * results["y"]).sum(), rtol=1e-11)


SPELLINGS = [
    ("y = Gelu(x)", "a = Mul(x, root) e = Erf(a) d = Add(e, one) h = Mul(x, half) y = Mul(h, d)"),
    ("y = HardSigmoid <alpha = 0.16666667> (x)",
     "a = Mul(x, sixth) b = Add(a, half) y = Clip(b, zero, one)"),
    ("y = HardSwish(x)",
     "a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, b) y = Mul(d, sixth)"),
    ("s = Add(x, c) y = Clip(s, zero, six)",
     "s = Add(x, c) t = Transpose <perm = [0, 2, 3, 1]> (s) r = Relu(t) m = Min(r, six) "
     "y = Transpose <perm = [0, 3, 1, 2]> (m)"),
    ("y = Div(x, c)", "q = Sub(x, c) p = Div(q, c) y = Add(p, one)"),
    ("s = Sigmoid(x) y = Mul(x, s)", "n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d)"),
]  # fmt: skip


@pytest.mark.parametrize("scale", ["channel", "none"])
@pytest.mark.parametrize(("whole", "spelled"), SPELLINGS)
def test_it_does_not_matter_how_a_function_is_written(whole, spelled, scale):
    maps = []
    for body in (whole, spelled):
        before = "n0 = Conv(x, w0, k) i = Add(n0, c) "
        text = before + body.replace("(x", "(i").replace(", x", ", i")
        adapter = OnnxAdapter(model(text, f"{NUMBERS}, float[2,2,1,1] w0 = {{1, 2, 3, 4}}"))
        weights = np.random.default_rng(1).standard_normal((2, 2, 2)).astype(np.float32)
        maps += full_grad(adapter, X / 4, Objective(adapter, weights), scale=scale)
    np.testing.assert_allclose(maps[1], maps[0], atol=2e-5 * maps[0].max())

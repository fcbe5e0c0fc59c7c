"""Operators that onnxruntime's optimisers fuse, opened: values and gradients against torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from pellucid.errors import UnsupportedError
from pellucid.graph.gradient import differentiate
from tests.graph.oracle import check_as_run, check_by_torch, network, pulled_back

RNG = np.random.default_rng(6)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def real(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a.astype(np.float32).astype(np.float64))


def fused(
    op: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """Build a model of one operator of onnxruntime; `names` are its inputs in order."""
    given = list(names or (*inputs, *(constants or ())))
    node = helper.make_node(op, given, ["y"], "fused", domain="com.microsoft", **attributes)
    model = network([node], inputs, constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def check(op: str, function: Callable[..., torch.Tensor], inputs: Any, constants: Any = None,
          names: Sequence[str] = (), **attributes: Any) -> None:  # fmt: skip
    check_as_run(fused(op, inputs, constants, names, **attributes), function, inputs)


@pytest.mark.parametrize(
    ("op", "function"),
    [("Gelu", F.gelu), ("FastGelu", lambda x: F.gelu(x, approximate="tanh")),
     ("QuickGelu", lambda x: x * torch.sigmoid(1.702 * x))],
)  # fmt: skip
def test_activation(op: str, function: Callable[..., torch.Tensor]) -> None:
    check(op, function, {"x": normal(3, 5) * 2})


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_activation_of_a_sum(op: str) -> None:
    b = normal(5)
    kind = "none" if op == "BiasGelu" else "tanh"
    check(op, lambda x: F.gelu(x + real(b), approximate=kind), {"x": normal(3, 5)}, {"b": b})


ACTIVATIONS = [
    ("Relu", [], torch.relu), ("Sigmoid", [], torch.sigmoid), ("Tanh", [], torch.tanh),
    ("LeakyRelu", [0.2], lambda x: F.leaky_relu(x, 0.2)),
    ("Clip", [-0.5, 0.8], lambda x: x.clamp(-0.5, 0.8)),
    ("HardSigmoid", [0.3, 0.4], lambda x: (0.3 * x + 0.4).clamp(0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "parameters", "function"), ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
def test_convolution(kind: str, parameters: list, function: Any, added: bool) -> None:
    w, b = normal(4, 3, 3, 3), normal(4)
    inputs = {"x": normal(2, 3, 6, 7)} | ({"z": normal(2, 4, 6, 7)} if added else {})
    options: dict[str, Any] = {"activation": kind, "pads": [1] * 4}
    if parameters:
        options["activation_params"] = parameters

    def of(x: torch.Tensor, z: torch.Tensor | float = 0.0) -> torch.Tensor:
        return function(F.conv2d(x, real(w), real(b), padding=1) + z)

    names = ["x", "w", "b", *(["z"] if added else [])]
    check("FusedConv", of, inputs, {"w": w, "b": b}, names, **options)


def test_the_rectifier_inside_is_found() -> None:
    x, w = normal(1, 3, 6, 6), normal(4, 3, 3, 3)
    one = fused("FusedConv", {"x": x}, {"w": w}, activation="Relu")
    apart = network(
        [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        {"x": x}, {"w": w},
    )  # fmt: skip
    g = {"y": normal(1, 4, 4, 4)}
    for relu in ("guided", "deconv"):
        found = [pulled_back(m, {"x": x}, g, ["x"], relu=relu)["x"] for m in (one, apart)]
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - pulled_back(one, {"x": x}, g, ["x"])["x"]).max() > 0.1


def test_matrix_products() -> None:
    a, b = normal(2, 4, 3), normal(2, 5, 4)
    options = {"transA": 1, "transB": 1, "alpha": 0.7}

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 0.7 * a.transpose(1, 2) @ b.transpose(1, 2)

    check("FusedMatMul", product, {"a": a, "b": b}, **options)
    check("FusedMatMul", lambda a: product(a, real(b)), {"a": a}, {"b": b}, **options)
    w, c = normal(5, 3), normal(5)

    def dense(x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(0.5 * x @ real(w).T + real(c), 0.3)

    options = {"activation": "LeakyRelu", "activation_alpha": 0.3, "alpha": 0.5, "transB": 1}
    check("FusedGemm", dense, {"x": normal(2, 3)}, {"w": w, "c": c}, **options)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_normalised_sum(op: str) -> None:
    inputs = {"x": normal(2, 3, 8), "z": normal(2, 3, 8)}
    scale, shift, bias = normal(8), normal(8), normal(8)
    simple = op.startswith("SkipSimplified")
    constants = {"s": scale} | ({} if simple else {"t": shift}) | {"b": bias}

    def function(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        total = x + z + real(bias)
        if simple:
            return F.rms_norm(total, (8,), real(scale), 1e-5)
        return F.layer_norm(total, (8,), real(scale), real(shift), 1e-5)

    check(op, function, inputs, constants, epsilon=1e-5)


@pytest.mark.parametrize("swish", [0, 1])
def test_group_normalization_with_channels_last(swish: int) -> None:
    """onnxruntime has it on GPUs alone: nothing to run, so the gradient only."""
    x, scale, shift = normal(2, 4, 5, 6), normal(6), normal(6)
    model = fused("GroupNorm", {"x": x}, {"s": scale, "t": shift}, groups=2, activation=swish)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = F.group_norm(x.permute(0, 3, 1, 2), 2, real(scale), real(shift), 1e-5)
        return (F.silu(y) if swish else y).permute(0, 2, 3, 1)

    check_by_torch(model, function, {"x": x})


@pytest.mark.parametrize("masked", [None, "(B, T)", "causal"])
def test_attention_of_one_product(masked: str | None) -> None:
    x, w, b, bias = normal(2, 5, 8), normal(8, 24), normal(24), normal(1, 2, 5, 5)
    mask = np.asarray([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]], np.int32)
    constants = {"w": w, "b": b, "bias": bias}
    names, options = ["x", "w", "b", "", "", "bias"], {"num_heads": 2}
    if masked == "(B, T)":
        constants["mask"], names[3] = mask, "mask"
    if masked == "causal":
        options["unidirectional"] = 1

    def function(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.reshape(2, 5, 2, 4).transpose(1, 2)
            for part in (x @ real(w) + real(b)).chunk(3, dim=-1)
        )
        hidden = real(bias).expand(2, 2, 5, 5)
        if masked == "(B, T)":
            hidden = hidden.masked_fill(torch.tensor(mask[:, None, None] == 0), -10000.0)
        if masked == "causal":
            hidden = hidden.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, hidden)
        return y.transpose(1, 2).reshape(2, 5, 8)

    check("Attention", function, {"x": x}, constants, names, **options)


@pytest.mark.parametrize("packed", ["", "kv", "qkv", "heads"])
def test_attention_of_queries_keys_and_values(packed: str) -> None:
    b = normal(24)
    inputs = {n: normal(2, 5, 2, 4) for n in "qkv"}

    def function(*parts: torch.Tensor) -> torch.Tensor:
        if packed == "qkv":
            parts = parts[0].unbind(3)
        elif packed == "kv":
            parts = parts[0].reshape(2, 5, 2, 4), *parts[1].unbind(3)
        elif packed == "heads":
            parts = parts[0].reshape(2, 5, 2, 4), *(p.transpose(1, 2) for p in parts[1:])
        q, k, v = (part.reshape(2, 5, 2, 4).transpose(1, 2) for part in parts)
        if not packed:
            q, k, v = (p + real(s).reshape(1, 2, 1, 4)
                       for p, s in zip((q, k, v), np.split(b, 3), strict=True))  # fmt: skip
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)

    flat = {n: a.reshape(2, 5, 8) for n, a in inputs.items()}
    given = {
        "": flat,
        "qkv": {"q": np.stack([*inputs.values()], 3)},
        "kv": {"q": flat["q"], "k": np.stack([inputs["k"], inputs["v"]], 3)},
        "heads": {"q": flat["q"], **{n: inputs[n].transpose(0, 2, 1, 3) for n in "kv"}},
    }[packed]
    model = fused("MultiHeadAttention", given, {} if packed else {"b": b}, num_heads=2)
    if packed in ("kv", "qkv"):  # which onnxruntime has on GPUs alone
        check_by_torch(model, function, given)
    else:
        check_as_run(model, function, given)


def test_what_is_not_opened_is_refused_by_name() -> None:
    x = normal(2, 5, 8)
    constants = {"w": normal(8, 24), "b": normal(24), "past": normal(2, 2, 2, 3, 4)}
    names = ["x", "w", "b", "", "past"]
    model = fused("Attention", {"x": x}, constants, names, num_heads=2)
    with pytest.raises(UnsupportedError, match=r"Attention \(node 'fused'.*cache"):
        differentiate(model, ["y"], ["x"])


class Encoder(torch.nn.Module):
    """A convolution with all that an optimiser fuses, and one block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        self.patch = torch.nn.Conv2d(16, 16, 4, 4)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(16) for _ in range(2))
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16)
        )
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.patch(x).flatten(2).transpose(1, 2)
        h = self.norms[0](x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.head((x + self.dense(self.norms[1](x))).mean(1))


@pytest.mark.parametrize("opset", [14, 18])
def test_file_that_onnxruntime_optimised(tmp_path: Path, opset: int) -> None:
    """Opset 14 has no LayerNormalization; the optimiser writes it all the same."""
    torch.manual_seed(0)
    net, x = Encoder().eval(), torch.randn(2, 3, 18, 18)
    plain, saved = tmp_path / "plain.onnx", tmp_path / "saved.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(net, (x,), str(plain), opset_version=opset, dynamo=False,
                      dynamic_axes={"x": {0: "N"}}, **names)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(saved)
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    model = onnx.load(saved)
    assert {"FusedConv", "BiasGelu"} <= {n.op_type for n in model.graph.node if n.domain}
    check_as_run(model, net.double(), {"x": x.numpy().astype(np.float64)})

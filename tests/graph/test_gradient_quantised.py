"""Operators on quantised numbers: as what they stand for, straight through their rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from pellucid.graph.pullback import OnnxPullback
from tests.graph.oracle import check_as_run, check_by_torch, network

N = helper.make_node
RNG = np.random.default_rng(8)
SCALES = {"x": 0.031, "z": 0.027, "y": 0.11}
ZERO = {"x": 121, "z": 135, "y": 117}


def rounded(x: torch.Tensor, name: str) -> torch.Tensor:
    """To the nearest of 256 numbers; the slope is one inside their range."""
    return torch.fake_quantize_per_tensor_affine(x, SCALES[name], ZERO[name], 0, 255)


def check(
    op: str,
    function: Callable[..., torch.Tensor],
    shape: tuple,
    names: str,
    extra: dict[str, np.ndarray] | None = None,
    domain: str = "com.microsoft",
    **attributes: Any,
) -> None:
    """Quantise x and z, compute, dequantise y.

    `names` spells the operator's inputs; an upper-case letter is a tensor with its scale and zero
    point, or for Y these two alone.
    """
    tensors = [name for name in "xz" if name.upper() in names.split()]
    inputs = {name: RNG.normal(size=shape) for name in tensors}
    constants = {f"{n}s": np.asarray(SCALES[n]) for n in (*tensors, "y")}
    constants |= {f"{n}z": np.asarray(ZERO[n], np.uint8) for n in (*tensors, "y")}
    spelled: list[str] = []
    for name in names.split():
        n = name.lower()
        spelled += {"X": ["xq"], "Z": ["zq"], "Y": []}.get(name, [name])
        spelled += [f"{n}s", f"{n}z"] if name in "XYZ" else []
    nodes = [N("QuantizeLinear", [n, f"{n}s", f"{n}z"], [f"{n}q"]) for n in tensors]
    nodes += [N(op, spelled, ["yq"], "whole", domain=domain, **attributes)]
    nodes += [N("DequantizeLinear", ["yq", "ys", "yz"], ["y"])]
    model = network(nodes, inputs, constants | (extra or {}))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def composed(*given: torch.Tensor) -> torch.Tensor:
        found = function(*(rounded(one, n) for one, n in zip(given, tensors, strict=True)))
        return rounded(found, "y")

    compare = check_by_torch if op == "QLinearSoftmax" else check_as_run  # a table of its own
    compare(model, composed, inputs)


def test_convolution() -> None:
    w = RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8)
    scale = np.asarray([0.01, 0.02, 0.015, 0.03], np.float32)
    b = RNG.integers(-999, 999, 4).astype(np.int32)
    extra = {"w": w, "ws": scale, "wz": np.zeros(4, np.int8), "b": b}
    weights = torch.tensor(w * scale[:, None, None, None].astype(np.float64))
    bias = torch.tensor(b * scale * np.float64(np.float32(SCALES["x"])))

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weights, bias, stride=2, padding=1)

    names, options = "X w ws wz Y b", {"strides": [2, 2], "pads": [1] * 4}
    check("QLinearConv", function, (2, 3, 7, 7), names, extra, domain="", **options)


def test_products() -> None:
    check("QLinearMatMul", torch.matmul, (2, 4, 4), "X Z Y", domain="")
    w = RNG.integers(0, 255, (5, 4)).astype(np.uint8)
    b = RNG.integers(-999, 999, 5).astype(np.int32)
    extra = {"w": w, "ws": np.float32(0.02), "wz": np.uint8(130), "b": b}
    weights = torch.tensor((w.astype(np.float64) - 130) * np.float64(np.float32(0.02)))
    bias = torch.tensor(b * np.float64(np.float32(0.02)) * np.float64(np.float32(SCALES["x"])))
    check("QGemm", lambda x: x @ weights.T + bias, (3, 4), "X w ws wz b Y", extra, transB=1)


@pytest.mark.parametrize(
    ("op", "names", "function", "attributes"),
    [
        ("QLinearAdd", "X Z Y", torch.add, {}),
        ("QLinearMul", "X Z Y", torch.mul, {}),
        ("QLinearConcat", "Y X Z", lambda x, z: torch.cat([x, z], 1), {"axis": 1}),
        ("QLinearLeakyRelu", "X Y", lambda x: F.leaky_relu(x, 0.2), {"alpha": 0.2}),
        ("QLinearSigmoid", "X Y", torch.sigmoid, {}),
        ("QLinearSoftmax", "X Y", lambda x: x.softmax(-1), {"axis": -1, "opset": 13}),
        ("QLinearGlobalAveragePool", "X Y", lambda x: x.mean((2, 3), keepdim=True), {}),
        ("QLinearAveragePool", "X Y", lambda x: F.avg_pool2d(x, 2),
         {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ],
)  # fmt: skip
def test_operator(op: str, names: str, function: Any, attributes: dict) -> None:
    check(op, function, (2, 3, 4, 6), names, **attributes)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(8 * 36, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def gradient(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, found = OnnxPullback(onnx.load(path), ["y"], ["x"])(
        {"x": x}, lambda v: {"y": np.eye(5, dtype=np.float32)[:1] + 0 * v["y"]}
    )
    return values["y"], found["x"]


def test_files_of_the_quantiser(tmp_path: Path) -> None:
    """Both ways of writing the same quantised network, and the one that it came from."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    torch.manual_seed(0)
    plain = tmp_path / "plain.onnx"
    x = torch.randn(1, 3, 16, 16)
    torch.onnx.export(Small().eval(), (x,), str(plain), dynamo=False, opset_version=13,
                      input_names=["x"], output_names=["y"])  # fmt: skip

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": torch.randn(1, 3, 16, 16).numpy()} for _ in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    found = {"plain": gradient(plain, x.numpy())}
    for kind in ("QOperator", "QDQ"):
        torch.manual_seed(1)
        made = tmp_path / f"{kind}.onnx"
        quantization.quantize_static(
            plain, made, Reader(), quant_format=quantization.QuantFormat[kind]
        )
        found[kind] = gradient(made, x.numpy())
    made = tmp_path / "dynamic.onnx"
    quantization.quantize_dynamic(plain, made, weight_type=quantization.QuantType.QUInt8)
    assert {"ConvInteger", "MatMulInteger"} & {n.op_type for n in onnx.load(made).graph.node}
    found["dynamic"] = gradient(made, x.numpy())
    for one, other in zip(found["QOperator"], found["QDQ"], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2 * np.abs(other).max())
    for kind in ("QDQ", "dynamic"):
        likeness = np.corrcoef(found[kind][1].ravel(), found["plain"][1].ravel())[0, 1]
        assert likeness > 0.9, (kind, likeness)

"""Whole networks through their export: onnxruntime explains them as their framework does."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.adapters.onnx.exported import exported
from tests.test_real_models import efficientnet, emotions

FACE = data.astronaut()[60:200, 155:295]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer as published, only smaller (Dosovitskiy et al., 2010.11929)."""

    def __init__(self, size: int = 64, patch: int = 8, width: int = 48, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) / 5)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def twice(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net of two levels: one goes up by a transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = twice(3, 16), twice(16, 32), twice(32, 48)
        self.up2, self.right2 = nn.ConvTranspose2d(48, 32, 2, 2), twice(64, 32)
        self.right1, self.head = twice(48, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = self.bottom(F.max_pool2d(two, 2))
        two = self.right2(torch.cat([two, self.up2(bottom)], 1))
        up = F.interpolate(two, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.right1(torch.cat([one, up], 1)))


@cache
class Parts(nn.Module):
    """Channels split, shuffled and compared, as ShuffleNet and maxout do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.first(x)).chunk(2, 1)
        x = torch.cat((left, F.relu(self.depthwise(right))), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        one, two, three = x.split([5, 5, 6], 1)
        return self.head(torch.cat((torch.maximum(one, two), three), 1).mean((2, 3)))


class OneHead(nn.Module):
    """Attention on (N, T, C), of which the exporter wants an axis of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).mean(1))


def made(kind: type[nn.Module]) -> Adapter:
    torch.manual_seed(0)
    network = kind()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return pellucid.load(network.eval(), preprocess={"size": (64, 64), "mean": (0.5,) * 3})


def region(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of class 2 over the middle of the map, as a target."""
    functional = np.zeros_like(output)
    functional[:, 2, 20:44, 20:44] = 1 / 24**2
    return (functional * output).sum((1, 2, 3)), functional


def assert_alike(model: Adapter, picture: Any, method: str, **options: Any) -> None:
    one, other = (
        pellucid.explain(model, picture, method, engine=engine, **options)
        for engine in ("native", "onnx")
    )
    assert (one.target, one.layer) == (other.target, other.layer)
    assert other.provenance["engine"] == "onnx"
    assert other.score == pytest.approx(one.score, rel=1e-4)
    scale = np.abs(one.attribution).max()
    assert scale > 0
    np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-4 * scale)


METHODS = pytest.mark.parametrize("method", ["grad-cam", "saliency", "guided-backprop"])


@METHODS
def test_a_vision_transformer(method: str) -> None:
    assert_alike(made(ViT), FACE, method, **({"relu": False} if method == "grad-cam" else {}))


def test_a_transformer_whose_code_fixes_the_batch_size_is_compiled() -> None:
    one = pellucid.explain(made(ViT), FACE, relu=False)  # `len(x)` fixes it to the export's
    other = pellucid.compile(made(ViT), relu=False)(FACE)
    assert other.target == one.target
    scale = np.abs(one.attribution).max()
    assert scale > 0
    np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-4 * scale)


@METHODS
def test_a_network_that_splits_its_channels(method: str) -> None:
    assert_alike(made(Parts), FACE, method, **({"relu": False} if method == "grad-cam" else {}))


def test_attention_without_an_axis_of_heads() -> None:
    assert_alike(made(OneHead), FACE, "saliency")


@METHODS
def test_a_region_that_a_u_net_segments(method: str) -> None:
    options = {"layer": "bottom", "relu": False} if method == "grad-cam" else {}
    assert_alike(made(UNet), FACE, method, target=region, **options)


@pytest.mark.slow
@METHODS
def test_efficientnet_on_a_photograph(method: str) -> None:
    assert_alike(efficientnet(), data.chelsea(), method)


@METHODS
def test_the_keras_network_of_2017(method: str) -> None:
    assert_alike(emotions(), FACE, method)


def test_the_region_decides_what_the_gradient_of_a_u_net_reaches() -> None:
    explanation = pellucid.explain(made(UNet), FACE, "saliency", target=region, engine="onnx")
    reached = np.abs(explanation.attribution).max(axis=0)
    assert reached[:4].max() < 1e-3 * reached.max()
    assert reached[20:44, 20:44].sum() > 0.5 * reached.sum()  # a seventh of the picture


def test_the_runtime_merges_all_layers_of_an_export_into_its_convolutions(tmp_path):
    """Padding, normalisation and bounds cost passes over memory otherwise, three times the time."""
    network = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16),
        nn.ReLU6(), nn.Dropout(), nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16),
    ).eval()  # fmt: skip
    model = exported(pellucid.load(network, inputs=(3, 16, 16)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "merged.onnx")
    onnxruntime.InferenceSession(model.model.SerializeToString(), options)
    merged = Counter(node.op_type for node in onnx.load(tmp_path / "merged.onnx").graph.node)
    assert merged["Conv"] == 2
    assert not merged.keys() & {"Pad", "BatchNormalization", "Clip", "Expand", "Cast"}

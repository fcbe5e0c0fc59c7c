"""Receptive fields: worked out by hand, as published, and as the gradient shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.graph.form import OnnxForm, PortForm
from pellucid.graph.placement import ReceptiveField
from pellucid.graph.survey import Survey
from tests.graph.oracle import network as onnx_network


def fields(module: nn.Module, *shape: int) -> dict[str, ReceptiveField]:
    """The receptive field of every layer, by name."""
    adapter = TorchAdapter(module.eval())
    adapter.batch(np.zeros((2, *shape), np.float32))
    survey = adapter.survey
    names = [layer.name for layer in adapter.layers]
    found = {name: survey.receptive_field(adapter.in_form(name)[0]) for name in names}
    return {name: field for name, field in found.items() if field is not None}


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs.split(), [output], output, **attributes)


def surveyed(nodes: Any, inputs: Any, constants: Any, output: str) -> dict[str, ReceptiveField]:
    """The receptive field of every tensor."""
    model = onnx_network(nodes, inputs, constants, [output])
    survey = Survey(OnnxForm(model, (PortForm("input", "x"),), (PortForm("output", output),)))
    names = [name for made in nodes for name in made.output]
    return {name: survey.receptive_field(name) for name in names}


class Joined(nn.Module):
    """A shortcut of 1x1 beside 3x3 convolutions, then everything an extent can go through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.dilated = nn.Conv2d(4, 4, 3, padding=4, dilation=4)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.join = nn.Identity()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.wide = nn.Conv2d(4, 4, (1, 7), padding=(0, 3))
        self.upsample = nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.gated = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = self.join(F.relu(self.dilated(x)) + self.shortcut(x))
        x = self.last(self.upsample(self.wide(self.pool(x))))
        x = self.gated(x * torch.sigmoid(self.gate(self.gap(x))))
        return self.head(x.mean((2, 3)))


def test_of_every_layer_worked_out_by_hand() -> None:
    found = fields(Joined(), 3, 64, 64)
    expected = {
        # size = size before + (kernel - 1) * dilation * stride before
        "stem": ((5, 5), 2),
        "dilated": ((5 + 8 * 2,) * 2, 2),
        "shortcut": ((5, 5), 2),
        "join": ((21, 21), 2),  # the larger of the two
        "pool": ((21 + 2 * 2,) * 2, 4),
        "wide": ((25, 25 + 6 * 4), 4),
        "upsample": ((25, 49), 2),  # two cells see the same
        "last": ((29, 53), 2),  # three cells are at most two of those before
    }
    for name, (size, stride) in expected.items():
        assert found[name].size == size, name
        assert found[name].stride == (stride, stride), name
        assert not found[name].whole
    assert all(found[name].whole for name in ("gap", "gate", "gated", "head"))
    assert str(found["join"]) == "21 x 21, every 2"
    assert str(found["wide"]) == "25 x 49, every 4"
    assert str(found["gap"]) == "whole image"


# ---- as published: Araujo et al., Computing Receptive Fields of CNNs, Distill 2019 ----------


class Sketch:
    """A network of one channel, written as ONNX nodes."""

    def __init__(self, side: int = 64) -> None:
        self.nodes: list[Any] = []
        self.kernels: dict[str, np.ndarray] = {}
        self.input = {"x": np.zeros((1, 1, side, side), np.float32)}

    def _add(self, operator: str, inputs: str, **attributes: Any) -> str:
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(node(operator, inputs, name, **attributes))
        return name

    def conv(self, x: str, size: int, stride: int = 1) -> str:
        self.kernels[f"k{size}"] = np.ones((1, 1, size, size), np.float32)
        window = {"strides": [stride] * 2, "pads": [size // 2] * 4}
        return self._add("Conv", f"{x} k{size}", **window)

    def pool(self, x: str, size: int, stride: int) -> str:
        window = {"strides": [stride] * 2, "pads": [(size - 1) // 2] * 4}
        return self._add("MaxPool", x, kernel_shape=[size] * 2, **window)

    def add(self, x: str, y: str) -> str:
        return self._add("Add", f"{x} {y}")

    def field(self, name: str) -> ReceptiveField:
        found = surveyed(self.nodes, self.input, self.kernels, name)[name]
        assert found is not None
        return found


def test_vgg16_sees_212_pixels() -> None:
    net, x = Sketch(), "x"
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = net.conv(x, 3)
        last, x = x, net.pool(x, 2, 2)
    assert net.field(x).size == (212, 212)
    assert net.field(last).size == (196, 196)
    assert net.field(x).stride == (32.0, 32.0)


@pytest.mark.parametrize(("halving", "size"), [("last", 483), ("first", 427)])
def test_resnet50_sees_483_pixels_as_published_and_427_as_torchvision_builds_it(
    halving: str, size: int
) -> None:
    net = Sketch()
    x = net.pool(net.conv("x", 7, 2), 3, 2)
    for stage, count in enumerate((3, 4, 6, 3)):
        for unit in range(count):
            first = halving == "first" and not unit and stage > 0
            last = halving == "last" and unit == count - 1 and stage < 3
            stride = 2 if first or last else 1
            block = net.conv(net.conv(net.conv(x, 1), 3, stride), 1)
            x = net.add(block, net.conv(x, 1, stride))
    assert net.field(x).size == (size, size)
    assert net.field(x).stride == (32.0, 32.0)


def test_mobilenet_sees_315_pixels() -> None:
    net = Sketch()
    x = net.conv("x", 3, 2)
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = net.conv(net.conv(x, 3, stride), 1)
    assert net.field(x).size == (315, 315)


# ---- as the gradient shows ------------------------------------------------------------------


def drawn_network(rng: np.random.Generator) -> nn.Module:
    """A few windows of drawn sizes, with positive weights so that nothing cancels."""
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(int(rng.integers(2, 5))):
        kernel = int(rng.integers(1, 5))
        stride = int(rng.integers(1, 3))
        padding = int(rng.integers(0, kernel // 2 + 1))
        kind = str(rng.choice(["conv", "dilated", "average", "depthwise", "transposed"]))
        if kind == "average":
            layers.append(nn.AvgPool2d(kernel, stride, padding))
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(channels, 2, kernel + 1, stride, padding))
            channels = 2
        elif kind == "depthwise":
            layers.append(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels))
        else:
            dilation = 2 if kind == "dilated" else 1
            layers.append(nn.Conv2d(channels, 2, kernel, stride, padding, dilation))
            channels = 2
    with torch.no_grad():
        for parameter in nn.Sequential(*layers).parameters():
            parameter.abs_().add_(0.1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_where_the_gradient_is_not_zero(seed: int) -> None:
    side = 45
    network = drawn_network(np.random.default_rng(seed)).double()
    x = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    y = network(x)
    centre = y.shape[2] // 2
    (gradient,) = torch.autograd.grad(y[0, :, centre, centre].sum(), x)
    rows = np.flatnonzero(gradient[0, 0].abs().sum(1).numpy())
    found = fields(network.float(), 1, side, side)[str(len(network) - 1)]
    extent = int(rows[-1] - rows[0]) + 1
    assert rows[0] > 0
    assert rows[-1] < side - 1
    if any(isinstance(layer, nn.ConvTranspose2d) for layer in network):
        # Cells of one layer may see more or less; the size is that of those which see most.
        sizes = [_extent(network.double(), side, cell) for cell in range(centre - 2, centre + 3)]
        assert found.size[0] == max(sizes)
    else:
        assert found.size == (extent, extent)


def _extent(network: nn.Module, side: int, cell: int) -> int:
    x = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, :, cell, cell].sum(), x)
    rows = np.flatnonzero(gradient[0, 0].abs().sum(1).numpy())
    return int(rows[-1] - rows[0]) + 1


# ---- other spellings in ONNX ------------------------------------------------------------------


X = {"x": np.zeros((1, 2, 8, 12), np.float32)}
KERNEL = np.ones((2, 2, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants", "size", "stride"),
    [
        ([node("Conv", "x k", "y", strides=[2, 2], auto_pad="SAME_UPPER")], {"k": KERNEL}, 3, 2),
        ([node("Pad", "x p", "a"), node("Conv", "a k", "y")],
         {"k": KERNEL, "p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, 3, 1),
        ([node("SpaceToDepth", "x", "a", blocksize=2),
          node("DepthToSpace", "a", "y", blocksize=2)], {}, 1, 1),
        ([node("Resize", "x r s", "y", mode="linear")],
         {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, 2, 0.5),
        ([node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
         {}, 2, 2),
    ],
)  # fmt: skip
def test_other_operators(nodes: list, constants: dict, size: int, stride: float) -> None:
    found = surveyed(nodes, X, constants, "y")["y"]
    assert found is not None
    assert found.size == (size, size)
    assert found.stride == (stride, stride)


def test_an_operator_that_may_mix_all_sees_everything() -> None:
    nodes = [node("Conv", "x k", "a", pads=[1, 1, 1, 1]), node("TopK", "a n", "y", axis=1)]
    nodes[1].output.append("indices")
    found = surveyed(nodes, X, {"k": KERNEL, "n": np.array([1])}, "y")
    assert found["a"].size == (3, 3)
    assert found["y"].whole

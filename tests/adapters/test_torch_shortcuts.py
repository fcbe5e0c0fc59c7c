"""What the PyTorch adapter computes in another way: the same numbers, and a fallback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.adapters.torch.shortcuts import ORDERED, SCALED, Shortcuts
from tests.adapters.test_torch import one_hot


class Viewing(nn.Module):
    """What follows the convolution wants its channels last, or cannot have them so."""

    def __init__(self, flatten):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 3)
        self.flatten = flatten
        self.seen = []

    def forward(self, x):
        y = self.conv(x)
        self.seen.append(y.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.flatten(y))


@pytest.mark.parametrize("code", ["any", "view"])
def test_channels_lie_last_unless_the_code_cannot_have_it(code):
    network = Viewing(lambda y: y.flatten(1) if code == "any" else y.view(len(y), -1)).eval()
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    model = TorchAdapter(network)
    model.prepare(x)
    network.seen.clear()
    values, gradients = model.pullback(x, one_hot(), ["input", "conv"], ["logits", "conv"])
    model.run(x)
    assert network.seen == ([True, True] if code == "any" else [True, False, False])
    leaf = torch.tensor(x, requires_grad=True)
    result = network(leaf)
    result[:, 1].sum().backward()
    assert np.allclose(values["logits"], result.detach(), atol=1e-6)
    assert np.allclose(gradients["input"], leaf.grad, atol=1e-6)
    assert all(array.flags.c_contiguous for array in (*values.values(), *gradients.values()))


def test_kernels_stay_and_a_changed_one_is_seen():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten()).eval()
    x = np.random.default_rng(0).random((1, 2, 5, 5), np.float32)
    model = TorchAdapter(network)
    before = model.run(x)["output"]
    assert all(layer.weight.is_contiguous() for layer in (network[0], network[2]))
    network[2].weight.data.mul_(2)  # which counts as no new version of the weight
    network[2].bias.data.mul_(2)
    assert np.allclose(model.run(x)["output"], 2 * before, atol=1e-6)
    network[2].weight = nn.Parameter(torch.zeros_like(network[2].weight))
    network[2].bias = None
    assert not model.run(x)["output"].any()


def test_a_run_in_inference_mode_leaves_gradients_possible():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten()).eval()
    x = np.random.default_rng(0).random((1, 2, 5, 5), np.float32)
    model = TorchAdapter(network)
    with torch.inference_mode():
        inside = model.run(x)["output"]
        gradient = model.pullback(x, one_hot(), ["input"])[1]["input"]
    assert np.array_equal(model.run(x)["output"], inside)
    assert np.array_equal(model.pullback(x, one_hot(), ["input"])[1]["input"], gradient)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_batch_normalisation_is_its_factor_and_summand(norm, affine):
    torch.manual_seed(0)
    layer = norm(4, affine=affine, eps=0.01)
    with torch.no_grad():
        for value in (*layer.parameters(), layer.running_mean, layer.running_var):
            value.uniform_(0.5, 2)
    axes = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[norm]
    network = nn.Sequential(layer, nn.Tanh()).eval()
    x = torch.randn(2, 4, *(3,) * axes, requires_grad=True)
    cotangent = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    seed = {"output": cotangent}
    values, found = TorchAdapter(network).pullback(
        x.detach().numpy(), lambda _: seed, ["input"], ["output"]
    )
    result = network(x)
    result.backward(torch.tensor(cotangent))
    assert np.allclose(values["output"], result.detach(), atol=1e-6)
    assert np.allclose(found["input"], x.grad, rtol=1e-5, atol=1e-6)


class Tapering(nn.Module):
    """Convolutions of all kinds, from a large image with small kernels to the opposite and back."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, dilation=2)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.large = nn.Conv2d(6, 24, 12, stride=6, padding_mode="circular", padding=1)
        self.last = nn.Conv2d(24, 5, 1)
        self.back = nn.ConvTranspose2d(5, 3, 2, stride=2)
        self.head = nn.Conv2d(3, 3, 3, padding="same")

    def forward(self, x):
        x = torch.tanh(self.depthwise(self.first(x)))
        x = self.norm(self.point(x))
        x = torch.tanh(self.back(self.last(self.large(x))))
        return F.conv2d(input=x, weight=self.head.weight, padding=1).mean((2, 3))


def test_each_convolution_has_the_order_that_pays_and_numbers_stay():
    network, orders = Tapering().double().eval(), {}
    names = ("first", "depthwise", "point", "large", "last", "back")
    x = np.random.default_rng(0).random((1, 2, 20, 20), np.float32)
    model = TorchAdapter(network)
    model.prepare(x)
    for name in names:

        def note(_module, _inputs, output, name=name):
            orders[name] = output.is_contiguous(memory_format=torch.channels_last)

        getattr(network, name).register_forward_hook(note)
    values, gradients = model.pullback(x, one_hot(), ["input", "point"], ["logits"])
    small, large = dict.fromkeys(names[:3], True), dict.fromkeys(names[3:5], False)
    assert orders == {**small, **large, "back": True}
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    result = network(leaf)
    result[:, 1].sum().backward()
    assert not any(orders.values())
    np.testing.assert_allclose(values["logits"], result.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradients["input"], leaf.grad, rtol=1e-5, atol=1e-9)


def test_a_checkpoint_that_computes_again_finds_what_it_had():
    class Checkpointed(Tapering):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    x = np.random.default_rng(0).random((1, 2, 20, 20), np.float32)
    gradients = [
        TorchAdapter(kind().eval()).pullback(x, one_hot(), ["input"])[1]["input"]
        for kind in (Checkpointed, Tapering)
    ]
    assert gradients[0].any()
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("written", ["exported", "traced", "scripted"])
def test_programs_take_the_shortcuts_too(written):
    network, x = Tapering().eval(), torch.rand(2, 2, 20, 20)
    make = {
        "exported": lambda: torch.export.export(network, (x,)).module(),
        "traced": lambda: pellucid.load(torch.jit.trace(network, x)).module,
        "scripted": lambda: pellucid.load(torch.jit.script(network)).module,
    }
    program, taken = make[written](), []

    def noting(way):
        return lambda *args, **kwargs: taken.append(way) or way(*args, **kwargs)

    for parameter in program.parameters():
        parameter.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    with Shortcuts({f: noting(way) for f, way in {**ORDERED, **SCALED}.items()}):
        result = program(leaf)
    assert len(taken) == 8
    expected = network(leaf)
    gradients = [torch.autograd.grad(y[:, 1].sum(), leaf)[0] for y in (result, expected)]
    np.testing.assert_allclose(result.detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)

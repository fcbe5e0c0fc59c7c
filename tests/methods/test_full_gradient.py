"""FullGrad: the terms sum to the score in every framework, and are those of the definition."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.onnx.exported import exported
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import MethodError, UnsupportedError
from pellucid.methods.full_gradient import full_grad
from pellucid.methods.objective import Objective
from tests.twins import TWINS

NAMES = sorted(TWINS)
FRAMEWORKS = ["torch", "keras", "tf_keras", "onnx"]
TARGETS = [1, 0]


@cache
def model(name, framework):
    twin = TWINS[name]
    if framework == "onnx":
        return OnnxAdapter(twin.onnx())
    own = (TorchAdapter if framework == "torch" else KerasAdapter)(getattr(twin, framework)())
    own.batch(twin.inputs(2))  # a PyTorch module learns its input's shape from it
    return exported(own)


@cache
def answer(name, framework, **options):
    objective = Objective(model(name, framework), TARGETS)
    (found,) = full_grad(model(name, framework), TWINS[name].inputs(2), objective, **options)
    return found, objective


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_the_terms_sum_to_the_score(name, framework):
    _, objective = answer(name, framework)
    size = np.abs(objective.scores).max()
    assert np.abs(objective.details["completeness_delta"]).max() <= 1e-5 * max(size, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_the_same_in_every_framework(name, framework):
    ours, theirs = answer(name, "torch")[0], answer(name, framework)[0]
    assert ours.std() > 0
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * ours.max())


class Plain(nn.Module):
    """Biases of every kind, one that no module holds among them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3)
        self.shift = nn.Parameter(torch.randn(3, 1, 1))
        self.dense = nn.Linear(3 * 3 * 3, 2)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(0.5, 2)
            self.norm.bias.normal_()

    def forward(self, x):
        self.sum = self.norm(self.conv(x)) + self.shift
        return self.dense(torch.relu(self.sum).flatten(1))


def by_hand(network, x, target):
    """Terms of the definition: of the input, and of all biases that end in the same sum."""
    tensor = torch.from_numpy(x).requires_grad_()
    score = network(tensor)[:, target].sum()
    at_input, at_sum = torch.autograd.grad(score, [tensor, network.sum])
    norm = network.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = (network.conv.bias - norm.running_mean) * scale + norm.bias + network.shift.flatten()
    return (tensor * at_input).detach().numpy(), (bias[:, None, None] * at_sum).detach().numpy()


X = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)


def test_signed_terms_are_spread_over_the_pixels_and_sum_to_what_has_a_place():
    network = Plain().eval()
    of_input, of_biases = by_hand(network, X, 1)
    explanations = pellucid.explain(network, X, "fullgrad", target=1, absolute=False)
    sums = [e.attribution.sum() for e in explanations]
    expected = of_input.sum((1, 2, 3)) + of_biases.sum((1, 2, 3))
    np.testing.assert_allclose(sums, expected, rtol=1e-4)  # of cells of 2 x 2 pixels
    rest = expected + float(network.dense.bias[1].detach())
    np.testing.assert_allclose([e.score for e in explanations], rest, rtol=1e-4)


@pytest.mark.parametrize("scale", ["channel", "layer", "none"])
def test_the_map_is_the_sum_of_magnitudes_scaled_and_resized(scale):
    network = Plain().eval()
    expected = np.zeros((2, 6, 6), np.float32)
    for term in by_hand(network, X, 0):
        term = torch.from_numpy(np.abs(term))
        if scale != "none":
            axes = (2, 3) if scale == "channel" else (1, 2, 3)
            term = term - term.amin(axes, True)
            term = term / term.amax(axes, True).clamp(min=1e-9)  # a channel may be off
        drawn = nn.functional.interpolate(term, (6, 6), mode="bilinear")
        expected += drawn.sum(1).numpy()
    found = pellucid.explain(network, X, "fullgrad", target=0, scale=scale)
    np.testing.assert_allclose([e.attribution for e in found], expected, rtol=1e-4, atol=1e-5)


class Siamese(nn.Module):
    """One layer that sees two images, and what joins them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.join = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.dense = nn.Linear(3, 2)

    def forward(self, left, right):
        self.left, self.right = self.conv(left), self.conv(right)
        self.both = self.join(self.left.relu() - 2 * self.right.relu())
        return self.dense(self.both.relu().mean((2, 3)))


@pytest.mark.parametrize("swapped", [False, True])
def test_the_biases_of_another_tower_are_not_drawn(swapped):
    """They count in the sum, and are drawn when their image comes first."""
    network, rng = Siamese().eval(), np.random.default_rng(3)
    left, right = rng.standard_normal((2, 2, 2, 6, 6)).astype(np.float32)
    given, of = ((right, left) if swapped else (left, right)), 1

    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, first, second):
            return self.network(second, first) if swapped else self.network(first, second)

    model = Swapped().eval()
    tensors = [torch.from_numpy(one).requires_grad_() for one in given]
    score = model(*tensors)[:, of].sum()
    tower = network.right if swapped else network.left
    at_input, at_tower, at_both = torch.autograd.grad(score, [tensors[0], tower, network.both])
    expected = (tensors[0] * at_input).sum((1, 2, 3))
    expected += (network.conv.bias[:, None, None] * at_tower).sum((1, 2, 3))
    expected += (network.join.bias[:, None, None] * at_both).sum((1, 2, 3))
    found = pellucid.explain(model, given, "fullgrad", target=of, absolute=False)
    sums = [one.attribution.sum() for one in found]
    np.testing.assert_allclose(sums, expected.detach().numpy(), rtol=1e-4)
    assert all(abs(one.details["completeness_delta"]) < 1e-5 for one in found)
    assert all("diagnosis" not in one.details for one in found)


class Attention(nn.Module):
    """A block of a transformer, its attention spelled in one of several ways."""

    def __init__(self, spelling, windows=1):
        super().__init__()
        torch.manual_seed(0)
        self.spelling, self.windows = spelling, windows
        self.patches, self.qkv = nn.Conv2d(2, 6, 2, 2), nn.Linear(6, 18)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)
        self.project, self.token = nn.Linear(6, 6), nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Parameter(torch.randn(3, 1 + 9 // windows, 1 + 9 // windows))
        with torch.no_grad():
            self.norm.bias.normal_()

    def heads(self, x):  # (N, T, 6) -> (N, 3, T, 2)
        return x.unflatten(-1, (3, 2)).transpose(1, 2)

    def mixed(self, x):
        if self.spelling == "apart":
            weight, bias = self.qkv.weight, self.qkv.bias
            parts = [x @ weight[i : i + 6].T + bias[i : i + 6] for i in (0, 6, 12)]
        else:
            parts = self.qkv(x).unflatten(-1, (3, 6)).unbind(2)
        q, k, v = (self.heads(part) for part in parts)
        if self.spelling == "operator":
            y = nn.functional.scaled_dot_product_attention(q, k, v, self.places)
        elif self.spelling == "keys first":
            scores = k @ (q / 2**0.5).mT + self.places.mT
            y = (v.mT @ scores.softmax(-2)).mT
        else:
            y = (q @ k.mT * 0.5**0.5 + self.places).softmax(-1) @ v
        return self.project(y.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = self.patches(x).flatten(2).mT  # (N, 9, 6)
        x = x.reshape(-1, 9 // self.windows, 6)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.mixed(self.norm(x))
        return self.head(self.norm(x.reshape(-1, 9 + self.windows, 6).mean(1)))


@cache
def attended(spelling, windows=1):
    x = 3 * np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)
    network = Attention(spelling, windows).eval()
    assert network(torch.zeros(2, 2, 6, 6)).shape == (2, 2)
    return pellucid.explain(network, x, "fullgrad", target=1, scale="channel")


@pytest.mark.parametrize("spelling", ["apart", "operator", "keys first"])
def test_it_does_not_matter_how_attention_is_written(spelling):
    for ours, theirs in zip(attended(spelling), attended("packed"), strict=True):
        size = theirs.attribution.max()
        np.testing.assert_allclose(ours.attribution, theirs.attribution, atol=1e-5 * size)
        assert abs(ours.details["completeness_delta"]) < 1e-5


@pytest.mark.parametrize("spelling", ["apart", "operator", "keys first"])
def test_windows_beside_the_images_belong_to_them(spelling):
    for ours, theirs in zip(attended(spelling, 3), attended("packed", 3), strict=True):
        size = theirs.attribution.max()
        np.testing.assert_allclose(ours.attribution, theirs.attribution, atol=1e-5 * size)
        assert abs(ours.details["completeness_delta"]) < 1e-5


def test_a_file_of_a_fixed_batch_gives_the_same_map():
    free, fixed = TWINS["vit"].onnx(), TWINS["vit"].onnx()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    (x,) = TWINS["vit"].inputs(3)
    maps = [pellucid.explain(OnnxAdapter(file), x, "fullgrad", target=1) for file in (free, fixed)]
    for ours, theirs in zip(*maps, strict=True):
        size = ours.attribution.max()
        np.testing.assert_allclose(theirs.attribution, ours.attribution, atol=1e-5 * size)


def test_a_group_normalisation_in_a_view_of_its_own_is_drawn_where_it_has_a_place():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for explanation in pellucid.explain(network, x, "fullgrad"):
        assert explanation.attribution.shape == (8, 8)
        assert explanation.attribution.std() > 0


def test_what_the_terms_lack_is_told():
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            picture = self.conv(x)
            places = picture[:, :2].permute(0, 2, 3, 1)
            return nn.functional.grid_sample(picture, places, align_corners=True).mean((2, 3))

    torch.manual_seed(0)
    (one,) = pellucid.explain(Moved().eval(), X[:1], "fullgrad", target=1)
    assert one.details["diagnosis"] == "completeness"
    assert "of which what they add is not known" in " ".join(one.notes)
    for name in ("residual", "vit"):
        (x,) = TWINS[name].inputs(1)
        (two,) = pellucid.explain(TWINS[name].torch(), x, "fullgrad", target=1)
        assert "diagnosis" not in two.details


def test_what_it_cannot_do_is_said():
    network = Plain().eval()
    with pytest.raises(MethodError, match="scale='all' is unknown: channel, layer, none"):
        pellucid.explain(network, X, "fullgrad", scale="all")
    with pytest.raises(UnsupportedError, match="engine='onnx'"):
        TorchAdapter(network).biases()

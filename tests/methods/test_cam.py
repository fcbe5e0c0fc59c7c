"""Grad-CAM on a network small enough for paper, and its ways of fusing layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import LayerError, MethodError
from pellucid.methods.cam import grad_cam
from pellucid.methods.objective import Objective
from tests.twins import TWINS


class Paper(nn.Module):
    """Two 1x1 filters on one channel, their ReLU, and a weighted mean: all of it by hand."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[3.0, 1.0], [-2.0, 5.0]]))

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


X = np.array([[[[1.0, -2.0], [3.0, 0.0]]]], np.float32)
# relu(x) and relu(-x); the gradient of class k at them is its weights / 4 everywhere.
POSITIVE = np.array([[1.0, 0.0], [3.0, 0.0]])
NEGATIVE = np.array([[0.0, 2.0], [0.0, 0.0]])
SIGNED = {0: (3 * POSITIVE + NEGATIVE) / 4, 1: (-2 * POSITIVE + 5 * NEGATIVE) / 4}


@pytest.mark.parametrize("target", [0, 1])
def test_grad_cam_is_the_sum_worked_out_on_paper(target):
    model = TorchAdapter(Paper())
    objective = Objective(model, target)
    (signed,) = grad_cam(model, X, objective, ["relu"], relu=False)
    (rectified,) = grad_cam(model, X, Objective(model, target), ["relu"])
    np.testing.assert_allclose(signed[0], SIGNED[target], rtol=1e-6)
    np.testing.assert_allclose(rectified[0], np.maximum(SIGNED[target], 0), rtol=1e-6)
    # Class 0: 3 * mean(1, 0, 3, 0) + 1 * mean(0, 2, 0, 0) = 3.5; class 1: -2 + 2.5.
    assert objective.scores[0] == pytest.approx({0: 3.5, 1: 0.5}[target])


def test_batch_is_one_pass_and_equals_its_images_one_by_one():
    class Counting(Paper):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    model = TorchAdapter(Counting())
    batch = np.random.default_rng(0).standard_normal((5, 1, 4, 4)).astype(np.float32)
    assert model.layers  # the probe's own runs are over
    before = Counting.calls
    together = pellucid.explain(model, batch, target=[0, 1, 0, 1, 1])
    assert Counting.calls == before + 1
    for image, target, explanation in zip(batch, [0, 1, 0, 1, 1], together, strict=True):
        (alone,) = pellucid.explain(model, image[None], target=target)
        np.testing.assert_allclose(explanation.attribution, alone.attribution, rtol=1e-6)
        assert explanation.target == target


def test_layer_without_a_grid_is_refused_and_those_with_one_are_named():
    with pytest.raises(LayerError, match=r"'head' has no spatial grid.*'conv', 'relu'"):
        pellucid.explain(TorchAdapter(Paper()), X, layer="head")


@pytest.mark.parametrize(("fuse", "combine"), [("mean", np.mean), ("max", np.max)])
def test_several_layers_are_scaled_and_fused_on_the_finest_grid(fuse, combine):
    model = TorchAdapter(Paper())
    (explanation,) = pellucid.explain(model, X, target=0, layer=["relu", "conv"], fuse=fuse)
    parts = [pellucid.explain(model, X, target=0, layer=name)[0].attribution
             for name in ("relu", "conv")]  # fmt: skip
    expected = combine([part / part.max() for part in parts], axis=0)
    np.testing.assert_allclose(explanation.attribution, expected, rtol=1e-6)
    assert explanation.layer == ("relu", "conv")


def test_heatmap_is_scaled_to_one_and_an_empty_one_says_so():
    (explanation,) = pellucid.explain(TorchAdapter(Paper()), X, target=0, layer="relu")
    assert explanation.heatmap.max() == pytest.approx(1)
    np.testing.assert_allclose(explanation.heatmap, SIGNED[0] / SIGNED[0].max(), rtol=1e-6)
    (against,) = pellucid.explain(TorchAdapter(Paper()), np.abs(X), target=1, layer="relu")
    assert not against.heatmap.any()
    assert "empty" in against.notes[0]


def test_unknown_options_methods_and_styles_are_named():
    model = TorchAdapter(Paper())
    with pytest.raises(MethodError, match=r"no option 'rely'.*Did you mean 'relu'"):
        pellucid.explain(model, X, rely=True)
    with pytest.raises(MethodError, match=r"no method 'gradcam'.*Did you mean 'grad-cam'"):
        pellucid.explain(model, X, method="gradcam")
    with pytest.raises(MethodError, match="those of 'paper', 'captum'"):
        pellucid.explain(model, X, like="capture")
    with pytest.raises(MethodError, match="empty list"):
        pellucid.explain(model, X, layer=[])


def definitions(a, g):
    """The maps of one image by their definitions, position by position. `(C, h, w)`."""
    channels, rows, columns = a.shape
    plus, x, hires, layer = np.zeros((4, rows, columns))
    for c in range(channels):
        weight = 0.0
        for i in range(rows):
            for j in range(columns):
                below = 2 * g[c, i, j] ** 2 + a[c].sum() * g[c, i, j] ** 3
                alpha = g[c, i, j] ** 2 / below if g[c, i, j] != 0 and below != 0 else 0
                weight += alpha * max(g[c, i, j], 0)
        mean = (g[c] * a[c]).sum() / (a[c].sum() + 1e-7)
        for i in range(rows):
            for j in range(columns):
                plus[i, j] += weight * a[c, i, j]
                x[i, j] += mean * a[c, i, j]
                hires[i, j] += g[c, i, j] * a[c, i, j]
                layer[i, j] += max(g[c, i, j], 0) * a[c, i, j]
    return {"grad-cam++": plus, "xgrad-cam": x, "hires-cam": hires, "layer-cam": layer}


@pytest.mark.parametrize("method", ["grad-cam++", "xgrad-cam", "hires-cam", "layer-cam"])
def test_relatives_of_grad_cam_equal_their_definitions(method):
    model = TorchAdapter(TWINS["residual"].torch())
    (x,) = TWINS["residual"].inputs(2)
    layer = "stage.block1"
    values, gradients = model.pullback(x, Objective(model, 4), [layer], fetch=["logits", layer])
    explanations = pellucid.explain(model, x, method, target=4, layer=layer)
    for index, explanation in enumerate(explanations):
        both = (part[layer][index].astype(np.float64) for part in (values, gradients))
        expected = np.maximum(definitions(*both)[method], 0)
        np.testing.assert_allclose(
            explanation.attribution, expected, rtol=1e-3, atol=1e-5 * expected.max()
        )
        assert expected.max() > 0

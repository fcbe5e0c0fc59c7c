"""Pixel methods on networks whose attributions are known in closed form."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import MethodError
from pellucid.methods.baselines import baselines_of
from pellucid.methods.gradient import smoothgrad
from pellucid.methods.objective import Objective
from pellucid.methods.path import integrated_gradients
from pellucid.methods.registry import METHODS
from tests.twins import TWINS

X = np.random.default_rng(0).standard_normal((3, 2, 5, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((2, 2 * 5 * 4)).astype(np.float32)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(40, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(W))

    def forward(self, x):
        return self.head(x.flatten(1))


def attribution(method, target=1, **options):
    found = pellucid.explain(TorchAdapter(Linear()), X, method, target=target, **options)
    return np.stack([e.attribution for e in found])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("saliency", lambda w: np.abs(w)),
        ("guided-backprop", lambda w: w),
        ("deconvnet", lambda w: w),
        ("input-x-gradient", lambda w: w * X),
        ("integrated-gradients", lambda w: w * X),
        ("smoothgrad", lambda w: np.abs(w)),
    ],
)
def test_of_a_linear_network_the_weights_are_the_answer(method, expected):
    weights = np.broadcast_to(W[1].reshape(2, 5, 4), X.shape)
    np.testing.assert_allclose(attribution(method), expected(weights), rtol=2e-5, atol=1e-6)


def test_variance_of_the_gradient_of_a_linear_network_is_zero_and_its_square_the_weights_squared():
    np.testing.assert_allclose(attribution("smoothgrad", statistic="variance"), 0, atol=1e-6)
    square = np.broadcast_to(W[1].reshape(2, 5, 4) ** 2, X.shape)
    np.testing.assert_allclose(attribution("smoothgrad", statistic="square"), square, rtol=2e-5)


@pytest.mark.parametrize("rule", ["gauss-legendre", "trapezoid"])
@pytest.mark.parametrize("baseline", ["zero", "mean", "blurred", "uniform", np.ones_like(X[0])])
@pytest.mark.parametrize("name", ["residual", "inception", "vit"])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(name, baseline, rule):
    model = TorchAdapter(TWINS[name].torch())
    (x,) = TWINS[name].inputs(2)
    if not isinstance(baseline, str):
        baseline = 0.1 * np.ones_like(x[0])
    objective = Objective(model)
    found = integrated_gradients(model, x, objective, baseline=baseline, steps=300, rule=rule)

    origins = baselines_of(x, baseline)
    starts = [objective.score(model.run(origin, objective.fetch))[0] for origin in origins]
    difference = objective.scores - np.mean(starts, axis=0)
    np.testing.assert_allclose(
        objective.details["convergence_delta"], found.sum(axis=(1, 2, 3)) - difference, atol=1e-4
    )
    np.testing.assert_allclose(
        objective.details["baseline_score"], np.mean(starts, axis=0), atol=1e-4
    )
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), difference, rtol=2e-2, atol=2e-3)


def test_the_class_is_decided_on_the_image_not_on_the_baseline():
    model = TorchAdapter(TWINS["residual"].torch())
    (x,) = TWINS["residual"].inputs(3)
    objective = Objective(model)
    integrated_gradients(model, x, objective)
    assert list(objective.indices) == model.run(x, ["logits"])["logits"].argmax(axis=1).tolist()


def test_smoothgrad_is_the_mean_over_its_noisy_copies_one_by_one():
    model = TorchAdapter(TWINS["plain"].torch())
    (x,) = TWINS["plain"].inputs(2)
    found = smoothgrad(model, x, Objective(model, 3), samples=5, noise=0.2, seed=11)

    rng = np.random.default_rng(11)
    spread = np.ptp(x, axis=(1, 2, 3), keepdims=True)
    total = np.zeros_like(x)
    for noise in rng.standard_normal((5, *x.shape), np.float32):
        noisy = torch.from_numpy(x + noise * 0.2 * spread).requires_grad_()
        (gradient,) = torch.autograd.grad(model.module(noisy)[:, 3].sum(), noisy)
        total += np.abs(gradient.numpy()) / 5
    np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-6)


@cache
def frameworks(name):
    twin = TWINS[name]
    x, ours = twin.inputs(2), LAYERS[name]
    made = TorchAdapter(twin.torch()), KerasAdapter(twin.keras()), OnnxAdapter(twin.onnx())
    wanted = made[0].run(x, [ours])[ours]
    same = (layer.name for layer in made[2].layers if layer.shape[1:] == wanted.shape[1:])
    in_onnx = next(n for n in same if np.allclose(made[2].run(x, [n])[n], wanted, atol=1e-5))
    return tuple(zip(made, (ours, twin.matched[ours], in_onnx), strict=True))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", ["residual", "two_by_two"])  # test_agreement.py has them all
def test_every_method_gives_the_same_in_pytorch_keras_and_onnx(name, method):
    twin = TWINS[name]
    x = twin.inputs(2)
    found = METHODS[method]
    options = {"steps": 8} if "steps" in found.parameters else {}
    options |= {"samples": 4} if "samples" in found.parameters else {}
    results = []
    for model, own in frameworks(name):
        pictures = tuple(p.own_layout(a) for p, a in zip(model.inputs, x, strict=True))
        pictures = pictures if len(pictures) > 1 else pictures[0]
        layer = {"layer": own} if found.layer else {}
        results.append(pellucid.explain(model, pictures, method, target=1, **layer, **options))
    for one, *others in zip(*results, strict=True):
        scale = np.abs(one.attribution).max()
        assert scale > 0
        rounding = 4 * np.finfo(np.float32).eps if found.perturbs else 0  # of the scores' falls
        for other in others:
            assert one.attribution.shape == other.attribution.shape
            assert np.abs(one.attribution - other.attribution).max() <= 2e-5 * scale + rounding
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-3)
            assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-5)


LAYERS = {
    "residual": "stage.block2",
    "conv1d": "pool1",
    "conv3d": "pool1",
    "two_by_two": "conv",
    "vit": "block2.norm1",
}


def test_signed_maps_are_centred_and_pixel_maps_survive_one_bright_pixel():
    (signed,) = pellucid.explain(TorchAdapter(Linear()), X[:1], "input-x-gradient", target=0)
    assert signed.signed
    total = signed.attribution.sum(axis=0)
    assert ((signed.heatmap > 0.5) == (total > 0)).all()
    (plain,) = pellucid.explain(TorchAdapter(Linear()), X[:1], "saliency", target=0)
    assert not plain.signed
    assert plain.heatmap.max() == 1


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated-gradients", {"rule": "simpson"}, "rule='simpson'"),
        ("integrated-gradients", {"steps": 0}, "steps=0"),
        ("integrated-gradients", {"baseline": "white"}, "baseline='white'"),
        ("integrated-gradients", {"baseline": np.zeros(3)}, r"baseline has shape \(3,\)"),
        ("smoothgrad", {"statistic": "median"}, "statistic='median'"),
        ("saliency", {"absolute": "no"}, "True or False"),
        ("saliency", {"layer": "head"}, "leave layer= out"),
        (
            "smoothgrad",
            {"like": "torch-cam"},
            "those of 'paper', 'captum', 'tf-keras-vis', 'xplique'",
        ),
        ("smoothgrad", {"unit": "pixel"}, "unit='pixel' is unknown"),
        ("smoothgrad", {"samples": 1, "unbiased": True}, "variance of one sample"),
        ("guided-ig", {"like": "captum"}, "gives the paper's array alone"),
    ],
)
def test_wrong_options_are_one_clear_error(method, options, message):
    with pytest.raises(MethodError, match=message):
        pellucid.explain(TorchAdapter(Linear()), X, method, **options)

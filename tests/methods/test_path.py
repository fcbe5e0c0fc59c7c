"""Path methods, XRAI and smoothing, against closed forms and slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import MethodError
from pellucid.methods.batching import gradient_rows, watched
from pellucid.methods.objective import Objective
from pellucid.methods.path import blur_ig, expected_gradients, guided_ig, integrated_gradients
from pellucid.methods.xrai import xrai
from tests.twins import TWINS

X = np.random.default_rng(0).standard_normal((3, 2, 6, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal(2 * 6 * 4).astype(np.float32)


class Quadratic(nn.Module):
    """Score w . x, and the sum of (w x)^2 / 2, whose integrated gradients are those terms."""

    def forward(self, x):
        y = x.flatten(1) * torch.from_numpy(W)
        return torch.stack([y.sum(1), (y**2).sum(1) / 2], dim=1)


def model():
    made = TorchAdapter(Quadratic())
    made.batch(X)
    return made


METHODS = {
    "integrated-gradients": integrated_gradients,
    "blur-ig": blur_ig,
    "guided-ig": guided_ig,
    "expected-gradients": expected_gradients,
}


def test_integrated_gradients_of_a_square_are_its_terms():
    found = integrated_gradients(model(), X, Objective(model(), 1), steps=3)
    np.testing.assert_allclose(found, (W.reshape(X.shape[1:]) * X) ** 2 / 2, rtol=1e-5, atol=1e-6)


def test_blur_ig_of_a_linear_score_is_what_the_blur_took_away():
    found = blur_ig(model(), X, Objective(model(), 0), steps=7, blur=0.5)
    blurred = gaussian_filter(X, [0, 0, 3, 3])
    expected = W.reshape(X.shape[1:]) * (X - blurred)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_guided_ig_of_a_linear_score_is_integrated_gradients():
    found = guided_ig(model(), X, Objective(model(), 0), steps=9, distance=1)
    np.testing.assert_allclose(found, W.reshape(X.shape[1:]) * X, rtol=1e-4, atol=1e-5)


def test_guided_ig_moves_the_values_with_small_slopes_first_and_half_the_way_in_half_the_steps():
    ends = []

    class Watching(Quadratic):
        def forward(self, x):
            ends.append(x.detach().numpy().copy())
            return super().forward(x)

    watching = TorchAdapter(Watching())
    watching.batch(X)
    objective = Objective(watching, 0)
    objective.settle(X)
    ends.clear()
    guided_ig(watching, X, objective, steps=4, distance=1, fraction=0.1)
    half = ends[2][0]  # the gradient's third evaluation is at half the way
    share = np.abs(half).sum() / np.abs(X[0]).sum()
    assert share == pytest.approx(0.5, abs=1e-4)
    order = np.argsort(np.abs(W), kind="stable")
    moved = (half / X[0]).reshape(-1)[order]
    assert (np.diff(np.round(moved, 4)) <= 0).all()  # whole for small slopes, zero for large ones


def test_expected_gradients_of_a_linear_score_are_the_weights_times_the_mean_difference():
    background = np.random.default_rng(2).standard_normal((1, *X.shape[1:])).astype(np.float32)
    found = expected_gradients(model(), X, Objective(model(), 0), background=background, samples=8)
    np.testing.assert_allclose(
        found, W.reshape(X.shape[1:]) * (X - background), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["residual", "vit", "conv1d", "conv3d", "two_by_two"])
def test_what_the_pixels_get_sums_to_the_difference_and_the_delta_says_how_nearly(method, name):
    twin = TWINS[name]
    network, x = TorchAdapter(twin.torch()), twin.inputs(2)
    network.batch(x)
    objective = Objective(network, 1)
    options = {"samples": 400} if method == "expected-gradients" else {"steps": 100}
    found = METHODS[method](network, x, objective, **options)
    total = found.reshape(2, -1).sum(axis=1)
    wanted = objective.scores - objective.details["baseline_score"]
    np.testing.assert_allclose(objective.details["convergence_delta"], total - wanted, atol=1e-4)
    tolerance = 0.2 if method == "expected-gradients" else 0.05
    # The class token of two_by_two, and the second input, stay as they are on every path.
    assert np.abs(total - wanted).max() <= tolerance * np.abs(found).reshape(2, -1).sum(1).max()


def test_the_delta_is_part_of_the_explanation(tmp_path):
    (x,) = TWINS["residual"].inputs(2)
    first, second = pellucid.explain(
        TWINS["residual"].torch(), x, "integrated-gradients", target=2, steps=200
    )
    assert abs(first.details["convergence_delta"]) < 0.02 * abs(first.score)
    assert first.details["baseline_score"] == pytest.approx(second.details["baseline_score"])
    again = pellucid.Explanation.load(first.save(tmp_path / "ig.npz"))
    assert again.details == pytest.approx(first.details)


def test_few_steps_on_a_rough_path_are_a_note():
    (x,) = TWINS["residual"].inputs(1)
    (rough,) = pellucid.explain(
        TWINS["residual"].torch(), 3 * x, "integrated-gradients", target=2, steps=1
    )
    assert any("Take more steps" in note for note in rough.notes)


def test_memory_bounds_the_rows_of_a_pass_and_changes_nothing():
    network, (x,) = TorchAdapter(TWINS["plain"].torch()), TWINS["plain"].inputs(2)
    most = []
    pullback = network._pullback
    network._pullback = lambda batch, *rest: most.append(len(batch[0])) or pullback(batch, *rest)
    memory = 2**20
    few = integrated_gradients(network, x, Objective(network, 1), steps=16, memory=memory)
    assert 2 <= max(most) <= gradient_rows(network, x, memory) < 32
    many = integrated_gradients(network, x, Objective(network, 1), steps=16)
    np.testing.assert_allclose(few, many, atol=1e-6 * np.abs(many).max())


def test_a_watcher_hears_of_every_chunk():
    heard = []
    with watched(lambda done, total: heard.append((done, total))):
        guided_ig(model(), X, Objective(model(), 0), steps=3)
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_xrai_takes_the_patch_that_decides_first():
    rng = np.random.default_rng(0)
    image = 0.2 + 0.01 * rng.standard_normal((1, 1, 40, 40)).astype(np.float32)
    image[0, 0, 8:18, 20:32] = 1.0
    image[0, 0, 25:35, 5:15] = 0.7

    class Patch(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 8:18, 20:32].sum((1, 2)), 0 * x.sum((1, 2, 3))], dim=1)

    network = TorchAdapter(Patch())
    network.batch(image)
    (found,) = xrai(network, image, Objective(network, 0), steps=4)
    best = found[0] == found[0].max()
    inside = np.zeros((40, 40), bool)
    inside[8:18, 20:32] = True
    assert best[inside].mean() > 0.95
    assert best.sum() < 2.2 * inside.sum()  # the segment and its margin
    assert found[0][25:35, 5:15].max() < found[0].max() / 2


@pytest.mark.parametrize("name", ["residual", "conv1d", "conv3d"])
def test_xrai_gives_every_pixel_a_value_in_any_number_of_dimensions(name):
    twin = TWINS[name]
    (x,) = twin.inputs(2)
    found = pellucid.explain(twin.torch(), x, "xrai", target=1, steps=8)
    for one in found:
        assert one.attribution.shape == x.shape[2:]
        assert len(np.unique(one.attribution)) > 2


def test_any_method_can_be_averaged_over_noisy_copies():
    (x,) = TWINS["residual"].inputs(2)
    network = TorchAdapter(TWINS["residual"].torch())
    options = {"target": 3, "layer": "stage.block2"}
    found = pellucid.explain(network, x, "grad-cam", smooth=3, noise=0.2, seed=5, **options)
    rng, spread = np.random.default_rng(5), np.ptp(x, axis=(1, 2, 3), keepdims=True)
    total = 0
    for _ in range(3):
        noisy = x + rng.standard_normal(x.shape, np.float32) * np.float32(0.2) * spread
        total = total + np.stack(
            [e.attribution for e in pellucid.explain(network, noisy, "grad-cam", **options)]
        )
    ours = np.stack([e.attribution for e in found])
    np.testing.assert_allclose(ours, total / 3, rtol=1e-5, atol=1e-6)
    assert found[0].score == pytest.approx(
        pellucid.explain(network, x, "grad-cam", **options)[0].score
    )
    with pytest.raises(MethodError, match="no option 'smooth'"):
        pellucid.explain(network, x, "smoothgrad", smooth=3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("blur-ig", {"blur": 0}, "blur=0"),
        ("guided-ig", {"fraction": 2}, "between 0 and 1"),
        ("guided-ig", {"baseline": "uniform"}, "one baseline"),
        ("expected-gradients", {"background": "white"}, "background='white'"),
        ("expected-gradients", {"background": np.zeros((2, 3))}, r"has shape \(2, 3\)"),
        ("saliency", {"smooth": 0}, "smooth=0"),
        ("saliency", {"noise": "much"}, "noise='much'"),
    ],
)
def test_wrong_options_are_one_clear_error(method, options, message):
    with pytest.raises(MethodError, match=message):
        pellucid.explain(model(), X, method, **options)

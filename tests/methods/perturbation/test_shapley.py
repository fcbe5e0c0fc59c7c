"""Shapley values: closed forms, the axioms, their estimators."""

from __future__ import annotations

from itertools import permutations, product
from math import comb, factorial

import numpy as np
import pytest

import pellucid
from pellucid.errors import MethodError
from pellucid.methods.perturbation.kriging import Kriging, fair_shares
from pellucid.methods.perturbation.sampling import balanced_pairs
from pellucid.methods.perturbation.shapley import coalition_sizes
from tests.methods.perturbation.scenes import SEGMENTS, image, network

METHODS = ("kernel-shap", "shapley-sampling")
OPTIONS = {"segments": SEGMENTS, "replacement": 0.0}
COEFFICIENTS = np.array([3.0, -2, 0, 0, 1, 1, 0.5, 0, -0.25, 0, 0, 0.1])
SIX = {"segments": np.minimum(SEGMENTS, 5), "replacement": 0.0}  # the last one is large


def linear(z):
    return 0.5 + z @ COEFFICIENTS


def game(z):
    """Superpixels 0 and 1 are symmetric, 3 is a dummy, 2 and 4 interact with both."""
    return z[:, 0] * z[:, 1] * (1 + z[:, 2]) - 0.7 * np.maximum(z[:, 4], z[:, 2]) + z[:, 5]


def shapley_by_hand(value, count):
    shares = np.zeros(count)
    for order in permutations(range(count)):
        shown = np.zeros((count + 1, 12))
        for place, player in enumerate(order):
            shown[place + 1 :, player] = 1
            if player == 5:
                shown[place + 1 :, 5:] = 1
        shares[list(order)] += np.diff(value(shown))
    return shares / factorial(count)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_gives_its_coefficients(method):
    found = pellucid.explain(network(linear), image(), method, budget=500, **OPTIONS)
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)
    assert found.intercept == pytest.approx(0.5, abs=1e-6)
    assert found.local_prediction == pytest.approx(found.score, abs=1e-6)
    assert found.r2 == pytest.approx(1)


def test_kernel_shap_of_few_superpixels_is_exact():
    found = pellucid.explain(network(game), image(), "kernel-shap", **SIX)
    np.testing.assert_allclose(found.weights, shapley_by_hand(game, 6), atol=1e-6)
    assert found.weights[3] == pytest.approx(0, abs=1e-7)  # dummy
    assert found.weights[0] == pytest.approx(found.weights[1], abs=1e-7)  # symmetric
    assert found.predictions == 1 + 1 + 62
    assert found.certainty == 1


def test_kernel_shap_of_a_linear_model_by_sampling():
    found = pellucid.explain(network(linear), image(), "kernel-shap", num_samples=60, **OPTIONS)
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)


def test_the_shapley_values_of_the_process_are_exact():
    rng, sizes = np.random.default_rng(2), coalition_sizes(7)
    masks = next(balanced_pairs(sizes, rng))
    scores = rng.normal(size=50)
    kriging = Kriging(rng.uniform(0.001, 0.8, 7), 1.7, 0.05)
    shares, deviations = fair_shares(kriging, masks, scores, sizes)

    def shapley(rows):
        """Fit the process to some masks, and add up all 5040 orders of its mean."""
        level, x = scores.mean(), np.where(masks[rows], 1.0, -1.0)

        def kernel(a, b):
            return 1.7 * np.exp(((a[:, None] * b - 1) * kriging.relevance).sum(-1))

        alpha = np.linalg.solve(kernel(x, x) + 0.05 * np.eye(len(x)), scores[rows] - level)
        every = np.array(list(product([0, 1], repeat=7)))
        mean = dict(zip(map(tuple, every), level + kernel(2.0 * every - 1, x) @ alpha, strict=True))
        mean[(0,) * 7] = mean[(1,) * 7] = 0.0
        found = np.zeros(7)
        for order in permutations(range(7)):
            coalition = [0] * 7
            for player in order:
                before = mean[tuple(coalition)]
                coalition[player] = 1
                found[player] += mean[tuple(coalition)] - before
        return found / factorial(7)

    np.testing.assert_allclose(shares, shapley(np.arange(50)), atol=1e-9)
    assert deviations.shape == (25, 7)


def test_the_process_stays_exact_with_many_superpixels():
    """Of one pair of masks and superpixels alike, sums over sizes and overlaps tell all."""
    count, kept, unlike = 80, 30, 0.9
    sizes = coalition_sizes(count)
    mask = np.arange(count) < kept
    kriging = Kriging(np.full(count, -np.log(unlike) / 2), 1.0, 0.1)
    found, _ = fair_shares(kriging, np.array([mask, ~mask]), np.array([1.0, -1.0]), sizes)

    def joint(shown, among):  # E k(z, x) z_j, superpixel j among the shown ones of x or not
        return sum(
            sizes[s] / comb(count, s) * unlike ** (shown + s - 2 * both)
            * comb(shown - among, both - among)
            * comb(count - shown - (not among), s - both - (not among))
            for s in range(1, count) for both in range(among, min(shown, s - (not among)) + 1)
        )  # fmt: skip

    alpha = 1 / (1 + 0.1 - unlike**count)  # of the first mask; that of the second is its negative
    first = joint(kept, True) - joint(count - kept, False)
    second = joint(kept, False) - joint(count - kept, True)
    s = np.arange(count + 1)
    apart = sizes @ (s * (count - s)) / (count * (count - 1))
    expected = alpha * np.where(mask, first, second) / apart
    np.testing.assert_allclose(found, expected - expected.mean(), rtol=1e-9)


def test_the_process_makes_kernel_shap_steadier_and_keeps_the_sum():
    exact = shapley_by_hand(game, 6)
    weights, told = {}, {}
    for surrogate in (False, True):
        found = [
            pellucid.explain(
                network(game), image(), "kernel-shap", num_samples=40, surrogate=surrogate,
                seed=seed, **SIX,
            )
            for seed in range(20)
        ]  # fmt: skip
        weights[surrogate] = np.array([one.weights for one in found])
        told[surrogate] = np.sqrt(np.mean([one.standard_errors**2 for one in found]))
        assert max(abs(one.facts["efficiency_gap"]) for one in found) < 1e-6
    error = {key: np.sqrt(((rows - exact) ** 2).mean()) for key, rows in weights.items()}
    assert error[True] < 0.8 * error[False]
    assert told[True] > 0.8 * error[True]


@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_right_on_average_add_up_and_know_their_error(method):
    exact = shapley_by_hand(game, 6)
    budget = {"num_samples": 40} if method == "kernel-shap" else {"budget": 40}
    found = [
        pellucid.explain(network(game), image(), method, seed=seed, **budget, **SIX)
        for seed in range(60)
    ]
    weights = np.array([one.weights for one in found])
    total = found[0].score - float(game(np.zeros((1, 12)))[0])
    np.testing.assert_allclose(weights.sum(axis=1), total, atol=1e-6)  # efficiency
    assert max(abs(one.facts["efficiency_gap"]) for one in found) < 1e-6
    spread = weights.std(axis=0, ddof=1)
    assert (np.abs(weights.mean(axis=0) - exact) < 4 * spread / np.sqrt(60) + 1e-6).all()
    told = np.sqrt(np.mean([one.standard_errors**2 for one in found], axis=0))
    assert 0.75 < np.sqrt((told**2).mean() / (spread**2).mean()) < 1.5


def test_pairs_of_orders_settle_interactions_of_two_at_once():
    found = pellucid.explain(
        network(lambda z: z[:, 0] * z[:, 1] + 2 * z[:, 1] * z[:, 7]),
        image(),
        "shapley-sampling",
        budget=44,
        **OPTIONS,
    )
    np.testing.assert_allclose(found.weights, [0.5, 1.5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], atol=1e-6)


def test_too_small_a_budget_is_refused():
    with pytest.raises(MethodError, match="two pairs of orders of 12 superpixels take 44"):
        pellucid.explain(network(linear), image(), "shapley-sampling", budget=43, **OPTIONS)


@pytest.mark.parametrize("method", METHODS)
def test_control_c_keeps_whole_pairs(method):
    asked = []

    def predict(batch):
        asked.append(len(batch))
        if len(asked) == 6:
            raise KeyboardInterrupt
        return linear(batch[:, ::4, ::4, 0].reshape(len(batch), 12))

    found = pellucid.explain(predict, image(), method, budget=400, confidence=0.999, **OPTIONS) \
        if method == "kernel-shap" \
        else pellucid.explain(predict, image(), method, budget=400, **OPTIONS)  # fmt: skip
    np.testing.assert_allclose(found.weights, COEFFICIENTS, atol=1e-6)

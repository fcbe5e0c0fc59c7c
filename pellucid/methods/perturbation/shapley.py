"""Shapley values of superpixels: the fair shares of what the image scores above nothing.

The game is v(S), the score of the image with the superpixels S shown and all others hidden. The
shares add up to v(all) - v(none) exactly, by both estimators.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from math import comb
from typing import Any

import numpy as np

from pellucid.errors import MethodError
from pellucid.methods.perturbation.details import Finding, Numbers
from pellucid.methods.perturbation.kriging import Kernels, fair_shares, leaves_something
from pellucid.methods.perturbation.regression import Fit, top_certainty
from pellucid.methods.perturbation.sampling import Masks, pairs_of
from pellucid.methods.perturbation.segments import COUNT
from pellucid.methods.perturbation.settling import Settling, finding_of, settled_fit
from pellucid.methods.perturbation.subject import Subject

__all__ = ["coalition_sizes", "kernel_shap", "shapley_sampling"]

_ALL = 12  # superpixels of which every coalition is asked about, if the budget allows


def kernel_shap(
    subject: Subject,
    *,
    segments: Any = "slic",
    num_segments: int = COUNT,
    segment_options: Mapping[str, Any] | None = None,
    replacement: Any = "mean",
    num_samples: int | None = None,
    budget: int = 1000,
    confidence: float = 0.95,
    top_segments: int = 5,
    tolerance: float = 0.05,
    rank_stability: float = 0.9,
    surrogate: bool | None = None,
) -> Finding:
    """Estimate Shapley values by least squares on coalitions.

    `argmin over w of E (v(z) - v(0) - w . z)^2` with `sum of w = v(1) - v(0)`, over coalitions of
    s of K superpixels drawn with chance proportional to `(K - 1) / (s (K - s))`, each together
    with its complement. A Gaussian process models what the least squares cannot express, as for
    `lime`. Where the budget reaches all coalitions (up to 12 superpixels) the result is exact.

    Parameters
    ----------
    All as for `lime`.

    Source
    ------
    Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017,
    1705.07874. Pairs and their standard errors: Covert and Lee, AISTATS 2021, 2012.01536.
    """
    rule = Settling(num_samples, budget, confidence, top_segments, tolerance, rank_stability)
    labels, compose = subject.hidden_segments(segments, num_segments, segment_options, replacement)
    count = int(labels.max()) + 1
    nothing = _alone(subject.scores(np.zeros((1, count), bool), compose))
    least_squares = partial(_shares, nothing=nothing, everything=subject.score)
    modelled = num_samples is None if surrogate is None else surrogate
    most = num_samples if num_samples is not None else budget
    if count <= _ALL and 2**count - 2 <= most:
        masks = np.array(list(product([False, True], repeat=count)))[1:-1]
        scores = subject.scores(masks, compose)
        if len(scores) == len(masks):
            exact = least_squares(masks, scores, weights=_kernel(masks))
            facts = {"samples": len(masks), "exact": True, "efficiency_gap": 0.0}
            exact = Fit(exact.intercept, exact.weights, exact.r2, np.zeros((1, count)))
            return finding_of(labels, exact, certainty=1.0, rank_stability=1.0, facts=facts)
    sizes, kernels = coalition_sizes(count), Kernels()

    def fit(masks: Masks, scores: Numbers) -> Fit:
        linear = least_squares(masks, scores)
        if not modelled or not leaves_something(linear, scores):
            return linear
        level = (subject.score - nothing) / count
        remainder = scores - nothing - level * masks.sum(axis=1)
        kriging = kernels.of(masks, remainder, linear.weights)
        shares, deviations = fair_shares(kriging, masks, remainder, sizes)
        shares += level
        return Fit(nothing, shares, _r2(masks, scores, nothing, shares), deviations)

    masks_of = pairs_of(sizes, subject.seed)
    found, also = settled_fit(subject, compose, count, masks_of, fit, rule)
    gap = subject.score - nothing - float(found.weights.sum())
    also["facts"] |= {"efficiency_gap": gap}
    return finding_of(labels, found, **also)


def shapley_sampling(
    subject: Subject,
    *,
    segments: Any = "slic",
    num_segments: int = COUNT,
    segment_options: Mapping[str, Any] | None = None,
    replacement: Any = "mean",
    budget: int = 1000,
    top_segments: int = 5,
    tolerance: float = 0.05,
) -> Finding:
    """Estimate Shapley values from superpixels that appear in random orders.

    A superpixel's share is the mean of what its appearance adds. Every order is followed
    backwards too, which halves the work of two superpixels' interaction; the sum of an order is
    v(all) - v(none), and so is that of the shares.

    Parameters
    ----------
    budget : predictions at most; a pair of orders takes 2 (K - 1).
    others : as for `lime`.

    Source
    ------
    Castro et al., "Polynomial calculation of the Shapley value based on sampling", 2009;
    Strumbelj and Kononenko, JMLR 2010. Antithetic orders: Mitchell et al., 2104.12199.
    """
    Settling(None, budget, 0.5, top_segments, tolerance)
    labels, compose = subject.hidden_segments(segments, num_segments, segment_options, replacement)
    count = int(labels.max()) + 1
    nothing = _alone(subject.scores(np.zeros((1, count), bool), compose))
    each = 2 * (count - 1)
    pairs = budget // each
    if pairs < 2:
        raise MethodError(
            f"budget={budget} is too small: two pairs of orders of {count} superpixels take "
            f"{2 * each} predictions."
        )
    rng = np.random.default_rng(subject.seed)
    orders = np.stack([rng.permutation(count) for _ in range(pairs)])
    orders = np.stack([orders, orders[:, ::-1]], axis=1)  # (pairs, 2, K)
    places = orders.argsort(axis=-1)
    shown = places[:, :, None, :] < np.arange(1, count)[:, None]  # (pairs, 2, K - 1, K)
    scores = subject.scores(shown.reshape(-1, count), compose)
    done = len(scores) // each
    if done < 2:
        raise KeyboardInterrupt
    paths = np.empty((done, 2, count + 1))
    paths[..., 0], paths[..., -1] = nothing, subject.score
    paths[..., 1:-1] = scores[: done * each].reshape(done, 2, count - 1)
    gains = np.empty((done, 2, count))
    np.put_along_axis(gains, orders[:done], np.diff(paths, axis=-1), axis=-1)
    shares = gains.mean(axis=1)  # (pairs, K)
    weights = shares.mean(axis=0)
    masks = shown[:done].reshape(-1, count)
    fit = Fit(
        intercept=nothing,
        weights=weights,
        r2=_r2(masks, scores[: len(masks)], nothing, weights),
        deviations=(shares - weights) / np.sqrt(done * (done - 1)),
    )
    certainty, stability = top_certainty(fit, top_segments, tolerance)
    facts = {
        "samples": len(masks),
        "orders": 2 * done,
        "top_segments": min(top_segments, count),
        "efficiency_gap": subject.score - nothing - float(weights.sum()),
    }
    return finding_of(labels, fit, certainty=certainty, rank_stability=stability, facts=facts)


def _alone(scores: Numbers) -> float:
    if not len(scores):
        raise KeyboardInterrupt
    return float(scores[0])


def coalition_sizes(count: int) -> Numbers:
    """Probability that a coalition has s of `count` members, by the Shapley kernel."""
    chance = np.zeros(count + 1)
    members = np.arange(1, count)
    chance[1:-1] = 1 / (members * (count - members))
    chance /= chance.sum()
    return chance


def _kernel(masks: Masks) -> Numbers:
    """Weight of every coalition, when all of them are there once."""
    count = masks.shape[1]
    by_size = [1 / (comb(count, s) * s * (count - s)) for s in range(1, count)]
    weights: Numbers = np.array(by_size)[masks.sum(axis=1) - 1]
    return weights


def _shares(
    masks: Masks,
    scores: Numbers,
    *,
    nothing: float,
    everything: float,
    weights: Numbers | None = None,
) -> Fit:
    """Fit the shares by least squares, their sum being fixed.

    The sum is met by giving all superpixels the same share; what is left lies in the directions
    that sum to zero, and there the problem has no constraint.
    """
    count = masks.shape[1]
    weights = np.ones(len(masks)) if weights is None else weights
    level = (everything - nothing) / count
    x = masks.astype(np.float64)
    residual = scores - nothing - level * x.sum(axis=1)
    directions = np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]
    inside = x @ directions
    weighted = inside * weights[:, None]
    inverse = np.linalg.pinv(inside.T @ weighted, hermitian=True)
    slope = inverse @ (weighted.T @ residual)
    away = residual - inside @ slope
    leverage = np.einsum("nk,kl,nl->n", weighted, inverse, inside, optimize=True)
    pulls = weighted * (away / np.maximum(1 - leverage, 1e-6))[:, None]
    together = np.add.reduceat(pulls, np.arange(0, len(pulls), 2), axis=0)
    shares = level + directions @ slope
    return Fit(
        intercept=nothing,
        weights=shares,
        r2=_r2(masks, scores, nothing, shares, weights),
        deviations=together @ inverse @ directions.T,
    )


def _r2(
    masks: Masks, scores: Numbers, nothing: float, shares: Numbers, weights: Numbers | None = None
) -> float:
    weights = np.ones(len(masks)) if weights is None else weights
    around = scores - np.average(scores, weights=weights)
    spread = float(weights @ around**2)
    return 1 - float(weights @ (scores - nothing - masks @ shares) ** 2) / spread if spread else 1.0

"""LIME: the weights of the linear model that is closest to the network around an image.

The target is that of the paper and of the `lime` package: the locally weighted linear regression
of the score on the mask, as the number of masks grows. What differs is how it is estimated; see
docs/lime.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pellucid.errors import MethodError
from pellucid.methods.perturbation.composing import Composer, HiddenSegments, Pictures
from pellucid.methods.perturbation.details import Finding, Labels, Numbers
from pellucid.methods.perturbation.kriging import Kriging, projected
from pellucid.methods.perturbation.regression import Fit, ridge, top_certainty
from pellucid.methods.perturbation.sampling import (
    KERNEL_WIDTH,
    Locality,
    Masks,
    bernoulli_masks,
    paired_masks,
)
from pellucid.methods.perturbation.segments import COUNT
from pellucid.methods.perturbation.subject import Subject
from pellucid.methods.perturbation.threads import one_thread

__all__ = ["lime", "lime_of_package"]

_BLOCK = 25  # pairs that are drawn together, so that a longer run begins with a shorter one
_CHECKS = (100, 150, 200, 300, 400, 600, 800)
_ADDITIVE = 1e-4  # share of the variance below which the linear model leaves nothing to model


def lime(
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
    kernel_width: float = KERNEL_WIDTH,
    surrogate: bool | None = None,
) -> Finding:
    """Weigh superpixels by the linear model of the score near the image.

    `argmin over (b, w) of E_mu (score(z) - b - w . z)^2` over masks z, where mu prefers masks that
    keep much of the image (`kernel_width`). Masks come in pairs with their complements and from mu
    itself, and a Gaussian process models what the linear model cannot express, so that it adds
    little noise. Sampling ends once the top superpixels are settled.

    Parameters
    ----------
    segments : `"slic"`, `"quickshift"`, `"felzenszwalb"`, `"grid"`, a label image over the
        network's input, or a function from a picture to one.
    num_segments : superpixels aimed at, by SLIC and the grid.
    segment_options : further arguments of scikit-image's function.
    replacement : what hidden superpixels show: `"mean"` of each, `"blur"`, `"inpaint"`,
        `"noise"`; a colour (one number or one per channel, 0 to 255 where images are pictures);
        or another image.
    num_samples : exactly so many masks, in place of the stopping rule; the weights are then plain
        weighted least squares.
    budget : masks at most.
    confidence : sample until the `top_segments` superpixels of the largest magnitude are so with
        this probability, ...
    tolerance : ... but for differences below this share of the largest weight.
    kernel_width : of LIME's exponential kernel over cosine distance.
    surrogate : whether the Gaussian process is used; None: with the stopping rule.

    Returns
    -------
    Finding
        Weights in units of the score.

    Raises
    ------
    MethodError : an option is out of range, there is one superpixel, or scores are not finite.

    Source
    ------
    Ribeiro et al., "Why Should I Trust You?", KDD 2016, 1602.04938. Direct sampling: Tan et al.,
    GLIME, NeurIPS 2023, 2311.15722. A stopping rule: Zhou et al., S-LIME, KDD 2021, 2106.07875.
    """
    if not 0 < confidence < 1:
        raise MethodError(f"confidence={confidence!r} must lie between 0 and 1.")
    for name, number in (("num_samples", num_samples), ("budget", budget)):
        if number is not None and (not isinstance(number, int) or number < 4):
            raise MethodError(f"{name}={number!r} must be a whole number, 4 or more.")
    if not isinstance(top_segments, int) or top_segments < 1:
        raise MethodError(f"top_segments={top_segments!r} must be a whole number, 1 or more.")
    labels, compose = subject.hidden_segments(segments, num_segments, segment_options, replacement)
    locality = Locality(int(labels.max()) + 1, kernel_width)
    fixed = num_samples is not None
    surrogate = not fixed if surrogate is None else surrogate
    masks: Masks = np.zeros((0, locality.count), bool)
    scores: Numbers = np.zeros(0)
    fit, certainty, stability, settled = None, 0.0, 0.0, False
    for size in _sizes(num_samples, budget, locality.count):
        new = _drawn(locality, subject.seed, len(masks), size)
        answered = subject.scores(new, compose)
        whole = len(answered) // 2 * 2
        masks = np.concatenate((masks, new[:whole]))
        scores = np.concatenate((scores, answered[:whole]))
        if len(masks) < 4:
            raise KeyboardInterrupt
        fit = _fitted(masks, scores, locality, surrogate)
        certainty, stability = top_certainty(fit, top_segments, tolerance)
        settled = not fixed and certainty >= confidence
        if settled or subject.interrupted:
            break
    assert fit is not None
    return _finding(
        labels,
        fit,
        certainty=certainty,
        rank_stability=stability,
        settled=None if fixed else settled,
        facts={"samples": len(masks), "top_segments": min(top_segments, locality.count)},
    )


def lime_of_package(
    subject: Subject,
    *,
    segments: Any = "quickshift",
    num_segments: int = COUNT,
    segment_options: Mapping[str, Any] | None = None,
    replacement: Any = "mean",
    num_samples: int = 1000,
    kernel_width: float = KERNEL_WIDTH,
    top_segments: int = 5,
    tolerance: float = 0.05,
) -> Finding:
    """Give the weights of the `lime` package 0.2.0.1: its samples, its ridge.

    `seed` is its `random_state`. Superpixels are those of the picture in its own size, whose
    perturbed copies go through the preprocessing one by one where that resizes them.
    """
    if not isinstance(num_samples, int) or num_samples < 2:
        raise MethodError(f"num_samples={num_samples!r} must be a whole number, 2 or more.")
    labels, compose = _as_package(subject, segments, num_segments, segment_options, replacement)
    locality = Locality(int(labels.max()) + 1, kernel_width)
    state = np.random.RandomState(subject.seed)
    state.randint(0, high=1000)  # the package draws a seed for its segmentation, then ignores it
    masks = bernoulli_masks(locality.count, num_samples, state)
    scores = subject.scores(masks, compose)
    masks = masks[: len(scores)]
    if len(masks) < 2:
        raise KeyboardInterrupt
    fit = ridge(masks, scores, locality.weights(masks), alpha=1.0)
    certainty, stability = top_certainty(fit, top_segments, tolerance)
    return _finding(
        labels,
        fit,
        certainty=certainty,
        rank_stability=stability,
        facts={"samples": len(masks), "top_segments": min(top_segments, locality.count)},
    )


def _sizes(num_samples: int | None, budget: int, count: int) -> list[int]:
    """How many masks there are when the answer is looked at."""
    if num_samples is not None:
        return [num_samples // 2 * 2]
    return [size for size in _CHECKS if 2 * count <= size < budget] + [budget // 2 * 2]


def _drawn(locality: Locality, seed: int, start: int, stop: int) -> Masks:
    """Masks number `start` to `stop` of the stream that a seed stands for."""
    first = start // (2 * _BLOCK)
    blocks = [
        paired_masks(locality, _BLOCK, np.random.default_rng([seed, block]))
        for block in range(first, -(-stop // (2 * _BLOCK)))
    ]
    return np.concatenate(blocks)[start - 2 * _BLOCK * first : stop - 2 * _BLOCK * first]


def _fitted(masks: Masks, scores: Numbers, locality: Locality, surrogate: bool) -> Fit:
    weights = locality.pair_weights(masks)
    with one_thread():
        linear = ridge(masks, scores, weights, groups=2)
        if not surrogate or linear.r2 > 1 - _ADDITIVE or not scores.std():
            return linear
        kriging = Kriging.fitted(masks, scores, linear.weights)
        return projected(kriging, masks, scores, locality, weights)


def _finding(labels: Labels, fit: Fit, **also: Any) -> Finding:
    return Finding(
        attribution=np.asarray(fit.weights[labels], np.float32),
        segments=labels,
        weights=fit.weights,
        intercept=fit.intercept,
        r2=fit.r2,
        local_prediction=fit.intercept + float(fit.weights.sum()),
        standard_errors=fit.standard_errors,
        **also,
    )


def _as_package(
    subject: Subject,
    segments: Any,
    num_segments: int,
    segment_options: Mapping[str, Any] | None,
    replacement: Any,
) -> tuple[Labels, Composer]:
    """Cut and hide as the package does: on the picture, in its own type."""
    source = subject.source
    if source is None or replacement != "mean":
        return subject.hidden_segments(segments, num_segments, segment_options, replacement)
    labels = subject.segmented(source.picture, segments, num_segments, segment_options)
    hidden = source.picture.copy()
    for label in range(int(labels.max()) + 1):
        inside = labels == label
        hidden[inside] = source.picture[inside].mean(axis=0)  # cut off to whole numbers in uint8
    if source.pixelwise:
        return labels, HiddenSegments(subject.image, source.prepare(hidden), labels)
    return labels, Pictures(source.picture, hidden, labels, source.prepare)

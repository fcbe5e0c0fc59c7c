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
from pellucid.methods.perturbation.kriging import Kernels, leaves_something, projected
from pellucid.methods.perturbation.regression import Fit, ridge, top_certainty
from pellucid.methods.perturbation.sampling import (
    KERNEL_WIDTH,
    Locality,
    Masks,
    bernoulli_masks,
    pairs_of,
)
from pellucid.methods.perturbation.segments import COUNT
from pellucid.methods.perturbation.selection import selection, sparse_ridge
from pellucid.methods.perturbation.settling import Settling, finding_of, settled_fit
from pellucid.methods.perturbation.subject import Subject

__all__ = ["lime", "lime_of_package"]


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
    rank_stability: float = 0.9,
    kernel_width: float = KERNEL_WIDTH,
    surrogate: bool | None = None,
) -> Finding:
    """Weigh superpixels by the linear model of the score near the image.

    `argmin over (b, w) of E_mu (score(z) - b - w . z)^2` over masks z, where mu prefers masks that
    keep much of the image (`kernel_width`). Masks come in pairs with their complements and from mu
    itself, and a Gaussian process models what the linear model cannot express, so that it adds
    little noise. Sampling ends once the ranking is settled.

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
    tolerance : ... but for differences below this share of the largest weight, ...
    rank_stability : ... and until another seed would give all weights in an order that has this
        rank correlation with theirs, as far as they differ at all; 0: the top is enough.
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
    rule = Settling(num_samples, budget, confidence, top_segments, tolerance, rank_stability)
    labels, compose = subject.hidden_segments(segments, num_segments, segment_options, replacement)
    locality = Locality(int(labels.max()) + 1, kernel_width)
    modelled = num_samples is None if surrogate is None else surrogate
    kernels = Kernels()

    def fit(masks: Masks, scores: Numbers) -> Fit:
        weights = locality.pair_weights(masks)
        linear = ridge(masks, scores, weights, groups=2)
        if not modelled or not leaves_something(linear, scores):
            return linear
        kriging = kernels.of(masks, scores, linear.weights)
        return projected(kriging, masks, scores, locality, weights)

    masks_of = pairs_of(locality.sizes, subject.seed)
    found, also = settled_fit(subject, compose, locality.count, masks_of, fit, rule)
    return finding_of(labels, found, **also)


def lime_of_package(
    subject: Subject,
    *,
    segments: Any = "quickshift",
    num_segments: int = COUNT,
    segment_options: Mapping[str, Any] | None = None,
    replacement: Any = "mean",
    num_samples: int = 1000,
    kernel_width: float = KERNEL_WIDTH,
    num_features: int | None = None,
    feature_selection: str = "auto",
    top_segments: int = 5,
    tolerance: float = 0.05,
) -> Finding:
    """Give the weights of the `lime` package 0.2.0.1: its samples, its choice, its ridge.

    `seed` is its `random_state`. Superpixels are those of the picture in its own size, whose
    perturbed copies go through the preprocessing one by one where that resizes them.

    Parameters
    ----------
    num_features : the package's; superpixels that are not chosen weigh 0. None: all are kept.
    feature_selection : how they are chosen, see `selection`.
    """
    choose = selection(feature_selection, 1 if num_features is None else num_features)
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
    weights, facts = locality.weights(masks), {"samples": len(masks)}
    if num_features is not None:
        chosen = choose(masks, scores, weights)
        return finding_of(labels, sparse_ridge(masks, scores, weights, 1.0, chosen), facts=facts)
    fit = ridge(masks, scores, weights, alpha=1.0)
    certainty, stability = top_certainty(fit, top_segments, tolerance)
    facts["top_segments"] = min(top_segments, locality.count)
    return finding_of(labels, fit, certainty=certainty, rank_stability=stability, facts=facts)


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

"""Sampling masks until the ranking of the superpixels is settled, or the budget is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.errors import MethodError
from pellucid.methods.perturbation.composing import Composer
from pellucid.methods.perturbation.details import Finding, Labels, Numbers
from pellucid.methods.perturbation.regression import Fit, top_certainty
from pellucid.methods.perturbation.sampling import Masks, Stream
from pellucid.methods.perturbation.subject import Subject
from pellucid.methods.threads import one_thread

__all__ = ["Settling", "finding_of", "settled_fit"]

_CHECKS = (100, 150, 200, 300, 400, 600, 800)
_ALIKE = 0.01  # of the largest weight: what is known this well differs in rank by chance alone


@dataclass(frozen=True)
class Settling:
    """How many masks are wanted.

    Attributes
    ----------
    num_samples : exactly so many, or None.
    budget : masks at most.
    confidence : enough once the top superpixels are the top ones with this probability.
    top_segments : how many of them.
    tolerance : share of the largest weight below which differences among the top do not matter.
    rank_stability : and once the rank correlation to expect with another seed is this.

    Raises
    ------
    MethodError : one of them is out of range.
    """

    num_samples: int | None
    budget: int
    confidence: float
    top_segments: int
    tolerance: float
    rank_stability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise MethodError(f"confidence={self.confidence!r} must lie between 0 and 1.")
        if not 0 <= self.tolerance < 1:
            raise MethodError(f"tolerance={self.tolerance!r} must lie between 0 and 1.")
        if not 0 <= self.rank_stability < 1:
            raise MethodError(
                f"rank_stability={self.rank_stability!r} must be 0 or more, and below 1."
            )
        for name, least in (("num_samples", 4), ("budget", 4), ("top_segments", 1)):
            number = getattr(self, name)
            if number is None and name == "num_samples":
                continue
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise MethodError(f"{name}={number!r} must be a whole number, {least} or more.")

    def content(self, fit: Fit, certainty: float, stability: float) -> bool:
        """Say whether an answer is sure enough."""
        exact = fit.standard_errors.max() <= _ALIKE * np.abs(fit.weights).max()
        ranked = bool(exact) or stability >= self.rank_stability
        return certainty >= self.confidence and ranked

    def sizes(self, count: int) -> list[int]:
        """Numbers of masks of `count` superpixels at which the answer is looked at."""
        if self.num_samples is not None:
            return [self.num_samples // 2 * 2]
        checks = [size for size in _CHECKS if 2 * count <= size < self.budget]
        return [*checks, self.budget // 2 * 2]


def settled_fit(
    subject: Subject,
    compose: Composer,
    count: int,
    masks_of: Stream,
    fit: Callable[[Masks, Numbers], Fit],
    rule: Settling,
) -> tuple[Fit, dict[str, Any]]:
    """Ask for the scores of masks until the rule is content.

    Returns
    -------
    fit : of all masks asked about.
    also : what a `Finding` says of the certainty.

    Raises
    ------
    KeyboardInterrupt : Ctrl-C before there were two pairs.
    """
    masks: Masks = np.zeros((0, count), bool)
    scores: Numbers = np.zeros(0)
    for size in rule.sizes(count):
        new = masks_of.part(len(masks), size)
        answered = subject.scores(new, compose)
        whole = len(answered) // 2 * 2
        masks = np.concatenate((masks, new[:whole]))
        scores = np.concatenate((scores, answered[:whole]))
        if len(masks) < 4:
            raise KeyboardInterrupt
        with one_thread():
            found = fit(masks, scores)
            certainty, stability = top_certainty(found, rule.top_segments, rule.tolerance)
        settled = rule.content(found, certainty, stability)
        if subject.interrupted or (rule.num_samples is None and settled):
            break
    return found, {
        "certainty": certainty,
        "rank_stability": stability,
        "settled": None if rule.num_samples is not None else settled,
        "facts": {"samples": len(masks), "top_segments": min(rule.top_segments, count)},
    }


def finding_of(labels: Labels, fit: Fit, **also: Any) -> Finding:
    """Make a finding of a linear model of superpixels."""
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

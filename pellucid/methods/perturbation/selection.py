"""Choosing a few superpixels for a sparse linear model, as the `lime` package does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import MethodError, nearest
from pellucid.methods.perturbation.details import Numbers
from pellucid.methods.perturbation.regression import Fit, ridge
from pellucid.methods.perturbation.sampling import Masks

__all__ = ["SELECTIONS", "selection", "sparse_ridge"]

_FEW = 6  # features at most that "auto" adds one by one
_ALPHA = 0.01  # of the ridge whose largest weights are taken
Chosen = NDArray[np.intp]


def sparse_ridge(
    masks: Masks, scores: Numbers, weights: Numbers, alpha: float, chosen: Chosen
) -> Fit:
    """Fit a ridge to some superpixels; the others weigh nothing.

    The standard errors are those of a choice that was made beforehand: they do not know that other
    masks might have led to another one.

    Parameters
    ----------
    masks, scores, weights, alpha : as `ridge` takes them.
    chosen : numbers of superpixels.
    """
    fit = ridge(masks[:, chosen], scores, weights, alpha)
    slope = np.zeros(masks.shape[1])
    slope[chosen] = fit.weights
    deviations = np.zeros((len(fit.deviations), masks.shape[1]))
    deviations[:, chosen] = fit.deviations
    return replace(fit, weights=slope, deviations=deviations)


def selection(how: str, count: int) -> Callable[[Masks, Numbers, Numbers], Chosen]:
    """Return the function that chooses superpixels, the first choice first.

    Parameters
    ----------
    how : `"forward_selection"`, those that one after the other raise the R2 of weighted least
        squares the most; `"highest_weights"`, those of the largest magnitude in a weighted ridge
        of 0.01 over all; `"none"`, all of them; `"auto"`, the first for up to six superpixels,
        the second for more.
    count : how many at most.

    Raises
    ------
    MethodError : unknown, or `count` is no number of superpixels.
    """
    if how == "lasso_path":
        raise MethodError(
            "feature_selection='lasso_path' follows scikit-learn's path, which is not used here: "
            "give 'auto', 'forward_selection', 'highest_weights' or 'none'."
        )
    if not isinstance(how, str) or how not in SELECTIONS:
        raise MethodError(f"feature_selection={how!r} is unknown. {nearest(str(how), SELECTIONS)}")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise MethodError(f"num_features={count!r} must be a whole number, 1 or more.")
    return partial(SELECTIONS[how], count)


def _all(count: int, masks: Masks, scores: Numbers, weights: Numbers) -> Chosen:
    return np.arange(masks.shape[1])


def _highest_weights(count: int, masks: Masks, scores: Numbers, weights: Numbers) -> Chosen:
    slope = ridge(masks, scores, weights, _ALPHA).weights
    return np.argsort(-np.abs(slope), kind="stable")[:count]


def _forward_selection(count: int, masks: Masks, scores: Numbers, weights: Numbers) -> Chosen:
    """Add superpixels one by one: orthogonal least squares.

    Columns without what the chosen ones explain of them: the best next one is that along which
    the scores are longest.
    """
    root, share = np.sqrt(weights)[:, None], weights / weights.sum()
    x = masks.astype(np.float64)
    x = root * (x - share @ x)
    y = root[:, 0] * (scores - share @ scores)
    nothing = 1e-10 * max(float((x**2).sum(axis=0).max()), 1.0)
    chosen: list[int] = []
    for _ in range(min(count, x.shape[1])):
        size = (x**2).sum(axis=0)
        gain = np.where(size > nothing, (x.T @ y) ** 2 / np.maximum(size, nothing), 0.0)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        if size[best] > nothing:
            along = x[:, best] / np.sqrt(size[best])
            x -= np.outer(along, along @ x)
    return np.array(chosen)


def _auto(count: int, masks: Masks, scores: Numbers, weights: Numbers) -> Chosen:
    choose = _forward_selection if count <= _FEW else _highest_weights
    return choose(count, masks, scores, weights)


SELECTIONS: dict[str, Callable[[int, Masks, Numbers, Numbers], Chosen]] = {
    "auto": _auto,
    "none": _all,
    "forward_selection": _forward_selection,
    "highest_weights": _highest_weights,
}

"""The locally weighted linear model of a score: LIME's surrogate, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pellucid.methods.perturbation.details import Numbers
from pellucid.methods.perturbation.sampling import Masks

__all__ = ["Fit", "ridge", "top_certainty"]

_DRAWS = 500
_SEED = 0


@dataclass(frozen=True, eq=False)
class Fit:
    """A linear model `intercept + weights . mask`.

    Attributes
    ----------
    intercept, weights : the model, K weights.
    r2 : share of the weighted variance of the scores that it explains.
    deviations : `(g, K)`; their squares and products sum to the covariance of the weights.
    """

    intercept: float
    weights: Numbers
    r2: float
    deviations: Numbers

    @property
    def standard_errors(self) -> Numbers:
        """Standard error of every weight, `(K,)`."""
        errors: Numbers = np.sqrt((self.deviations**2).sum(axis=0))
        return errors


def ridge(
    masks: Masks, scores: Numbers, weights: Numbers, alpha: float = 0.0, groups: int = 1
) -> Fit:
    """Fit `intercept + weights . mask` by weighted least squares with a ridge on the weights.

    `(X' W X + alpha) b = X' W y`, X and y without their weighted means.

    The covariance is the heteroscedasticity-consistent one, with residuals `e / (1 - h)` as
    leaving rows out one by one would have them (MacKinnon and White, 1985), and masks that were
    drawn together (`groups` of them at a time) added up.

    Parameters
    ----------
    masks : `(n, K)`.
    scores, weights : `(n,)`.
    alpha : of the ridge; the `lime` package has 1.
    groups : masks that were drawn together: 2 for pairs.
    """
    x = masks.astype(np.float64)
    share = weights / weights.sum()
    centre, level = share @ x, share @ scores
    x -= centre
    y = scores - level
    weighted = x * weights[:, None]  # (n, K)
    gram = x.T @ weighted
    gram[np.diag_indices_from(gram)] += alpha
    # A superpixel that was never or always hidden leaves the system singular: it gets zero.
    inverse = np.linalg.pinv(gram, hermitian=True)
    slope = inverse @ (weighted.T @ y)
    residual = y - x @ slope
    leverage = share + ((weighted @ inverse) * x).sum(axis=1)
    pulls = weighted * (residual / np.maximum(1 - leverage, 1e-6))[:, None]
    together = np.add.reduceat(pulls, np.arange(0, len(pulls), groups), axis=0)
    spread = float(weights @ y**2)
    return Fit(
        intercept=float(level - centre @ slope),
        weights=slope,
        r2=1 - float(weights @ residual**2) / spread if spread else 1.0,
        deviations=together @ inverse,
    )


def top_certainty(fit: Fit, top: int, tolerance: float) -> tuple[float, float]:
    """Say how sure the ranking is, from the standard errors.

    Weights are drawn around those found, with their covariance.

    Parameters
    ----------
    fit : the weights, and how uncertain they are.
    top : how many superpixels count, those of the largest magnitude.
    tolerance : differences below this share of the largest weight do not matter.

    Returns
    -------
    certainty : probability that no other superpixel's magnitude exceeds those of the `top` by
        more than the tolerance.
    stability : rank correlation to expect between two independent answers.
    """
    weights, count = fit.weights, len(fit.weights)
    root = np.linalg.qr(fit.deviations, mode="r")  # of their covariance, at most (K, K)
    errors = _normal(len(root)) @ root  # (draws, K)
    order = np.argsort(-np.abs(weights), kind="stable")
    top = min(top, count - 1)
    size = np.abs(weights + errors)
    slack = tolerance * np.abs(weights).max()
    least = size[:, order[:top]].min(axis=1)
    certain = size[:, order[top:]].max(axis=1) <= least + slack
    # Spearman's correlation of each draw of one half with one of the other half. The weights found
    # are spread by their errors already, more than the true ones, around which seeds would differ.
    spread = weights.var()
    true = 1 - min((fit.deviations**2).sum() / count / spread, 1) if spread else 0.0
    drawn = np.sqrt(true) * weights + errors
    ranks = drawn.argsort(axis=1).argsort(axis=1) - (count - 1) / 2
    products = (ranks[: _DRAWS // 2] * ranks[_DRAWS // 2 :]).sum(axis=1)
    stability = products / (count * (count**2 - 1) / 12)
    return float(certain.mean()), float(stability.mean())


@lru_cache(maxsize=16)
def _normal(count: int) -> Numbers:
    """Draw the numbers, `(draws, count)`, that are the same for every fit."""
    return np.random.default_rng(_SEED).standard_normal((_DRAWS, count))

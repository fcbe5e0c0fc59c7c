"""The score as a Gaussian process over masks, and the exact projection of its mean.

A linear model throws away what it cannot express, and that remainder is what makes LIME's weights
noisy. A Gaussian process expresses it: with masks written as x in {-1, 1}^K,

    k(x, x') = s exp( sum over k of a_k (x_k x'_k - 1) ),

so that flipping superpixel k costs the covariance a factor exp(-2 a_k): superpixels that matter
interact more. Its posterior mean is a smooth guess of the score of every mask at once. What LIME
converges to, its weighted linear regression over all 2^K masks, has a closed form, and so have its
Shapley values: the kernel is a product over superpixels, and masks of one size are summed by the
polynomial whose coefficient of t^s collects them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky
from scipy.linalg.lapack import dtrtri
from scipy.optimize import minimize
from scipy.special import gammaln

from pellucid.methods.perturbation.details import Numbers
from pellucid.methods.perturbation.regression import Fit
from pellucid.methods.perturbation.sampling import Locality, Masks

__all__ = ["Kernels", "Kriging", "fair_shares", "leaves_something", "projected"]

_ROWS = 400  # that the kernel is fitted to
_STEPS = 8  # of L-BFGS: more change the weights by less than their standard errors
_MORE_STEPS = 3  # from the kernel of fewer rows
_TOTAL = 1.5  # sum of the a_k that the prior expects
_FLOOR = 0.1  # a superpixel without a weight still gets this share of the mean a_k
_MEMORY = 2**25  # bytes for polynomials
_ADDITIVE = 1e-4  # share of the variance below which a linear model leaves nothing to model


@dataclass(frozen=True, eq=False)
class Kriging:
    """A fitted kernel.

    Attributes
    ----------
    relevance : a_k, `(K,)`.
    scale, noise : variance of the process, and of what it cannot express.
    """

    relevance: Numbers
    scale: float
    noise: float

    @classmethod
    def fitted(
        cls, masks: Masks, scores: Numbers, weights: Numbers, fewer: Kriging | None = None
    ) -> Kriging:
        """Choose the kernel by marginal likelihood, from a start that linear weights suggest.

        Parameters
        ----------
        masks, scores : `(n, K)` and `(n,)`, of which the first rows are used.
        weights : of a linear model, `(K,)`.
        fewer : the kernel that fewer of these rows had, to start from.
        """
        x = _signs(masks[:_ROWS])
        y = scores[:_ROWS] - scores[:_ROWS].mean()
        size = np.abs(weights)
        prior = size + _FLOOR * size.mean() + 1e-12
        prior = np.log(_TOTAL * prior / prior.sum())
        variance = float(y.var())
        count = len(prior)

        def negative_log_posterior(p: Numbers) -> tuple[float, Numbers]:
            kernel = _kernel(x, x, np.exp(p[:count]), variance * np.exp(p[count]))
            noise = variance * np.exp(p[count + 1])
            try:
                factor = cho_factor(kernel + noise * np.eye(len(x)), lower=True)
            except np.linalg.LinAlgError:
                return 1e12, np.zeros_like(p)
            inverse = cho_solve(factor, np.eye(len(x)))
            alpha = inverse @ y
            surprise = np.outer(alpha, alpha) - inverse
            slope = surprise * kernel
            total = slope.sum()
            away = p[:count] - prior
            each = ((x.T @ slope) * x.T).sum(axis=1) - total
            gradient = np.concatenate(
                (
                    away - 0.5 * np.exp(p[:count]) * each,
                    [-0.5 * total, -0.5 * noise * np.trace(surprise)],
                )
            )
            likelihood = 0.5 * y @ alpha + np.log(np.diag(factor[0])).sum()
            return float(likelihood + 0.5 * away @ away), gradient

        start = np.concatenate((prior, [0.0, np.log(0.03)]))
        if fewer is not None:
            variances = np.array([fewer.scale, fewer.noise]) / variance
            start = np.log(np.concatenate((fewer.relevance, variances)))
        bounds = [(-9.0, 2.0)] * count + [(-3.0, 5.0), (-9.0, 1.0)]
        found = minimize(
            negative_log_posterior,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": _STEPS if fewer is None else _MORE_STEPS},
        ).x
        scale, noise = variance * np.exp(found[count:])
        return cls(np.exp(found[:count]), float(scale), float(noise))


class Kernels:
    """The kernel of a growing number of masks, chosen anew as long as more rows are used."""

    def __init__(self) -> None:
        self._rows = 0
        self._last: Kriging | None = None

    def of(self, masks: Masks, scores: Numbers, weights: Numbers) -> Kriging:
        """As `Kriging.fitted`."""
        rows = min(len(masks), _ROWS)
        if self._last is None or rows != self._rows:
            self._last = Kriging.fitted(masks, scores, weights, self._last)
            self._rows = rows
        return self._last


def leaves_something(linear: Fit, scores: Numbers) -> bool:
    """Say whether a linear model of scores leaves enough for a process to express."""
    return bool(scores.std()) and linear.r2 <= 1 - _ADDITIVE


def projected(
    kriging: Kriging,
    masks: Masks,
    scores: Numbers,
    locality: Locality,
    weights: Numbers,
) -> Fit:
    """Return the linear regression of the process's mean under the locality distribution.

    Its deviations are those of the jackknife over pairs: what leaving a mask and its complement
    out changes, which the inverse of the kernel matrix gives without a further solution.

    Parameters
    ----------
    kriging : the kernel.
    masks, scores : `(n, K)` and `(n,)`, pairs one behind the other.
    locality : the distribution of masks that the regression is under.
    weights : of the masks, for R2.
    """
    level = scores.mean()
    chosen, deviations = _estimate(
        kriging, masks, scores - level, np.column_stack(_projection(kriging, masks, locality))
    )
    intercept, slope = float(level + chosen[0]), chosen[1:]
    residual = scores - intercept - masks @ slope
    around = scores - np.average(scores, weights=weights)
    spread = float(weights @ around**2)
    return Fit(
        intercept=intercept,
        weights=slope,
        r2=1 - float(weights @ residual**2) / spread if spread else 1.0,
        deviations=deviations[:, 1:],
    )


def fair_shares(
    kriging: Kriging, masks: Masks, scores: Numbers, sizes: Numbers
) -> tuple[Numbers, Numbers]:
    """Return the Shapley values of the process's mean, taken as zero for all and for nothing.

    They are its least squares `u . z` with a sum of zero under the Shapley kernel, and there
    `E z z'` is `(p - q) I` with p and q the means of `z_j` and `z_j z_k`: so u is `E z f / (p - q)`
    without its mean.

    Parameters
    ----------
    kriging : the kernel.
    masks, scores : `(n, K)` and `(n,)`, pairs one behind the other.
    sizes : probability of coalitions of s superpixels by the Shapley kernel, `(K + 1,)`.

    Returns
    -------
    shares : `(K,)`, which add up to zero.
    deviations : `(n / 2, K)`, as in a `Fit`.
    """
    count, s = masks.shape[1], np.arange(masks.shape[1] + 1)
    apart = sizes @ (s * (count - s)) / (count * (count - 1))  # p - q
    joint = _expectations(kriging, masks, sizes)[1]
    joint -= joint.mean(axis=1, keepdims=True)
    return _estimate(kriging, masks, scores - scores.mean(), joint / apart)


def _estimate(
    kriging: Kriging, masks: Masks, scores: Numbers, functionals: Numbers
) -> tuple[Numbers, Numbers]:
    """Apply linear functionals to the process's mean: `(m,)`, and deviations `(n / 2, m)`.

    `functionals` are what they are of `k(., x_i)` for every mask i, `(n, m)`.
    """
    x = _signs(masks)
    matrix = _kernel(x, x, kriging.relevance, kriging.scale)
    matrix[np.diag_indices_from(matrix)] += kriging.noise
    # The inverse of the matrix is root' root, of which only the blocks of pairs are written out.
    root = dtrtri(cholesky(matrix, lower=True), lower=1)[0]
    alpha = root.T @ (root @ scores)
    pairs = len(x) // 2
    columns = root.T.reshape(pairs, 2, -1)
    blocks = columns @ columns.transpose(0, 2, 1)  # (pairs, 2, 2)
    missed = np.linalg.solve(blocks, alpha.reshape(pairs, 2, 1))  # (pairs, 2, 1)
    reach = (root.T @ (root @ functionals)).reshape(pairs, 2, -1)
    deviations = (reach * missed).sum(axis=1)
    return alpha @ functionals, deviations - deviations.mean(axis=0)


def _signs(masks: Masks) -> Numbers:
    return np.where(masks, 1.0, -1.0)


def _kernel(one: Numbers, other: Numbers, relevance: Numbers, scale: float) -> Numbers:
    kernel: Numbers = scale * np.exp((one * relevance) @ other.T - relevance.sum())
    return kernel


def _projection(kriging: Kriging, masks: Masks, locality: Locality) -> tuple[Numbers, Numbers]:
    """Regress `k(., x_i)` under mu, for every i: intercepts `(n,)` and weights `(n, K)`."""
    count = locality.count
    mean, joint = _expectations(kriging, masks, locality.sizes)
    p, both = locality.moments
    covariance = joint - mean[:, None] * p
    # The covariance of z is (v - c) I + c 1 1', whose inverse is known.
    v, c = p - p**2, both - p**2
    slope = (covariance - c * covariance.sum(axis=1, keepdims=True) / (v + (count - 1) * c)) / (
        v - c
    )
    return mean - p * slope.sum(axis=1), slope


def _expectations(kriging: Kriging, masks: Masks, sizes: Numbers) -> tuple[Numbers, Numbers]:
    """Return `E k(z, x_i)`, `(n,)`, and `E k(z, x_i) z_j`, `(n, K)`, over masks z of such sizes.

    With `q_k(z) = 1` where mask i agrees with z at k and exp(-2 a_k) where not, the sum of k over
    the masks of size s is the coefficient of t^s in the product of `q_k(0) + q_k(1) t`; over those
    that keep superpixel j it is that of `q_j(1) t` times the product without j.
    """
    count, unlike = masks.shape[1], np.exp(-2 * kriging.relevance)
    s = np.arange(count + 1)
    # Probability of one mask of size s: that of its size, over how many masks share it.
    choices = gammaln(count + 1) - gammaln(s + 1) - gammaln(count - s + 1)
    chance = sizes * np.exp(-choices) * kriging.scale
    rows = max(1, _MEMORY // (8 * (count + 1) ** 2))
    parts = [
        _without_each(np.where(part, unlike, 1.0), np.where(part, 1.0, unlike), chance)
        for part in np.split(masks, range(rows, len(masks), rows))
    ]
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([one for _, one in parts])


def _without_each(off: Numbers, on: Numbers, chance: Numbers) -> tuple[Numbers, Numbers]:
    """Return the sum of `chance_s` times coefficient s of a product, and of it without a factor.

    The product of the factors before j meets what chance is to it through those behind j. Division
    by factor j would be quicker, but where few masks share a size their coefficients are 1e-14 of
    the largest, whose rounding errors it carries there. Here all terms are positive.

    Parameters
    ----------
    off, on : the factors `off_j + on_j t`, `(n, K)` each.
    chance : `(K + 1,)`.

    Returns
    -------
    whole, without : `(n,)`; `(n, K)` with `on_j t` in the place of factor j.
    """
    rows, count = off.shape
    behind = np.empty((count + 1, rows, count + 1))
    behind[count] = chance
    for j in range(count - 1, -1, -1):
        np.multiply(behind[j + 1], off[:, j, None], out=behind[j])
        behind[j, :, :-1] += behind[j + 1, :, 1:] * on[:, j, None]
    ahead = np.zeros((rows, count + 1))
    ahead[:, 0] = 1
    without = np.empty_like(off)
    for j in range(count):
        shifted = ahead[:, :-1] * on[:, j, None]
        without[:, j] = np.einsum("ns,ns->n", shifted, behind[j + 1, :, 1:])
        ahead *= off[:, j, None]
        ahead[:, 1:] += shifted
    return behind[0, :, 0], without

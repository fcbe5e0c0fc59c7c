"""Masks drawn at random: True keeps a superpixel, False hides it.

LIME weighs a mask with s of K superpixels kept by its closeness to the image,

    pi(s) = exp(-(1 - sqrt(s / K))^2 / (2 width^2)),

the exponential kernel of the cosine distance between the mask and a vector of ones. Masks of equal
chance, weighted by pi, stand for the distribution mu that is proportional to pi. `Paired` draws
from mu itself, each mask together with its complement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pellucid.errors import MethodError
from pellucid.methods.perturbation.details import Numbers

__all__ = ["KERNEL_WIDTH", "Locality", "Masks", "bernoulli_masks", "paired_masks"]

KERNEL_WIDTH = 0.25
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Locality:
    """The distribution mu of masks of K superpixels, proportional to LIME's kernel.

    Attributes
    ----------
    count : K.
    width : of the kernel; infinity makes all masks alike.
    """

    count: int
    width: float = KERNEL_WIDTH

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise MethodError(f"kernel_width={self.width!r} must be above 0.")

    @cached_property
    def kernel(self) -> Numbers:
        """`pi(s)` for s from 0 to K."""
        kept = np.arange(self.count + 1) / self.count
        values: Numbers = np.exp(-((1 - np.sqrt(kept)) ** 2) / (2 * self.width**2))
        return values

    @cached_property
    def sizes(self) -> Numbers:
        """Probability of each s, `pi(s) binomial(K, s)`, normalised."""
        s = np.arange(self.count + 1)
        logs = np.log(np.maximum(self.kernel, 1e-300)) - gammaln(s + 1)
        logs -= gammaln(self.count - s + 1)
        values: Numbers = np.exp(logs - logs.max())
        values /= values.sum()
        return values

    def weights(self, masks: Masks) -> Numbers:
        """Return the kernel of each mask, `(n,)`."""
        weights: Numbers = self.kernel[masks.sum(axis=1)]
        return weights

    def pair_weights(self, masks: Masks) -> Numbers:
        """Return the weight of masks that `paired_masks` drew, `(n,)`.

        A mask and its complement come together, so that each is drawn as often as the mean of
        what mu gives to both; the weight makes up for it.
        """
        s = masks.sum(axis=1)
        one, other = self.kernel[s], self.kernel[self.count - s]
        weights: Numbers = 2 * one / (one + other)
        return weights

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean of one entry of a mask, and of the product of two."""
        s = np.arange(self.count + 1)
        pairs = s * (s - 1) / max(self.count * (self.count - 1), 1)
        return float(self.sizes @ s / self.count), float(self.sizes @ pairs)


def paired_masks(locality: Locality, pairs: int, rng: np.random.Generator) -> Masks:
    """Draw masks from mu, each followed by its complement: `(2 pairs, K)`.

    The share of a score that is even in the mask (all interactions of two superpixels, four, ...)
    cancels in the difference of the two, and so adds nothing to the variance of the weights.

    Source
    ------
    Direct sampling: Tan et al., "GLIME: General, Stable and Local LIME Explanation", NeurIPS
    2023, 2311.15722. Pairs: Covert and Lee, "Improving KernelSHAP", AISTATS 2021, 2012.01536.
    """
    count = locality.count
    sizes = rng.choice(count + 1, size=pairs, p=locality.sizes)
    ranks = rng.random((pairs, count)).argsort(axis=1).argsort(axis=1)
    masks = ranks < sizes[:, None]
    return np.stack([masks, ~masks], axis=1).reshape(-1, count)


def bernoulli_masks(count: int, samples: int, state: np.random.RandomState) -> Masks:
    """Draw masks by a coin for each superpixel, the first one showing everything.

    The same numbers from the same state as the `lime` package.
    """
    masks = state.randint(0, 2, samples * count).reshape(samples, count).astype(bool)
    masks[0] = True
    return masks

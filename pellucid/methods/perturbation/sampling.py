"""Masks drawn at random: True keeps a superpixel, False hides it.

LIME weighs a mask with s of K superpixels kept by its closeness to the image,

    pi(s) = exp(-(1 - sqrt(s / K))^2 / (2 width^2)),

the exponential kernel of the cosine distance between the mask and a vector of ones. Masks of equal
chance, weighted by pi, stand for the distribution mu that is proportional to pi. `balanced_pairs`
draws from mu itself, each mask together with its complement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pellucid.errors import MethodError
from pellucid.methods.perturbation.details import Numbers

__all__ = [
    "KERNEL_WIDTH",
    "Locality",
    "Masks",
    "Stream",
    "balanced_pairs",
    "bernoulli_masks",
    "pairs_of",
]

KERNEL_WIDTH = 0.25
_BLOCK = 25  # pairs that are drawn together
_STREAMS = 16  # of masks that are kept
_GAIN = 0.6  # of what one superpixel adds: smaller gains do not show in standard errors
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
        """Return the weight of masks that `balanced_pairs` drew, `(n,)`.

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


def balanced_pairs(sizes: Numbers, rng: np.random.Generator) -> Iterator[Masks]:
    """Draw masks without end, each followed by its complement, in blocks of `(50, K)`.

    The share of a score that is even in the mask (all interactions of two superpixels, four, ...)
    cancels in the difference of the two, and so adds nothing to the variance of the weights.

    Every mask by itself is one by chance: its size by `sizes`, and of that size all alike. Together
    they are balanced, any two superpixels shown together about as often as not, so that least
    squares pays no price for telling them apart: with x in {-1, 1}^K, superpixels shown and hidden
    are exchanged while that raises `x' (I + X' X)^-1 x`, by which factor (less one) the mask raises
    the determinant of the information. Small gains are left, or chance would be gone in the end.

    Parameters
    ----------
    sizes : probability that s superpixels are shown, s from 0 to K: `(K + 1,)`.
    rng : where chance comes from.

    Source
    ------
    Direct sampling: Tan et al., "GLIME: General, Stable and Local LIME Explanation", NeurIPS
    2023, 2311.15722. Pairs: Covert and Lee, "Improving KernelSHAP", AISTATS 2021, 2012.01536.
    Sequential D-optimal designs by exchange: Fedorov, "Theory of Optimal Experiments", 1972.
    """
    count = len(sizes) - 1
    total = sizes.cumsum()
    inverse = np.eye(count)  # (I + X' X)^-1
    while True:
        # One size from every equal part of the distribution, in random order.
        level = (rng.permutation(_BLOCK) + rng.random(_BLOCK)) / _BLOCK
        shown = np.searchsorted(total / total[-1], level)
        ranks = rng.random((_BLOCK, count)).argsort(axis=1).argsort(axis=1)
        masks = ranks < shown[:, None]
        for mask in masks:
            x, pulled = _exchanged(np.where(mask, 1.0, -1.0), inverse)
            mask[:] = x > 0
            inverse -= np.outer(pulled, pulled / (1 + x @ pulled))
        yield np.stack([masks, ~masks], axis=1).reshape(-1, count)


def _exchanged(x: Numbers, inverse: Numbers) -> tuple[Numbers, Numbers]:
    """Exchange entries 1 and -1 while `x' inverse x` gains: x and `inverse x`, `(K,)` each."""
    own = inverse.diagonal()
    least = _GAIN / 4 * own.mean()
    pulled = inverse @ x
    hidden, shown = np.where(x < 0, -np.inf, 0), np.where(x > 0, -np.inf, 0)
    for _ in range(len(x)):
        turned = own - x * pulled  # a quarter of what turning each entry round adds
        hide, show = turned + hidden, turned + shown
        one, other = hide.argmax(), show.argmax()
        if hide[one] + show[other] - 2 * inverse[one, other] <= least:
            break
        x[one], x[other] = -1, 1
        hidden[one] = shown[other] = -np.inf
        hidden[other] = shown[one] = 0
        pulled += 2 * (inverse[other] - inverse[one])
    return x, pulled


class Stream:
    """Masks number so to number so of blocks that come without end."""

    def __init__(self, blocks: Iterator[Masks]) -> None:
        self._blocks, self._drawn = blocks, next(blocks)
        self._lock = Lock()

    def part(self, start: int, stop: int) -> Masks:
        """Return masks number `start` to `stop`; they do not depend on how many are asked for."""
        with self._lock:
            while len(self._drawn) < stop:
                self._drawn = np.concatenate((self._drawn, next(self._blocks)))
            return self._drawn[start:stop].copy()


def pairs_of(sizes: Numbers, seed: int) -> Stream:
    """Return the masks of `balanced_pairs` from a seed, drawn once for all images.

    They follow from nothing else, and images have about as many superpixels each.
    """
    return _pairs_of(sizes.tobytes(), seed)


@lru_cache(maxsize=_STREAMS)
def _pairs_of(sizes: bytes, seed: int) -> Stream:
    return Stream(balanced_pairs(np.frombuffer(sizes), np.random.default_rng(seed)))


def bernoulli_masks(count: int, samples: int, state: np.random.RandomState) -> Masks:
    """Draw masks by a coin for each superpixel, the first one showing everything.

    The same numbers from the same state as the `lime` package.
    """
    masks = state.randint(0, 2, samples * count).reshape(samples, count).astype(bool)
    masks[0] = True
    return masks

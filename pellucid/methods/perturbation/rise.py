"""RISE: the mean of random masks, each weighed by the score that the image has behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import MethodError
from pellucid.images import resize_map
from pellucid.methods.perturbation.composing import Codes, SmoothMasks
from pellucid.methods.perturbation.details import Finding, Numbers
from pellucid.methods.perturbation.subject import Subject

__all__ = ["SmoothGrids", "rise"]

_CHUNK = 128  # masks that are held at a time


class SmoothGrids:
    """Random grids of zeros and ones, enlarged linearly and shifted by less than a cell.

    A code is the shift along each axis and then the grid, one number each.
    """

    def __init__(self, spatial: tuple[int, ...], cells: int) -> None:
        self.spatial, self.cells = spatial, cells
        self.steps = tuple(-(-size // cells) for size in spatial)
        self._enlarging = [
            resize_map(np.eye(cells, dtype=np.float32), ((cells + 1) * step, cells))
            for step in self.steps
        ]  # one matrix for each axis, (enlarged, cells)

    def draw(self, count: int, keep: float, rng: np.random.Generator) -> NDArray[np.int32]:
        """Draw codes of so many masks, a cell being kept with chance `keep`."""
        shifts = np.stack([rng.integers(0, step, count) for step in self.steps], axis=1)
        grids = rng.random((count, self.cells ** len(self.spatial))) < keep
        return np.concatenate([shifts, grids], axis=1).astype(np.int32)

    def __call__(self, codes: Codes) -> Array:
        """Return masks `(n, *spatial)` in [0, 1]."""
        axes = len(self.spatial)
        masks = codes[:, axes:].astype(np.float32).reshape(-1, *[self.cells] * axes)
        for axis, (size, enlarging) in enumerate(zip(self.spatial, self._enlarging, strict=True)):
            rows = enlarging[codes[:, axis, None] + np.arange(size)]  # (n, size, cells)
            flat = rows @ masks.reshape(len(codes), self.cells, -1)
            masks = np.moveaxis(flat.reshape(len(codes), size, *masks.shape[2:]), 1, -1)
        return np.ascontiguousarray(masks)


def rise(
    subject: Subject,
    *,
    num_samples: int = 2000,
    cells: int = 7,
    keep: float = 0.5,
    replacement: Any = "zero",
) -> Finding:
    """Average random masks, weighed by the score of the image behind them.

    `S(x) = E score(image * M) M(x) / keep`, the mean score of masks that show x. The score's own
    mean is taken out of the sum and added at the end, which changes nothing in the limit and
    spares the map the noise of how often each place happened to be shown.

    Parameters
    ----------
    num_samples : masks, N. The paper takes 4000 to 8000; 2000 of them twice differ little.
    cells : of the grid along each axis.
    keep : chance that a cell is shown.
    replacement : what stands behind the masks: `"zero"`, in the network's own input, as the
        paper has it; or as for `lime`, but `"inpaint"`.

    Returns
    -------
    Finding
        A map over the network's input, never signed. `rank_stability` is the correlation to
        expect with the map of another seed, from that of the two halves of the masks.

    Source
    ------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
    2018, 1806.07421. For detectors, with `similar_detection` as target: D-RISE, 2006.03204.
    """
    for name, number, least in (("num_samples", num_samples, 2), ("cells", cells, 1)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise MethodError(f"{name}={number!r} must be a whole number, {least} or more.")
    if not 0 < keep < 1:
        raise MethodError(f"keep={keep!r} must lie between 0 and 1.")
    if cells > min(subject.spatial):
        raise MethodError(f"cells={cells} is more than the image has pixels: {subject.spatial}.")
    grids = SmoothGrids(subject.spatial, cells)
    behind = subject.hidden_by(replacement)
    compose = SmoothMasks(subject.image, behind, grids, f"rise {cells} ")
    weighed, shown = (np.zeros((2, *subject.spatial)) for _ in range(2))  # by halves
    totals, counts = np.zeros(2), np.zeros(2, int)
    for chunk, start in enumerate(range(0, num_samples, _CHUNK)):
        rng = np.random.default_rng([subject.seed, chunk])
        codes = grids.draw(min(_CHUNK, num_samples - start), keep, rng)
        scores = subject.scores(codes, compose)
        done = len(scores)
        masks, half = grids(codes[:done]), chunk % 2
        weighed[half] += np.tensordot(scores.astype(np.float32), masks, axes=1)
        shown[half] += masks.sum(axis=0)
        totals[half] += scores.sum()
        counts[half] += done
        if subject.interrupted:
            break
    if not counts.sum():
        raise KeyboardInterrupt

    def map_of(half: slice) -> Numbers:
        number = counts[half].sum()
        mean = totals[half].sum() / number
        found: Numbers = weighed[half].sum(axis=0) - mean * shown[half].sum(axis=0)
        found /= number * keep
        found += mean
        return found

    halves = [map_of(slice(0, 1)), map_of(slice(1, 2))] if counts.all() else []
    return Finding(
        attribution=np.asarray(map_of(slice(None)), np.float32),
        rank_stability=_stability(*halves) if halves else None,
        facts={"samples": int(counts.sum())},
        signed=False,
    )


def _stability(one: Numbers, other: Numbers) -> float | None:
    """Foretell the correlation of two whole runs from that of two halves (Spearman-Brown)."""
    if not one.std() or not other.std():
        return None
    correlation = float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    return 2 * correlation / (1 + correlation) if correlation > 0 else correlation

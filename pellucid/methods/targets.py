"""What a target stands for: a linear functional of one image's output.

A class, a contrast of two, evidence against one, a region of a segmentation map, a box of a
detector. What a target leaves open is settled once, on the image itself: the top class, the
runner-up, the best box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.adapters.base import Array
from pellucid.errors import TargetError
from pellucid.images import resize_map

__all__ = ["Contrast", "Counterfactual", "Detection", "Name", "Region", "Single", "Wording"]

Name = int | str | None  # an index, a label, or None for the top class
Resolve = Callable[[Name, Array], tuple[int, float]]  # a name among scores (K,): index and sign
Wording = tuple[str, tuple[int, ...]]  # a template, and the classes whose names it takes


@dataclass(frozen=True)
class Single:
    """A class: its score, averaged over positions."""

    target: Name = None

    def write(self, scores: Array, functional: Array, resolve: Resolve) -> Wording:
        """Write the functional.

        Parameters
        ----------
        scores : of one image, `(..., K)`.
        functional : zeros of that shape, to be filled.
        resolve : finds a class among `(K,)` scores.

        Returns
        -------
        words : how to name it; the first class is the one that is explained.
        """
        index, sign = resolve(self.target, _mean(scores))
        functional[..., index] = sign / _positions(scores)
        return "{}", (index,)


@dataclass(frozen=True)
class Contrast:
    """Why one class rather than another: the difference of their scores.

    Attributes
    ----------
    target : class index or label; None is the top class.
    against : class index or label; None is the class with the greatest score besides the target.

    Source
    ------
    Prabhushankar et al., "Contrastive Explanations in Neural Networks", 2008.00178.
    """

    target: Name = None
    against: Name = None

    def write(self, scores: Array, functional: Array, resolve: Resolve) -> Wording:
        """Write the functional, see `Single`."""
        mean = _mean(scores)
        index, sign = resolve(self.target, mean)
        if self.against is None:
            mean[index] = -np.inf
        other, _ = resolve(self.against, mean)
        if other == index:
            raise TargetError(
                f"The contrast of class {index} with itself says nothing: name another class."
            )
        functional[..., index] = sign / _positions(scores)
        functional[..., other] = -sign / _positions(scores)
        return "{} rather than {}", (index, other)


@dataclass(frozen=True)
class Counterfactual:
    """What speaks against a class: its negated score.

    Attributes
    ----------
    target : class index or label; None is the top class.

    Source
    ------
    Selvaraju et al., "Grad-CAM", 1610.02391, section 3.3.
    """

    target: Name = None

    def write(self, scores: Array, functional: Array, resolve: Resolve) -> Wording:
        """Write the functional, see `Single`."""
        index, sign = resolve(self.target, _mean(scores))
        functional[..., index] = -sign / _positions(scores)
        return "against {}", (index,)


@dataclass(frozen=True, eq=False)
class Region:
    """A class in a region of a segmentation map: the mean of its scores there.

    Attributes
    ----------
    target : class index or label; None is the class with the greatest mean score there.
    where : `(H, W)` (or `(L,)`, `(D, H, W)`) at any resolution, not zero inside the region; None
        is wherever the class is the top one.
    """

    target: Name = None
    where: Any = None

    def write(self, scores: Array, functional: Array, resolve: Resolve) -> Wording:
        """Write the functional, see `Single`."""
        grid = scores.shape[:-1]
        if not grid:
            raise TargetError(
                "A region is a target for a map of classes; this output has no positions."
            )
        if self.where is None:
            index, sign = resolve(self.target, _mean(scores))
            inside = scores.argmax(axis=-1) == index if scores.shape[-1] > 1 else _found(scores)
        else:
            inside = self._mask(grid)
            index, sign = resolve(self.target, scores[inside].mean(axis=0))
        if not inside.any():
            raise TargetError(
                f"Class {index} is the top one nowhere in this image: name another, or give the "
                "region."
            )
        functional[..., index] = sign * inside / inside.sum()
        return "{} in the region", (index,)

    def _mask(self, grid: tuple[int, ...]) -> Any:
        mask = np.asarray(self.where) != 0
        if mask.ndim != len(grid):
            raise TargetError(
                f"The region has shape {mask.shape}; the output's positions are {grid}."
            )
        inside = mask if mask.shape == grid else resize_map(mask, grid) >= 0.5
        if not inside.any():
            raise TargetError(f"The region covers none of the output's {grid} positions.")
        return inside


@dataclass(frozen=True)
class Detection:
    """A class in one box of a detector: its score at one position.

    The output holds scores of each of many boxes, `(N, boxes, K)`, `(N, K, boxes)` or
    `(N, K, H, W)`. Of two axes the classes are the one that the labels fit, else the shorter one.

    Attributes
    ----------
    target : class index or label; None is the class with the greatest score of all.
    box : number of the box, counted through; None is the one where the class scores best.
    offset : numbers before the scores, such as 4 coordinates, or 4 and an objectness.
    classes : how many classes there are, if the labels do not say it.
    """

    target: Name = None
    box: int | None = None
    offset: int = 0
    classes: int | None = None

    def write(self, scores: Array, functional: Array, resolve: Resolve) -> Wording:
        """Write the functional, see `Single`."""
        if scores.ndim < 2:
            raise TargetError("A detection is a target for an output with many boxes.")
        if scores.ndim == 2 and self._turned(scores.shape):
            scores, functional = scores.T, functional.T
        rows = scores[..., self.offset :].reshape(-1, scores.shape[-1] - self.offset)  # (boxes, K)
        if self.box is not None and not 0 <= self.box < len(rows):
            raise TargetError(f"There is no box {self.box}: the output has {len(rows)}.")
        chosen = rows if self.box is None else rows[self.box : self.box + 1]
        index, sign = resolve(self.target, chosen.max(axis=0))
        box = int(rows[:, index].argmax()) if self.box is None else self.box
        functional[..., self.offset + index].flat[box] = sign
        return "{} in box " + str(box), (index,)

    def _turned(self, shape: tuple[int, ...]) -> bool:
        if self.classes is not None and self.classes + self.offset in shape:
            return shape[-1] != self.classes + self.offset
        return shape[0] < shape[1]


def _found(scores: Array) -> Any:
    """Where the only class is likelier than not: a logit above 0, a probability above a half."""
    only = scores[..., 0]
    return only > (0.5 if only.min() >= 0 and only.max() <= 1 else 0)


def _mean(scores: Array) -> Array:
    mean: Array = scores.mean(axis=tuple(range(scores.ndim - 1)))
    return mean


def _positions(scores: Array) -> int:
    return max(scores[..., 0].size, 1)

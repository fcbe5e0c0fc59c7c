"""Meaningful perturbation: the smallest smooth mask whose deletion destroys the score.

The one method here that is no black box: the mask is found by descent along `pullback`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from pellucid.adapters.base import Array
from pellucid.errors import MethodError
from pellucid.images import resize_map
from pellucid.methods.perturbation.details import Finding
from pellucid.methods.perturbation.subject import Subject

__all__ = ["meaningful_perturbation"]

_RATE, _MOMENTUM, _SQUARES = 0.1, 0.9, 0.99  # of Adam


def meaningful_perturbation(
    subject: Subject,
    *,
    steps: int = 150,
    cells: int = 28,
    sparsity: float = 1.0,
    smoothness: float = 0.2,
    replacement: Any = "blur",
) -> Finding:
    """Search the mask m that hides little of the image and most of its score.

    `minimise max(s(m image + (1 - m) hidden), 0) + sparsity mean(1 - m) + smoothness TV(m)`, where
    s is the score on a scale from 0 for the hidden image to 1 for the image, m on a coarse grid,
    enlarged linearly, by Adam. Nothing is gained below 0, where a mask would paint what speaks
    against the target instead of hiding what speaks for it.

    Parameters
    ----------
    steps : of the search; each takes a forward and a backward pass.
    cells : of the mask along each axis.
    sparsity, smoothness : weights of the hidden share and of the mean change from cell to cell.
    replacement : what is behind the mask, as for `occlusion`.

    Returns
    -------
    Finding
        `1 - m`: how far each part is hidden, never signed.

    Source
    ------
    Fong and Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
    ICCV 2017, 1704.03296.
    """
    for name, number in (("steps", steps), ("cells", cells)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise MethodError(f"{name}={number!r} must be a whole number, 1 or more.")
    hidden = subject.hidden_by(replacement)
    shape = tuple(min(cells, size) for size in subject.spatial)
    enlarging = [
        resize_map(np.eye(few, dtype=np.float32), (many, few))
        for few, many in zip(shape, subject.spatial, strict=True)
    ]
    difference = subject.image - hidden
    least = _value(subject, hidden)[0]
    unit = subject.score - least  # of its sign
    if not unit:
        raise MethodError(
            "The score is the same with the whole image hidden: give another replacement=."
        )
    mask = np.full(shape, 0.5, np.float32)
    mean, square = np.zeros_like(mask), np.zeros_like(mask)
    best, found, value = np.inf, mask, subject.score
    try:
        for step in range(1, steps + 1):
            large = reduce(lambda m, axis: _along(m, axis[1], axis[0]), enumerate(enlarging), mask)
            value, gradient = _value(subject, hidden + large * difference)
            subject.predictions += 1
            subject.bar(1)
            change, slope = _variation(mask)
            left = max((value - least) / unit, 0)
            loss = left + sparsity * float(1 - mask.mean()) + smoothness * change
            if loss < best:
                best, found = loss, mask
            fine = (gradient * difference).sum(axis=0) * np.float32((left > 0) / unit)
            coarse = reduce(
                lambda m, axis: _along(m, axis[1].T, axis[0]), enumerate(enlarging), fine
            )
            total = coarse - np.float32(sparsity / mask.size) + np.float32(smoothness) * slope
            mean = _MOMENTUM * mean + (1 - _MOMENTUM) * total
            square = _SQUARES * square + (1 - _SQUARES) * total**2
            rise = mean / (1 - _MOMENTUM**step)
            size = np.sqrt(square / (1 - _SQUARES**step)) + 1e-12
            mask = np.clip(mask - _RATE * rise / size, 0, 1).astype(np.float32)
    except KeyboardInterrupt:
        if not np.isfinite(best):
            raise
        subject.interrupted = True
    large = reduce(lambda m, axis: _along(m, axis[1], axis[0]), enumerate(enlarging), found)
    left = _value(subject, hidden + large * difference)[0]
    return Finding(
        attribution=1 - large,
        facts={"left_of_score": (left - least) / unit, "hidden_share": float(1 - found.mean())},
        signed=False,
    )


def _value(subject: Subject, image: Array) -> tuple[float, Array]:
    """Return score and gradient at an image `(C, *spatial)`."""
    objective = subject.objective
    score = np.zeros(1, np.float32)

    def seed(values: Mapping[str, Array]) -> Mapping[str, Array]:
        nonlocal score
        score, cotangents = objective.score(values, image=subject.index)
        return cotangents

    batch: Sequence[Array] = [image[None].astype(np.float32), *subject.inputs[1:]]
    gradients = subject.model.pullback(batch, seed, ["input"], objective.fetch)[1]
    gradient = gradients["input"][0]
    if not np.isfinite(gradient).all() or not np.isfinite(score[0]):
        raise MethodError("The score or its gradient is NaN or infinite at a perturbed image.")
    return float(score[0]), gradient


def _along(array: Array, matrix: Array, axis: int) -> Array:
    """Apply a matrix along one axis."""
    return np.moveaxis(np.moveaxis(array, axis, -1) @ matrix.T, -1, axis)


def _variation(mask: Array) -> tuple[float, Array]:
    """Return the mean squared change between neighbouring cells, and its gradient."""
    total, gradient = 0.0, np.zeros_like(mask)
    for axis in range(mask.ndim):
        step = np.diff(mask, axis=axis)
        total += float((step**2).sum())
        before = [(0, 0)] * mask.ndim
        before[axis] = (1, 1)
        gradient -= 2 * np.diff(np.pad(step, before), axis=axis)
    cells = np.float32(mask.size)
    return total / mask.size, (gradient / cells).astype(np.float32)

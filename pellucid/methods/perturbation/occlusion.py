"""Occlusion: how far the score falls when a part of the image is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import MethodError
from pellucid.methods.perturbation.composing import HiddenBoxes
from pellucid.methods.perturbation.details import Finding
from pellucid.methods.perturbation.subject import Subject

__all__ = ["hierarchical_occlusion", "occlusion"]

_AT_ONCE = 16  # predictions
Boxes = NDArray[np.int64]  # (n, 2, S): first positions, and those behind the last


def occlusion(
    subject: Subject,
    *,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    replacement: Any = "mean",
    edge: str = "align",
    overlap: str = "mean",
) -> Finding:
    """Slide a window over the image, and see how far the score falls when it hides what is there.

    A pixel gets the mean fall over the windows that cover it.

    Parameters
    ----------
    window : its size in pixels of the network's input, one number or one for each axis; None: an
        eighth of the image.
    stride : steps of the window; None: half the window.
    replacement : what the window shows: `"mean"` of the image, `"zero"` or `"half"` in the
        network's own input, `"blur"`, `"noise"`, a colour, or another image.
    edge : where the steps do not end with the image: `"align"` the last window with its end,
        `"cut"` off what stands out, or `"leave"` the rest as it is: it gets zero.
    overlap : what a pixel gets of the windows that cover it, `"mean"` or `"sum"`.

    Raises
    ------
    MethodError : the image is smaller than the window, the stride larger than it, or an option
        is unknown.

    Source
    ------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 1311.2901.
    """
    spatial = subject.spatial
    size = _each("window", window, tuple(-(-length // 8) for length in spatial))
    step = _each("stride", stride, tuple(max(1, length // 2) for length in size))
    for length, side in zip(spatial, size, strict=True):
        if side > length:
            raise MethodError(
                f"The window {_shown(size)} is larger than the image {_shown(spatial)} that the "
                "network takes: give a smaller window=."
            )
    if any(s > side for s, side in zip(step, size, strict=True)):
        raise MethodError(
            f"stride={_shown(step)} is larger than the window {_shown(size)}: parts of the image "
            "would never be hidden."
        )
    if edge not in ("align", "cut", "leave"):
        raise MethodError(f"edge={edge!r} is unknown: 'align', 'cut' or 'leave'.")
    if overlap not in ("mean", "sum"):
        raise MethodError(f"overlap={overlap!r} is unknown: 'mean' or 'sum'.")
    starts = []
    for length, side, s in zip(spatial, size, step, strict=True):
        last = length - side
        steps = range(0, last + (1 if edge == "leave" else s), s)
        starts.append(sorted({min(k, last) if edge == "align" else k for k in steps}))
    corners = np.array(list(product(*starts)))
    boxes: Boxes = np.stack([corners, np.minimum(corners + size, spatial)], axis=1)
    compose = HiddenBoxes(subject.image, subject.hidden_by(replacement))
    falls = subject.score - subject.scores(boxes, compose)
    if not len(falls):
        raise KeyboardInterrupt
    total, covered = np.zeros(spatial), np.zeros(spatial)
    for box, fall in zip(boxes, falls, strict=False):
        total[_slices(box)] += fall
        covered[_slices(box)] += 1
    if overlap == "mean":
        total /= np.maximum(covered, 1)
    return Finding(
        attribution=np.asarray(total, np.float32),
        facts={"window": list(size), "stride": list(step)},
    )


def hierarchical_occlusion(
    subject: Subject,
    *,
    budget: int = 500,
    first: int = 4,
    smallest: int | None = None,
    replacement: Any = "mean",
) -> Finding:
    """Occlude large boxes, and then the parts of those that matter.

    The box whose hiding changes the score most is cut in two along each axis, and its parts are
    hidden one by one, until the budget is spent or the boxes are small. A pixel gets the fall of
    the score for the smallest box around it, divided by the box's extent.

    Parameters
    ----------
    budget : predictions at most.
    first : boxes along each axis to begin with.
    smallest : boxes of this side, in pixels, are not cut; None: a sixteenth of the image.
    replacement : as for `occlusion`.

    Source
    ------
    Occlusion (1311.2901) refined as a quadtree.
    """
    spatial = subject.spatial
    smallest = -(-min(spatial) // 16) if smallest is None else smallest
    for name, number in (("budget", budget), ("first", first), ("smallest", smallest)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise MethodError(f"{name}={number!r} must be a whole number, 1 or more.")
    if first > min(spatial):
        raise MethodError(f"first={first} is more than the image has pixels: {_shown(spatial)}.")
    if budget < first ** len(spatial):
        raise MethodError(
            f"budget={budget} is too small: the first {first ** len(spatial)} boxes take as many."
        )
    compose = HiddenBoxes(subject.image, subject.hidden_by(replacement))
    edges = [np.arange(first + 1) * length // first for length in spatial]
    boxes = _cells(edges)
    falls = subject.score - subject.scores(boxes, compose)
    if len(falls) < len(boxes):
        raise KeyboardInterrupt
    left = budget - len(boxes)
    while not subject.interrupted:
        sides = boxes[:, 1] - boxes[:, 0]
        divisible = sides.max(axis=1) > smallest
        order = np.argsort(-np.abs(falls) * divisible, kind="stable")
        order = order[divisible[order]]
        # Several at once, however large batches the engine likes, but none far behind the first.
        worth = order[np.abs(falls[order]) >= 0.5 * np.abs(falls[order[:1]]).sum()]
        chosen = list(worth[: max(1, _AT_ONCE // 2 ** len(spatial))])
        parts = [_halves(boxes[index], smallest) for index in chosen]
        while parts and sum(map(len, parts)) > left:
            parts.pop()
        if not parts:
            break
        new = np.concatenate(parts)
        answered = subject.score - subject.scores(new, compose)
        if len(answered) < len(new):
            break
        left -= len(new)
        kept = np.setdiff1d(np.arange(len(boxes)), chosen[: len(parts)])
        boxes = np.concatenate([boxes[kept], new])
        falls = np.concatenate([falls[kept], answered])
    attribution = np.zeros(spatial, np.float32)
    for box, fall in zip(boxes, falls, strict=True):
        attribution[_slices(box)] = fall / np.prod(box[1] - box[0])
    return Finding(attribution=attribution, facts={"boxes": len(boxes)})


def _each(
    name: str, given: int | Sequence[int] | None, default: tuple[int, ...]
) -> tuple[int, ...]:
    if given is None:
        return default
    numbers = tuple(given) if isinstance(given, Sequence) else (given,) * len(default)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if len(numbers) != len(default) or not whole:
        raise MethodError(
            f"{name}={given!r} must be a whole number above 0, or {len(default)} of them."
        )
    return numbers


def _shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _slices(box: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(*box, strict=True))


def _cells(edges: Sequence[NDArray[Any]]) -> Boxes:
    """Return the boxes of a grid with these edges along each axis."""
    sides = [list(pairwise(e)) for e in edges]
    return np.array([list(zip(*box, strict=True)) for box in product(*sides)], np.int64)


def _halves(box: NDArray[np.int64], smallest: int) -> Boxes:
    edges = [
        np.array([a, (a + b) // 2, b] if b - a > smallest else [a, b])
        for a, b in zip(*box, strict=True)
    ]
    return _cells(edges)

"""Targets for detectors: how much of one detection is still found.

The score of a perturbed image is the similarity of its best matching proposal to the detection
that is explained, as D-RISE has it: overlap of the boxes, times agreement of the classes, times
objectness. It is a target like any other, meant for methods that ask for predictions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import TargetError
from pellucid.methods.perturbation.details import Numbers

__all__ = ["overlaps", "similar_detection"]

Proposals = tuple[Any, Any, Any]


def similar_detection(
    box: Sequence[float],
    classes: Sequence[float],
    read: Callable[[Array], Proposals],
) -> Callable[[Array], tuple[Array, Array]]:
    """Make the target `max over proposals of IoU * cosine of the classes * objectness`.

    Parameters
    ----------
    box : of the detection to explain, `(x1, y1, x2, y2)`.
    classes : its class probabilities.
    read : from the detector's output to boxes `(N, M, 4)`, class probabilities `(N, M, K)` and
        objectness `(N, M)`, or None in place of the last. A padded proposal has objectness 0.

    Returns
    -------
    target : for `pellucid.explain(..., method="rise", target=target)` and its like. It has no
        gradient: methods that want one get NaN.

    Raises
    ------
    TargetError : the box is empty, or what `read` returns does not fit.

    Source
    ------
    Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps" (D-RISE), CVPR
    2021, 2006.03204.

    Examples
    --------
    >>> target = similar_detection((10, 10, 50, 40), (0, 1), lambda out: (
    ...     out[..., :4], out[..., 5:], out[..., 4]))
    >>> proposals = np.array([[[10, 10, 50, 40, 0.5, 0, 1], [0, 0, 9, 9, 1, 0, 1]]])
    >>> target(proposals)[0].tolist()
    [0.5]
    """
    wanted = np.asarray(box, np.float64)
    profile = np.asarray(classes, np.float64)
    if wanted.shape != (4,) or not (wanted[2:] > wanted[:2]).all():
        raise TargetError(f"The box {tuple(box)} must be (x1, y1, x2, y2) with x1 < x2, y1 < y2.")
    if profile.ndim != 1 or not np.linalg.norm(profile) > 0:
        raise TargetError("classes= must be the class probabilities of the detection.")
    profile = profile / np.linalg.norm(profile)

    def target(output: Array) -> tuple[Array, Array]:
        boxes, probabilities, objectness = _read(read, output, len(profile))
        lengths = np.linalg.norm(probabilities, axis=-1)
        alike = (probabilities @ profile) / np.maximum(lengths, 1e-12)
        similarity = overlaps(boxes, wanted) * alike * objectness
        score = similarity.max(axis=1) if similarity.shape[1] else np.zeros(len(output))
        return np.asarray(score, np.float32), np.full(output.shape, np.nan, np.float32)

    return target


def overlaps(boxes: NDArray[Any], box: Numbers) -> Numbers:
    """Return intersection over union of boxes `(..., 4)` with one box."""
    sides = np.minimum(boxes[..., 2:], box[2:]) - np.maximum(boxes[..., :2], box[:2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)
    union = areas + np.prod(box[2:] - box[:2]) - shared
    return np.asarray(shared / np.maximum(union, 1e-12), np.float64)


def _read(
    read: Callable[[Array], Proposals], output: Array, count: int
) -> tuple[Numbers, Numbers, Numbers]:
    boxes, probabilities, objectness = read(output)
    boxes, probabilities = np.asarray(boxes, np.float64), np.asarray(probabilities, np.float64)
    sure = np.ones(boxes.shape[:-1]) if objectness is None else np.asarray(objectness, np.float64)
    rows = boxes.shape[:2]
    fits = boxes.shape == (len(output), *rows[1:], 4) and probabilities.shape == (*rows, count)
    if not fits or sure.shape != rows:
        raise TargetError(
            f"read= returned boxes {boxes.shape}, classes {probabilities.shape} and objectness "
            f"{sure.shape} for {len(output)} images: (N, M, 4), (N, M, {count}) and (N, M) are "
            "wanted."
        )
    return boxes, probabilities, sure

"""What a perturbation method found, beside the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array

__all__ = ["Finding", "Labels", "Numbers"]

Labels = NDArray[np.int32]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """The answer of a perturbation method for one image.

    Attributes
    ----------
    attribution : the map at the method's own resolution, over the area of the network's input.
    segments : superpixel of every pixel of the network's input, 0 to K - 1, or None.
    weights : of the superpixels, `(K,)`, in units of the score.
    intercept : score that the method gives to the image with everything hidden.
    r2 : share of the variance of the scores that the weights explain.
    local_prediction : score that intercept and weights give to the image itself.
    standard_errors : of the weights, `(K,)`.
    rank_stability : rank correlation to expect between this answer and that of another seed.
    certainty : probability that the top superpixels are the top superpixels.
    settled : whether the stated confidence was reached; None where none was asked for.
    predictions : how many predictions it took, the image's own included.
    facts : further numbers of the method.
    notes : warnings in words.
    signed : whether negative values speak against the target.
    """

    attribution: Array
    segments: Labels | None = None
    weights: Numbers | None = None
    intercept: float | None = None
    r2: float | None = None
    local_prediction: float | None = None
    standard_errors: Numbers | None = None
    rank_stability: float | None = None
    certainty: float | None = None
    settled: bool | None = None
    predictions: int = 0
    facts: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    signed: bool = True

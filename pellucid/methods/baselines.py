"""Where paths to an image begin: images that show nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from pellucid.adapters.base import Array
from pellucid.errors import MethodError

__all__ = ["Baseline", "baselines_of"]

Baseline = Literal["zero", "mean", "blurred", "uniform"] | Array
_NAMES = ("zero", "mean", "blurred", "uniform")
_DRAWS = 8


def baselines_of(start: Array, baseline: Baseline, seed: int = 0) -> list[Array]:
    """Return one or several baselines for a batch, each `(N, C, *spatial)`.

    Parameters
    ----------
    start : the batch.
    baseline : `"zero"`; `"mean"`, the mean of each channel of the image; `"blurred"`, the image
        blurred by a tenth of its size; `"uniform"`, eight images of noise, uniform in the range of
        each channel, over which a method averages; or an array of the input's shape, with or
        without the batch.
    seed : governs the noise.
    """
    positions = tuple(range(2, start.ndim))
    if not isinstance(baseline, str):
        array = np.asarray(baseline, np.float32)
        if array.shape not in (start.shape, start.shape[1:]):
            raise MethodError(
                f"The baseline has shape {array.shape}, the input {start.shape[1:]} per image."
            )
        return [np.array(np.broadcast_to(array, start.shape))]
    if baseline == "zero":
        return [np.zeros_like(start)]
    if baseline == "mean":
        return [start.mean(axis=positions, keepdims=True) + np.zeros_like(start)]
    if baseline == "blurred":
        return [gaussian_filter(start, [0, 0, *(size / 10 for size in start.shape[2:])])]
    if baseline == "uniform":
        low = start.min(axis=positions, keepdims=True)
        high = start.max(axis=positions, keepdims=True)
        rng = np.random.default_rng(seed)
        return [low + (high - low) * rng.random(start.shape, np.float32) for _ in range(_DRAWS)]
    raise MethodError(f"baseline={baseline!r} is unknown: {', '.join(_NAMES)}, or an array.")

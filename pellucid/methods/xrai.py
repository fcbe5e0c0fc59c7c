"""XRAI: the regions of an image, the most important first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.sparse import csc_array

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.methods.batching import MEMORY_OF_GRADIENTS
from pellucid.methods.gradient import first_input
from pellucid.methods.objective import Objective
from pellucid.methods.path import integrated_gradients

__all__ = ["xrai"]

_SCALES = (50.0, 100.0, 150.0, 250.0, 500.0, 1200.0)
_SMALLEST = 0.003  # share of the image: the smallest segment
_LEAST_GAIN = 0.001  # share of the image: what a region must add

Masks = list[NDArray[np.bool_]]


def xrai(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    steps: int = 50,
    scales: Sequence[float] = _SCALES,
    memory: int = MEMORY_OF_GRADIENTS,
) -> list[Array]:
    """Rank overlapping segments of the image by the integrated gradients that they hold.

    The image is segmented at several scales, and every segment grows by a margin. Again and again
    the segment whose pixels not yet taken have the highest mean attribution is taken; that mean is
    their value. Integrated gradients are averaged over a baseline of each channel's smallest and
    one of its largest values, and the largest channel counts.

    Parameters
    ----------
    model : the network.
    x : batch of N images, `(N, C, *spatial)`.
    objective : the score.
    steps : of integrated gradients.
    scales : of the segmentation; the greater, the larger the segments.
    memory : bytes for the activations of a pass.

    Returns
    -------
    maps : one array `(N, *spatial)` in a list.

    Source
    ------
    Kapishnikov et al., "XRAI: Better Attributions Through Regions", 1906.02825. Segments by
    Felzenszwalb and Huttenlocher (2004); of volumes by SLIC.
    """
    start = first_input(x)
    axes = tuple(range(2, start.ndim))
    found = np.zeros_like(start)
    for extreme in (np.min, np.max):
        origin = np.array(np.broadcast_to(extreme(start, axis=axes, keepdims=True), start.shape))
        found += integrated_gradients(
            model, x, objective, baseline=origin, steps=steps, memory=memory
        )
    objective.details.clear()  # they belong to the second baseline alone
    maps = [
        _ranked(attribution.max(axis=0), _segments(image, scales))
        for image, attribution in zip(start, found / 2, strict=True)
    ]
    return [np.stack(maps)]


def _segments(image: Array, scales: Sequence[float]) -> Masks:
    """Segment an image `(C, *spatial)` at several scales; each segment with a margin."""
    from skimage.segmentation import felzenszwalb, slic

    low, high = image.min(), image.max()
    scaled = (image - low) / (high - low if high > low else 1)
    pixels = np.moveaxis(scaled, 0, -1).astype(np.float64)
    size = pixels.shape[:-1]
    smallest = max(2, int(_SMALLEST * np.prod(size)))
    margin = max(1, round(5 / 224 * max(size)))
    masks: Masks = []
    for scale in scales:
        if len(size) > 2:
            count = max(2, int(np.prod(size) / smallest / np.sqrt(scale)))
            labels = slic(pixels, count, channel_axis=-1, start_label=0)
        else:
            plane = pixels if len(size) == 2 else pixels[None]
            with warnings.catch_warnings():  # of pictures with other than three channels
                warnings.simplefilter("ignore", RuntimeWarning)
                labels = felzenszwalb(plane, scale, 0.8, smallest, channel_axis=-1).reshape(size)
        cut = (labels == index for index in range(int(labels.max()) + 1))
        masks += [binary_dilation(mask, iterations=margin) for mask in cut if mask.any()]
    return masks


def _ranked(attribution: Array, masks: Masks) -> Array:
    """Give each pixel the mean attribution of the region with which it was taken."""
    values = attribution.reshape(-1).astype(np.float64)
    members = csc_array(np.stack([mask.reshape(-1) for mask in masks]).astype(np.float64))
    rows = members.tocsr()
    counts, sums = members.sum(axis=1), members @ values  # of the pixels not yet taken
    result, free = np.zeros_like(values), np.ones(values.shape, bool)
    least = max(1, int(_LEAST_GAIN * values.size))
    while (counts >= least).any():
        gains = np.where(counts >= least, sums / np.maximum(counts, 1), -np.inf)
        best = int(gains.argmax())
        region = rows.indices[rows.indptr[best] : rows.indptr[best + 1]]
        region = np.sort(region[free[region]])
        result[region], free[region] = gains[best], False
        taken = members[:, region]
        counts, sums = counts - taken.sum(axis=1), sums - taken @ values[region]
    if free.any():
        result[free] = values[free].mean()
    return np.asarray(result, np.float32).reshape(attribution.shape)

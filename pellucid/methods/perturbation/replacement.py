"""What stands in the place of hidden parts of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import splu

from pellucid.adapters.base import Array
from pellucid.errors import MethodError, nearest
from pellucid.methods.perturbation.details import Labels

__all__ = ["REPLACEMENTS", "mean_of_segments", "replacement"]

_BLUR = 0.1  # of the image's extent
_CONSTANTS = {"zero": 0.0, "half": 0.5}
REPLACEMENTS = ("mean", "blur", "inpaint", "noise", *_CONSTANTS)


def replacement(
    image: Array,
    how: Any,
    segments: Labels | None,
    seed: int,
    given: Callable[[Any], Array],
) -> Array:
    """Make what hidden parts show.

    Parameters
    ----------
    image : `(C, *spatial)`, as the network takes it.
    how : `"mean"`, of each superpixel, or of the image where there are none; `"blur"`, by a tenth
        of the image's extent; `"inpaint"`, the smoothest surface that continues what surrounds
        each superpixel; `"noise"`, of the image's own mean and deviation; `"zero"` or `"half"`, 0
        or 0.5 in the network's own input; or what `given` takes.
    segments : `(*spatial)`, or None.
    seed : of the noise.
    given : makes `(C, *spatial)` of a colour or another image.

    Raises
    ------
    MethodError : unknown, or inpainting without superpixels.
    """
    if not isinstance(how, str) or how not in REPLACEMENTS:
        if isinstance(how, str) and "." not in how and "/" not in how:
            raise MethodError(f"replacement={how!r} is unknown. {nearest(how, REPLACEMENTS)}")
        return given(how)
    if how == "mean":
        whole = np.zeros(image.shape[1:], np.int32) if segments is None else segments
        return mean_of_segments(image, whole)
    if how == "blur":
        sigma = (0, *(_BLUR * size for size in image.shape[1:]))
        return np.asarray(gaussian_filter(image, sigma), np.float32)
    if how in _CONSTANTS:
        return np.full_like(image, _CONSTANTS[how])
    if how == "noise":
        axes = tuple(range(1, image.ndim))
        drawn = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
        spread = image.std(axis=axes, keepdims=True)
        return np.asarray(image.mean(axis=axes, keepdims=True) + spread * drawn, np.float32)
    if segments is None:
        raise MethodError(
            "replacement='inpaint' continues what surrounds a superpixel, and this method has "
            "none: give 'mean', 'blur', 'noise', a colour or another image."
        )
    return _inpainted(image, segments)


def mean_of_segments(image: Array, segments: Labels) -> Array:
    """Fill every superpixel with its own mean: `(C, *spatial)` to the same."""
    flat, labels = image.reshape(len(image), -1), segments.ravel().astype(np.intp)
    counts = np.bincount(labels)
    means = np.stack([np.bincount(labels, weights=plane) / counts for plane in flat])  # (C, K)
    return np.take(means.astype(np.float32), labels, axis=1).reshape(image.shape)


def _inpainted(image: Array, segments: Labels) -> Array:
    """Solve Laplace's equation inside every superpixel, its surroundings being the boundary.

    A pixel is the mean of its neighbours. Those of other superpixels are known, so that the
    superpixels do not meet in the equations, and one sparse solution serves them all.
    """
    size = segments.size
    places = np.arange(size).reshape(segments.shape)
    labels = segments.ravel()
    pairs = [
        np.stack([np.delete(places, end, axis).ravel() for end in (-1, 0)])
        for axis in range(segments.ndim)
    ]
    one, other = np.concatenate([*pairs, *(pair[::-1] for pair in pairs)], axis=1)
    degree = np.bincount(one, minlength=size).astype(float)
    inside = labels[one] == labels[other]
    flat = image.reshape(len(image), -1).astype(np.float64)
    known = np.stack(
        [np.bincount(one[~inside], weights=plane[other[~inside]], minlength=size) for plane in flat]
    )
    minus = coo_array((-np.ones(inside.sum()), (one[inside], other[inside])), (size, size))
    diagonal = coo_array((degree, (np.arange(size), np.arange(size))), (size, size))
    system = csr_array(minus + diagonal).tocsc()
    solved = splu(system).solve(known.T).T
    return np.asarray(solved.reshape(image.shape), np.float32)

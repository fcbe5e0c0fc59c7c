"""Superpixels: an image in parts that are hidden as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import MethodError, nearest
from pellucid.methods.perturbation.details import Labels

__all__ = ["COUNT", "SEGMENTERS", "numbered_from_zero", "segmented"]

COUNT = 50
_ROUNDS = 4  # of SLIC: the colours inside superpixels are as much alike as after its ten
_SIDE = 28  # pixels: pictures are halved for SLIC while superpixels are wider than this
Segments = str | NDArray[Any] | Callable[[NDArray[Any]], Any]


def segmented(
    picture: NDArray[Any],
    how: Segments = "slic",
    count: int = COUNT,
    options: Mapping[str, Any] | None = None,
) -> Labels:
    """Cut a picture into superpixels.

    Parameters
    ----------
    picture : `(*spatial, C)`: one, two or three axes and the channels. uint8, or floats in [0, 1].
    how : `"slic"`, `"quickshift"`, `"felzenszwalb"` (pictures only), `"grid"`; a label image of
        the picture's extent, however numbered; or a function from the picture to one.
    count : superpixels aimed at, by SLIC and the grid.
    options : further arguments of scikit-image's function.

    Returns
    -------
    segments : `(*spatial)` int32, numbered 0 to K - 1.

    Raises
    ------
    MethodError : unknown segmentation or option, labels that do not fit, or a single superpixel.

    Source
    ------
    SLIC: Achanta et al., TPAMI 2012. Quickshift: Vedaldi and Soatto, ECCV 2008. Felzenszwalb and
    Huttenlocher, IJCV 2004.
    """
    spatial = picture.shape[:-1]
    if not isinstance(count, int) or count < 2:
        raise MethodError(f"num_segments={count!r} must be a whole number, 2 or more.")
    if isinstance(how, str):
        if how not in SEGMENTERS:
            raise MethodError(f"segments={how!r} is unknown. {nearest(how, SEGMENTERS)}")
        labels = _called(how, picture, count, dict(options or {}))
    elif callable(how):
        labels = how(picture)
    else:
        labels = how
    numbers = numbered_from_zero(labels, spatial)
    if not numbers.any():
        raise MethodError(
            "The segmentation has a single superpixel, so there is nothing to compare: give "
            "segments='grid', more of them with num_segments=, or a label image of your own."
        )
    return numbers


def numbered_from_zero(labels: Any, spatial: Sequence[int]) -> Labels:
    """Number labels 0 to K - 1, whatever numbers they are.

    Raises
    ------
    MethodError : the labels are no whole numbers, or of another extent than the image.
    """
    array = np.asarray(labels)
    if array.shape != tuple(spatial) or array.dtype.kind not in "uib":
        raise MethodError(
            f"The label image has shape {array.shape} of {array.dtype}; whole numbers of shape "
            f"{tuple(spatial)} are wanted, one label for each pixel of the network's input."
        )
    return np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.int32)


def _called(how: str, picture: NDArray[Any], count: int, options: dict[str, Any]) -> Any:
    try:
        return SEGMENTERS[how](picture, count, options)
    except (TypeError, ValueError) as error:
        raise MethodError(
            f"segments={how!r} with {options or 'its defaults'} failed on a picture of shape "
            f"{picture.shape}: {error}"
        ) from error


def _slic(picture: NDArray[Any], count: int, options: dict[str, Any]) -> Any:
    if picture.ndim == 2:  # a signal: pieces of equal length
        return _grid(picture, count, options)
    from skimage.segmentation import slic

    whole, spatial, colour = picture, picture.shape[:-1], picture.shape[-1] == 3
    given = {"n_segments": count, "compactness": 10.0 if colour else 0.1, "sigma": 1.0}
    given |= {"max_num_iter": _ROUNDS, "convert2lab": colour, "start_label": 0, **options}
    if picture.dtype == np.uint8:
        picture = picture / np.float32(255)
    picture = picture.astype(np.float32, copy=False)
    halvings = 0
    while _is_fine(picture, given):
        picture, halvings = _halved(picture), halvings + 1
        given["sigma"] = np.divide(given["sigma"], 2)
    labels = slic(picture, channel_axis=-1, **given)
    if not labels.any():  # noise: no superpixel holds together
        return _grid(whole, count, {})
    for _ in range(halvings):
        labels = _doubled(labels)
    return labels[tuple(map(slice, spatial))]


def _is_fine(picture: NDArray[Any], given: Mapping[str, Any]) -> bool:
    """Say whether half as many pixels along both axes of a picture are enough for SLIC."""
    area = picture.shape[0] * picture.shape[1]
    return picture.ndim == 3 and "mask" not in given and area > given["n_segments"] * _SIDE**2


def _halved(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the mean of every two by two pixels: `(H, W, C)` to half of it, rounded up."""
    edges = [(0, size % 2) for size in picture.shape[:2]]
    whole = np.pad(picture, [*edges, (0, 0)], "edge")
    rows = whole[::2] + whole[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) / 4, np.float32)


def _doubled(labels: NDArray[Any]) -> NDArray[Any]:
    """Enlarge a label image to twice its size, without the stairs of single pixels.

    Of the four parts of a pixel, each joins the two neighbours at its corner where these are alike
    and the other two are not theirs: Scale2x, Mazzoleni, 2001.
    """
    ring = np.pad(labels, 1, "edge")
    up, down, left, right = ring[:-2, 1:-1], ring[2:, 1:-1], ring[1:-1, :-2], ring[1:-1, 2:]
    doubled = np.empty((2 * labels.shape[0], 2 * labels.shape[1]), labels.dtype)
    for row, (one, opposite) in enumerate(((up, down), (down, up))):
        for column, (other, across) in enumerate(((left, right), (right, left))):
            joins = (one == other) & (one != across) & (other != opposite)
            doubled[row::2, column::2] = np.where(joins, one, labels)
    return doubled


def _quickshift(picture: NDArray[Any], count: int, options: dict[str, Any]) -> Any:
    from skimage.segmentation import quickshift

    if picture.ndim != 3:
        raise ValueError("quickshift takes pictures; give 'slic' or 'grid'")
    given = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2, **options}
    if picture.shape[-1] != 3:  # on the scale of lightness, for which the defaults are meant
        picture = picture * (100 / 255 if picture.dtype == np.uint8 else 100.0)
    return quickshift(picture, **{"convert2lab": picture.shape[-1] == 3, **given})


def _felzenszwalb(picture: NDArray[Any], count: int, options: dict[str, Any]) -> Any:
    from skimage.segmentation import felzenszwalb

    if picture.ndim != 3:
        raise ValueError("felzenszwalb takes pictures; give 'slic' or 'grid'")
    area = picture.shape[0] * picture.shape[1]
    given = {"scale": 100, "sigma": 0.5, "min_size": max(1, area // (4 * count)), **options}
    with warnings.catch_warnings():  # it doubts that so many channels are meant
        warnings.simplefilter("ignore", RuntimeWarning)
        return felzenszwalb(picture, channel_axis=-1, **given)


def _grid(picture: NDArray[Any], count: int, options: dict[str, Any]) -> Labels:
    """Cut into equal boxes, about as wide as high, at most one for each pixel."""
    if options:
        raise ValueError("a grid has no further options")
    spatial = picture.shape[:-1]
    side = (np.prod(spatial) / count) ** (1 / len(spatial))
    labels = np.zeros(spatial, np.int64)
    for axis, size in enumerate(spatial):
        boxes = int(np.clip(round(size / side), 1, size))
        place = np.arange(size) * boxes // size
        shape = [-1 if a == axis else 1 for a in range(len(spatial))]
        labels = labels * boxes + place.reshape(shape)
    return labels.astype(np.int32)


SEGMENTERS: dict[str, Callable[[NDArray[Any], int, dict[str, Any]], Any]] = {
    "slic": _slic,
    "quickshift": _quickshift,
    "felzenszwalb": _felzenszwalb,
    "grid": _grid,
}

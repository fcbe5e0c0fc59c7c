"""What is known of a tensor's values: where each lies on the image, and what it sees.

Fields are arrays of points and intervals, in pixels. Along most axes, that of the channels above
all, nothing changes; such axes have stride zero and cost neither memory nor time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HIGH",
    "LOW",
    "PLACE",
    "Field",
    "Floats",
    "changes",
    "compact",
    "image_field",
    "joined",
    "mean_place",
    "read_along",
    "spread",
    "steps_of",
    "subdivided",
    "thinned",
    "together",
]

Floats = NDArray[np.float32]
PLACE, LOW, HIGH = 0, 1, 2


@dataclass(frozen=True)
class Field:
    """What is known of a tensor with axes `shape`, for one image.

    Attributes
    ----------
    planes : `(3, A, *shape)` over A image axes: the place (NaN for none), the first and the last
        pixel that is seen. An axis along which nothing changes has stride zero.
    steps : pixels between neighbours along each image axis, for tensors with one position.
    """

    planes: Floats
    steps: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.planes.shape[2:]


def image_field(shape: Sequence[int], axes: Sequence[int], image: Sequence[int]) -> Field:
    """Return the field of an input.

    Parameters
    ----------
    shape : of the tensor.
    axes : which of its axes are those of the image, in order.
    image : size in pixels along each image axis; another than the tensor's is a scale.
    """
    planes = np.empty((3, len(axes), *([1] * len(shape))), np.float32)
    planes = np.broadcast_to(planes, (3, len(axes), *_on(shape, axes))).copy()
    steps = []
    for index, axis in enumerate(axes):
        step = image[index] / shape[axis]
        steps.append(step)
        along = np.arange(shape[axis], dtype=np.float32) * np.float32(step)
        line = along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        planes[PLACE, index] = line + np.float32((step - 1) / 2)
        planes[LOW, index], planes[HIGH, index] = line, line + np.float32(step - 1)
    return Field(spread(planes, shape), tuple(steps))


def _on(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [size if axis in axes else 1 for axis, size in enumerate(shape)]


def thinned(field: Field, rank: int = 0) -> Field:
    """Keep one cell along axes on which nothing changes; put axes in front up to `rank`."""
    planes = field.planes
    cells = (slice(0, 1) if stride == 0 else slice(None) for stride in planes.strides[2:])
    planes = planes[(slice(None), slice(None), *cells)]
    more = (1,) * (rank - len(field.shape))
    return Field(planes.reshape(*planes.shape[:2], *more, *planes.shape[2:]), field.steps)


def spread(planes: Floats, shape: Sequence[int]) -> Floats:
    """Repeat planes to the shape of their tensor, without copying them."""
    return np.broadcast_to(planes, (*planes.shape[:2], *shape))


def subdivided(field: Field, shape: Sequence[int]) -> Field:
    """Repeat a field along axes of size one, to the shape; copies of a cell divide it.

    Along an axis that follows one of positions, that is: merged with it, the two are a finer grid,
    which is how nearest upsampling is written without an operator of its own.
    """
    thin = thinned(field, len(shape))
    place, steps = thin.planes[PLACE], list(thin.steps)
    before = (*[1] * (len(shape) - len(field.shape)), *field.shape)
    for axis in range(1, len(shape)):
        if before[axis] > 1 or shape[axis] == 1 or place.shape[axis] == 1:
            continue
        cells = (np.arange(shape[axis], dtype=np.float32) + 0.5) / shape[axis] - 0.5
        line = cells.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        apart = np.diff(place, axis=axis).reshape(len(steps), -1)
        known = [one[np.isfinite(one)] for one in apart]
        widths = [float(np.median(one)) if len(one) else 0.0 for one in known]
        if any(widths):
            place = np.stack([plane + w * line for plane, w in zip(place, widths, strict=True)])
            steps = [s / shape[axis] if w else s for s, w in zip(steps, widths, strict=True)]
    low, high = thin.planes[LOW], thin.planes[HIGH]
    return joined(np.asarray(place, np.float32), low, high, shape, tuple(steps))


def compact(planes: Floats) -> Floats:
    """Give axes on which nothing changes stride zero."""
    thin = planes
    for axis in range(2, planes.ndim):
        one = thin.take([0], axis=axis)
        if thin.shape[axis] > 1 and np.array_equal(
            thin, np.broadcast_to(one, thin.shape), equal_nan=True
        ):
            thin = one
    return spread(thin, planes.shape[2:])


def changes(places: Floats, axis: int) -> bool:
    """Whether places differ along an axis."""
    if places.shape[axis] == 1:
        return False
    one = places.take([0], axis=axis)
    return not np.array_equal(places, np.broadcast_to(one, places.shape), equal_nan=True)


def steps_of(fields: Sequence[Field]) -> tuple[float, ...]:
    """Return the widest steps of several fields."""
    return tuple(max(each) for each in zip(*(field.steps for field in fields), strict=True))


def joined(
    place: Floats, low: Floats, high: Floats, shape: Sequence[int], steps: tuple[float, ...]
) -> Field:
    """Make a field of its planes, which are spread to the shape."""
    thin = np.broadcast_arrays(place, low, high)
    return Field(spread(np.stack(thin), shape), steps)


def mean_place(places: Floats, axis: int | tuple[int, ...], keepdims: bool = False) -> Floats:
    """Average places, NaN left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean of nothing but NaN is NaN
        found: Floats = np.nanmean(places, axis=axis, keepdims=keepdims)
    return found


def together(
    field: Field, axes: Sequence[int], shape: Sequence[int] | None, merging: bool = True
) -> Field:
    """Take values together along axes.

    Together they see what any of them sees. They lie where all of them lie; cells that differ
    merge into a larger one in their middle, unless they are the whole grid.

    Parameters
    ----------
    shape : of the result; None keeps the axes, with one cell each.
    merging : whether cells may merge.
    """
    planes = thinned(field).planes
    along = tuple(axis + 1 for axis in axes)
    low = planes[LOW].min(axis=along, keepdims=True)
    high = planes[HIGH].max(axis=along, keepdims=True)
    place = planes[PLACE]
    if any(place.shape[axis] > 1 for axis in along):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            span = np.nanmax(place, along, keepdims=True) - np.nanmin(place, along, keepdims=True)
            every = tuple(range(1, place.ndim))
            whole = np.nanmax(place, every, keepdims=True) - np.nanmin(place, every, keepdims=True)
        one = (np.nan_to_num(span) == 0).all(axis=0, keepdims=True)
        some = (span < whole).any(axis=0, keepdims=True) & merging
        place = np.where(one | some, mean_place(place, along, keepdims=True), np.float32(np.nan))
    sizes = [1 if axis in axes else size for axis, size in enumerate(field.shape)]
    whole_rank = joined(place, low, high, sizes, field.steps)
    if shape is None or len(shape) == len(sizes):
        return whole_rank
    planes = whole_rank.planes.reshape(3, planes.shape[1], *shape)
    return Field(planes, field.steps)


def read_along(
    planes: Floats, at: int, cells: NDArray[Any], index: int, steps: Sequence[float]
) -> Floats:
    """Read planes along an axis at any cells, also between them and beyond the border."""
    count = planes.shape[at]
    near = np.clip(np.floor(cells), 0, count - 1).astype(int)
    found = planes.take(near, axis=at)
    if count > 1:
        left = np.minimum(near, count - 2)
        with np.errstate(invalid="ignore"):
            slope = planes.take(left + 1, axis=at) - planes.take(left, axis=at)
    else:
        slope = np.zeros_like(found)
        if 0 <= index < len(steps):
            slope[:, index] = steps[index]
    away = (cells - near).reshape([-1 if axis == at else 1 for axis in range(planes.ndim)])
    level = np.where(np.isfinite(slope), slope, 0)
    return np.asarray(found + level * away, np.float32)

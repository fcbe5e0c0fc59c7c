"""Half-pixel bilinear resampling, antialiased where it shrinks, as one matrix per axis.

The picture's way into the network and the heatmap's way back are the same operation: every
target pixel looks at an affinely mapped point of the source. A matrix per axis states that
directly, for stretching, cropping and padding alike, and agrees with Pillow's BILINEAR, with
`torch.nn.functional.interpolate(antialias=True, align_corners=False)` and, where it enlarges,
with `cv2.INTER_LINEAR`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InputError

__all__ = ["Fit", "Placement", "Size", "resize_map"]

Fit = Literal["stretch", "crop", "pad"]
Size = tuple[int, int]

CROP_FRACTION = 0.875  # the share of the shorter side that ImageNet evaluation keeps


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies on the grid of the network's input.

    Attributes
    ----------
    picture : the picture's size (H, W).
    canvas : the input's size (h, w).
    resized : the picture's size (H', W') on the canvas's grid.
    offset : row and column of the canvas where the resized picture begins; negative where it is
        cropped.
    """

    picture: Size
    canvas: Size
    resized: Size
    offset: Size

    @classmethod
    def of(cls, picture: Size, canvas: Size, fit: Fit) -> Placement:
        """Lay a picture of a size on a canvas."""
        if fit == "stretch":
            return cls(picture, canvas, canvas, (0, 0))
        if fit == "crop":
            whole = (round(canvas[0] / CROP_FRACTION), round(canvas[1] / CROP_FRACTION))
            by_height = picture[0] * whole[1] <= picture[1] * whole[0]
            resized = _scaled(picture, whole, by_height)
        else:
            by_height = picture[0] * canvas[1] >= picture[1] * canvas[0]
            resized = _scaled(picture, canvas, by_height)
        offset = (
            -round((resized[0] - canvas[0]) / 2),
            -round((resized[1] - canvas[1]) / 2),
        )
        return cls(picture, canvas, resized, offset)

    @property
    def covered(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the picture covers."""
        ends = [o + r for o, r in zip(self.offset, self.resized, strict=True)]
        return (
            slice(max(self.offset[0], 0), min(ends[0], self.canvas[0])),
            slice(max(self.offset[1], 0), min(ends[1], self.canvas[1])),
        )

    def forward(self, planes: NDArray[Any]) -> NDArray[np.float32]:
        """Carry planes (C, H, W) from the picture onto the canvas, (C, h, w); zero outside."""
        rows, columns = (
            _matrix(out, size, step=size / whole, start=-begin * size / whole)
            for out, size, whole, begin in zip(
                self.canvas, self.picture, self.resized, self.offset, strict=True
            )
        )
        return np.stack([_applied(rows, plane, columns) for plane in planes])

    def backward(self, heatmap: NDArray[Any]) -> NDArray[np.float32]:
        """Carry a map (a, b) that covers the canvas onto the picture, (H, W); zero outside."""
        rows, columns = (
            _matrix(out, size, step=whole / out * size / side, start=begin * size / side)
            for out, size, side, whole, begin in zip(
                self.picture, heatmap.shape, self.canvas, self.resized, self.offset, strict=True
            )
        )
        return _applied(rows, heatmap, columns)


def resize_map(heatmap: Any, size: Sequence[int]) -> NDArray[np.float32]:
    """Resize a map to a grid that covers the same area, along each of its axes.

    Half-pixel linear: the same as `cv2.INTER_LINEAR` where it enlarges, antialiased where it
    shrinks.

    Parameters
    ----------
    heatmap : `(h, w)`, or with any other number of axes, at any resolution.
    size : the grid's extent, `(H, W)`; one entry for each axis.

    Returns
    -------
    resized : `(H, W)` float32.

    Raises
    ------
    InputError : the map is empty, or its axes and the grid's differ in number.

    Examples
    --------
    >>> resize_map([[0.0, 1.0]], (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    resized = np.asarray(heatmap, np.float32)
    if not resized.size or resized.ndim != len(size):
        raise InputError(f"A map of shape {resized.shape} cannot be drawn on {tuple(size)}.")
    for axis, (targets, sources) in enumerate(zip(size, resized.shape, strict=True)):
        weights = _matrix(targets, sources, step=sources / targets, start=0)
        if weights is not None:
            resized = np.moveaxis(np.moveaxis(resized, axis, -1) @ weights.T, -1, axis)
    return np.ascontiguousarray(resized)


def checked_map(heatmap: Any) -> NDArray[np.float32]:
    """Check that a heatmap has two axes and is not empty, and return it as float32."""
    array = np.asarray(heatmap, np.float32)
    if array.ndim != 2 or not array.size:
        raise InputError(f"A heatmap has shape (h, w); this one has {array.shape}.")
    return array


def _scaled(picture: Size, target: Size, by_height: bool) -> Size:
    """Scale a size to the target's height or width and keep its proportions.

    The other side is truncated, as torchvision's `Resize` does.
    """
    height, width = picture
    if by_height:
        return target[0], max(1, target[0] * width // height)
    return max(1, target[1] * height // width), target[1]


def _matrix(targets: int, sources: int, step: float, start: float) -> NDArray[np.float32] | None:
    """Build the weights (targets, sources) of one axis, or None for the identity.

    Target pixel i looks at the source coordinate `start + (i + 1/2) step` through a triangle of
    half-width `max(step, 1)`; a target whose centre falls outside the source gets zeros.
    """
    if targets == sources and step == 1 and start == 0:
        return None
    centres = start + (np.arange(targets) + 0.5) * step
    distances = np.abs(np.arange(sources) + 0.5 - centres[:, None])
    weights = np.maximum(1 - distances / max(step, 1.0), 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    weights[(centres < 0) | (centres > sources)] = 0
    return weights.astype(np.float32)


def _applied(
    rows: NDArray[np.float32] | None, plane: NDArray[Any], columns: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    plane = plane.astype(np.float32)
    if columns is not None:
        plane = plane @ columns.T
    return plane if rows is None else rows @ plane

"""The grid of a layer, however its values are stored, and the receptive field of its positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Placement", "ReceptiveField", "in_layout", "neighbourhoods"]


@dataclass(frozen=True)
class Placement:
    """How the values of a layer lie on the image.

    Attributes
    ----------
    channels : the axis of the channels.
    positions : the axes of the positions; all others but the batch have one cell, or are `heads`.
    grid : size of the grid that the positions make.
    take : of the positions in a row, those on the grid, row by row; None if they are all and
        in order. Class and register tokens are left out.
    heads : further axes of channels, behind which attention splits them.
    """

    channels: int
    positions: tuple[int, ...]
    grid: tuple[int, ...]
    take: tuple[int, ...] | None = None
    heads: tuple[int, ...] = ()

    def on_grid(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """View values of the layer as `(N, C, *grid)`."""
        channels = (self.channels, *self.heads)
        order = (0, *channels, *self.positions)
        others = [axis for axis in range(array.ndim) if axis not in order]
        # (N, ..., C) -> (N, C, T)
        count = math.prod(array.shape[axis] for axis in channels)
        flat = array.transpose(*order, *others).reshape(len(array), count, -1)
        if self.take is not None:
            flat = flat[:, :, list(self.take)]
        return flat.reshape(*flat.shape[:2], *self.grid)

    def over(self, masks: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
        """Lay masks `(P, *grid)` over values of that shape: `(P, ...)`, one off the grid."""
        cells = [shape[axis] for axis in self.positions]
        laid = np.ones((len(masks), math.prod(cells)), np.float32)
        laid[:, slice(None) if self.take is None else list(self.take)] = masks.reshape(
            len(masks), -1
        )
        axes = [*self.positions, *(a for a in range(1, len(shape)) if a not in self.positions)]
        laid = laid.reshape(len(masks), *cells, *[1] * (len(axes) - len(cells)))
        return laid.transpose(0, *(axis + 1 for axis in np.argsort(axes)))

    @property
    def is_plain(self) -> bool:
        """Whether the values are `(N, C, *grid)` already."""
        return (
            self.channels == 1
            and self.take is None
            and not self.heads
            and self.positions == tuple(range(2, 2 + len(self.grid)))
        )


@dataclass(frozen=True)
class ReceptiveField:
    """What a position of a layer sees, in pixels of the input.

    Attributes
    ----------
    size : along each image axis; it may be larger than the image, whose border then is inside.
    stride : from one position to the next; 0 where there is one.
    whole : whether every position sees the whole image.
    """

    size: tuple[int, ...]
    stride: tuple[float, ...]
    whole: bool = False

    def __str__(self) -> str:
        """Write it down: 99 x 99, every 8."""
        if self.whole:
            return "whole image"
        size = self.size[:1] if len(set(self.size)) == 1 else self.size
        text = " x ".join(str(n) for n in (size * len(self.size))[: len(self.size)])
        steps = [f"{n:g}" for n in dict.fromkeys(self.stride) if n]
        return f"{text}, every {' x '.join(steps)}" if steps else text


def in_layout(placement: Placement, to_own: Sequence[int]) -> Placement:
    """Return a placement for values with their axes turned to channels first."""
    if not to_own:
        return placement
    return replace(
        placement,
        channels=to_own[placement.channels],
        positions=tuple(to_own[axis] for axis in placement.positions),
        heads=tuple(to_own[axis] for axis in placement.heads),
    )


def neighbourhoods(grid: Sequence[int], some: slice = slice(None)) -> NDArray[np.float32]:
    """Kernel of three cells per axis around each of some positions of a grid, `(P, *grid)`.

    1/4, 1/2, 1/4 along each axis, so 1/16, 1/8, 1/4 in two.
    """
    positions = np.arange(math.prod(grid))[some]
    masks = np.ones((len(positions), *[1] * len(grid)), np.float32)
    for axis, places in enumerate(np.unravel_index(positions, tuple(grid))):
        apart = np.abs(places[:, None] - np.arange(grid[axis]))  # (P, n)
        near = np.select([apart == 0, apart == 1], [0.5, 0.25]).astype(np.float32)
        masks = masks * np.expand_dims(near, [1 + a for a in range(len(grid)) if a != axis])
    return masks

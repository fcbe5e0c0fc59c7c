"""What preprocessing needs to know of a network's inputs."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.images.resampling import Size

__all__ = [
    "Array",
    "Channels",
    "InputPort",
    "described",
    "natural_channels",
    "shape_fits",
    "shown_shape",
    "size_fits",
]

Array = NDArray[np.float32]
Channels = Literal["rgb", "bgr", "grey", "grey3", "any"]


class InputPort(Protocol):
    """An input of a network; `pellucid.adapters.base.Port` is one."""

    @property
    def name(self) -> str:
        """`input`, `input:1`, ..."""

    @property
    def own_name(self) -> str:
        """The framework's name for it."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Channels first, `(None, C, H, W)` for pictures, with None where any size fits."""

    @property
    def own_shape(self) -> tuple[int | None, ...]:
        """The same in the model's own layout."""

    def channels_first(self, array: Array, /) -> Array:
        """View an array in the model's own layout with the channels second."""


def natural_channels(port: InputPort) -> Channels:
    """Return the channels that an input takes by their number; open means colour."""
    kinds: dict[int | None, Channels] = {None: "rgb", 1: "grey", 3: "rgb"}
    return kinds.get(port.shape[1], "any")


def size_fits(size: Size | None, port: InputPort) -> bool:
    """Whether pictures of a size, or of any, fit an input."""
    fixed = port.shape[2:]
    return size is None or all(f is None or f == s for f, s in zip(fixed, size, strict=True))


def shape_fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether an array's shape fits an input's, whatever the batch size."""
    return len(shape) == len(wanted) and all(
        w is None or w == s for s, w in zip(shape[1:], wanted[1:], strict=True)
    )


def shown_shape(shape: tuple[int | None, ...], batch: bool = False) -> str:
    """Write an input's shape for a message, without or with the batch, "any" for open sizes."""
    sizes = ["any" if size is None else str(size) for size in shape[1:]]
    return f"({', '.join(['N', *sizes] if batch else sizes)})"


def described(port: InputPort) -> str:
    """Say in a message what an input takes."""
    return f"the model's {port.name} takes shape {shown_shape(port.shape)}, channels first"

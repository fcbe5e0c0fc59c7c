"""A caller's own function as preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pellucid.errors import InputError, PellucidError
from pellucid.images.ports import Array, Channels, InputPort, shape_fits, shown_shape
from pellucid.images.reading import as_array, display_picture, read_image
from pellucid.images.resampling import Size, resize_map

__all__ = ["CallablePreprocess"]


@dataclass(frozen=True)
class CallablePreprocess:
    """A caller's own function as preprocessing, behind the interface of `Preprocess`.

    Attributes
    ----------
    function : from a picture `(H, W, 3)` uint8 RGB (multispectral pictures: all their channels)
        to a float array in the model's own layout, with or without the batch axis.
    port : the input that the result must fit.
    """

    function: Callable[[Any], Any]
    port: InputPort
    name: str = "custom"
    channels: Channels = "any"
    assumed: bool = False

    @property
    def reason(self) -> str:
        """Say who chose this."""
        return f"given by the caller: the function {self._function_name}"

    def for_port(self, port: InputPort) -> CallablePreprocess:
        """Return the same function for another input of the same model."""
        return replace(self, port=port)

    def __call__(self, image: Any) -> Array:
        """Turn one picture, or whatever `read_image` opens, into `(C, h, w)` float32.

        Raises
        ------
        ImageError : the picture cannot be read.
        InputError : the function failed, or its result does not fit the input.
        """
        picture = read_image(image)
        shown = display_picture(picture)
        try:
            result = as_array(self.function(picture if shown is None else shown))
            array = np.asarray(result, np.float32)
        except PellucidError:
            raise
        except Exception as error:
            raise InputError(
                f"preprocess= function {self._function_name} failed on a picture of shape "
                f"{(picture if shown is None else shown).shape}: {type(error).__name__}: {error}"
            ) from error
        own = self.port.own_shape
        batch = array[None] if array.ndim == len(own) - 1 else array
        if not shape_fits(batch.shape, own) or len(batch) != 1:
            raise InputError(
                f"preprocess= function {self._function_name} returned shape {array.shape}; one "
                f"picture for this model has shape {shown_shape(own)} in the model's own "
                "layout. The function must do the resizing and order the axes itself."
            )
        sample: Array = self.port.channels_first(batch)[0]
        return sample

    def to_image(self, heatmap: Any, image_size: Size) -> Array:
        """Resize a map `(h, w)` onto the picture's grid `(H, W)`, float32.

        What the function cropped or padded cannot be known: the network's input is taken to show
        the whole picture.
        """
        return resize_map(heatmap, (int(image_size[0]), int(image_size[1])))

    def picture(self, sample: Array) -> None:
        """A function cannot be undone: always None."""

    @property
    def _function_name(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

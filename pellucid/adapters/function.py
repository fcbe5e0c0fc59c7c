"""A plain function as the network: `predict(batch) -> scores`.

Nothing is known of it but what it returns, so that only methods which ask for predictions apply.
The function gets what the caller holds: batches of arrays of the same type and layout as the
image, `(N, H, W, C)` for an `(H, W, C)` image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Adapter, Array, Layer, Port, Rectifier, Seed
from pellucid.errors import ImageError, InputError, LayerError, UnsupportedError, first_line

__all__ = ["FunctionAdapter"]

_OTHERS = "methods that only ask for predictions, such as lime, kernel-shap, rise and occlusion"


class FunctionAdapter(Adapter):
    """A function behind the adapter interface.

    Parameters
    ----------
    predict : from images, `(N, H, W, C)`, to scores, `(N, classes)`.
    labels : class names.
    source : where it came from, for messages.
    """

    framework: ClassVar[str] = "function"

    def __init__(
        self, predict: Callable[[Any], Any], *, labels: Any = None, source: str = ""
    ) -> None:
        self.function_name = str(getattr(predict, "__qualname__", type(predict).__name__))
        super().__init__(labels=labels, source=source or f"the function {self.function_name}")
        self._predict = predict
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._channels = True  # whether the images have an axis of channels
        self._shape: tuple[int | None, ...] = (None, None, None, None)
        self._classes: tuple[int, ...] = ()

    # ---- what it is --------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """A function has none that can be seen: always an error."""
        self._refuse("no layers")

    @property
    def inputs(self) -> tuple[Port, ...]:
        """One input, of the shape of the last image."""
        rank = len(self._shape)
        to_own = (0, *range(2, rank), 1) if self._channels else ()
        return (Port("input", self._shape, "images", to_own),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """One output, of the shape of the last answer."""
        return (Port("output", (None, *(self._classes or (None,)))),)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the function's code; what it calls is out of sight."""
        code = getattr(self._predict, "__code__", None)
        told = self.function_name.encode() + (code.co_code if code else b"")
        return hashlib.sha256(told).hexdigest()

    @property
    def versions(self) -> dict[str, str]:
        """None are known."""
        return {}

    # ---- images ------------------------------------------------------------------------------

    def prepare(self, images: Any) -> Any:
        """Take one image, or a list of images of one shape, as it is.

        A path or PIL image becomes `(H, W, 3)` uint8. Arrays are `(L,)`, `(H, W)`, `(H, W, C)` or
        `(D, H, W, C)`.
        """
        from pellucid.images import Prepared
        from pellucid.images.reading import as_array, display_picture, read_image

        given = list(images) if isinstance(images, list | tuple) else [images]
        if not given:
            raise InputError("The list of images is empty.")
        arrays: list[NDArray[Any]] = []
        for image in given:
            array = as_array(image)
            arrays.append(array if isinstance(array, np.ndarray) else read_image(image))
        first = arrays[0]
        if len({(array.shape, array.dtype) for array in arrays}) > 1:
            raise InputError("The images differ in shape or type: a function gets them as a batch.")
        if not 1 <= first.ndim <= 4 or first.dtype.kind not in "uif" or not first.size:
            raise ImageError(
                f"An image for a function is an array (L,), (H, W), (H, W, C) or (D, H, W, C) of "
                f"numbers; this is {first.shape} of {first.dtype}."
            )
        self._dtype, self._channels = first.dtype, first.ndim > 2
        stacked = np.stack(arrays).astype(np.float32)
        batch = np.moveaxis(stacked, -1, 1) if self._channels else stacked[:, None]
        self._shape = (None, *batch.shape[1:])
        pictures = [
            display_picture(_in_255(array if array.ndim == 3 else array[..., None]))
            if array.ndim in (2, 3)
            else None
            for array in arrays
        ]
        return Prepared((batch,), pictures, not isinstance(images, list | tuple), None)

    # ---- values ------------------------------------------------------------------------------

    def _run(
        self, x: tuple[Array, ...], fetch: tuple[str, ...], replace: Mapping[str, Array]
    ) -> dict[str, Array]:
        if replace:
            self._refuse("no layers")
        for name in fetch:
            if name not in ("input", "output", "logits"):
                raise self.unknown_layer(name)
        images = self._images(x[0])
        try:
            returned = self._predict(images)
        except Exception as error:
            raise InputError(
                f"The function {self.function_name} raised {type(error).__name__} on a batch of "
                f"shape {images.shape} of {images.dtype}: {first_line(error)}"
            ) from error
        scores = self._scores(returned, len(images))
        values = {"input": x[0], "output": scores, "logits": scores}
        return {name: values[name] for name in fetch}

    def _images(self, x: Array) -> NDArray[Any]:
        """Return a batch in the layout and type of the caller's image, free to be changed."""
        own = np.moveaxis(x, 1, -1) if self._channels else x[:, 0]
        if self._dtype.kind == "f":
            return np.array(own, self._dtype, order="C")
        limits = np.iinfo(self._dtype)
        return np.clip(np.rint(own), limits.min, limits.max).astype(self._dtype, order="C")

    def _scores(self, returned: Any, count: int) -> Array:
        from pellucid.images.reading import as_array

        array = as_array(returned)
        try:
            scores = np.asarray(array, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The function {self.function_name} returned {type(returned).__name__}, not an "
                "array of scores."
            ) from error
        if not scores.ndim or len(scores) != count or not scores.size:
            raise InputError(
                f"The function {self.function_name} returned shape {scores.shape} for {count} "
                f"images: ({count}, classes) is wanted, a row of scores for each image."
            )
        scores = scores[:, None] if scores.ndim == 1 else scores
        if self._classes and self._classes != scores.shape[1:]:
            raise InputError(
                f"The function {self.function_name} returned rows of shape {scores.shape[1:]}, "
                f"and {self._classes} before."
            )
        self._classes = scores.shape[1:]
        return scores

    def _pullback(
        self,
        x: tuple[Array, ...],
        seed: Seed,
        wrt: tuple[str, ...],
        fetch: tuple[str, ...],
        relu: Rectifier,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        self._refuse("no gradients")

    def unknown_layer(self, name: str) -> LayerError:
        """Build the error for a layer's name."""
        return LayerError(f"A plain function has no layer {name!r}; there are {_OTHERS}.")

    def _refuse(self, lack: str) -> NoReturn:
        raise UnsupportedError(
            f"A plain function has {lack}: give the model itself, or choose among the {_OTHERS}."
        )


def _in_255(array: NDArray[Any]) -> NDArray[Any]:
    """Bring floats in [0, 1], or of any other range, to the range of pixels."""
    if array.dtype == np.uint8:
        return array
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    scaled: NDArray[Any] = (np.nan_to_num(array) - low) / max(high - low, 1e-12) * 255
    return scaled

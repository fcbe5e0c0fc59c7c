"""From a picture to what the network takes, and from its grid back to the picture.

    x = (scale * pixel - mean) / std,    pixel in 0..255

A wrong preprocessing gives a plausible, wrong explanation, so none is ever chosen in silence:
every `Preprocess` says in `reason` who chose it, and in `assumed` whether that was a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import ImageError, InputError, nearest
from pellucid.images.function import CallablePreprocess
from pellucid.images.ports import (
    Array,
    Channels,
    InputPort,
    described,
    natural_channels,
    size_fits,
)
from pellucid.images.reading import as_array, display_picture, read_image
from pellucid.images.resampling import Fit, Placement, Size, checked_map

__all__ = ["PRESETS", "Preprocess", "Preprocessing"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {
        "channels": "rgb",
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "caffe": {"channels": "bgr", "scale": 1.0, "mean": (103.939, 116.779, 123.68)},
    "tf": {"scale": 1 / 127.5, "mean": (1.0,)},
    "0-1": {"scale": 1 / 255},
    "0-255": {"scale": 1.0},
    "standardise": {"standardise": True},
    "raw": {"channels": "any", "scale": 1.0},
}

_KEYS = ("name", "mean", "std", "size", "scale", "channels", "fit", "standardise")
_DEFAULT_SIZE = 224
_COUNTS = {"rgb": 3, "bgr": 3, "grey": 1, "grey3": 3}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input: resized, `(scale * pixel - mean) / std`.

    Attributes
    ----------
    name : "imagenet", "caffe", "tf", "0-1", "0-255", "standardise", "raw" or "custom".
    channels : order in which the network takes them: "rgb", "bgr", "grey" (one channel, the
        ITU-R BT.601 luma of a colour picture), "grey3" (that, three times) or "any" (as they
        are).
    scale : factor on pixels of 0..255, applied first.
    mean, std : one value or one per channel in the network's order, after `scale`.
    size : (h, w) of the network's input, or None to keep the picture's.
    fit : "stretch" squeezes the whole picture to the size, so that nothing goes unexplained;
        "crop" resizes it to size / 0.875 and cuts the centre out, as ImageNet evaluation does;
        "pad" fits all of it in its proportions and fills the rest with the mean colour.
    standardise : at last, subtract each picture's own mean, over all its pixels and channels, and
        divide by its own deviation (at least 1 / sqrt(their number)), as
        `tf.image.per_image_standardization` does.
    reason : a sentence that says who chose this.
    assumed : whether it is a guess.

    Raises
    ------
    InputError : a value is out of range.
    """

    name: str = "custom"
    channels: Channels = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: Size | None = None
    fit: Fit = "stretch"
    standardise: bool = False
    reason: str = "given by the caller"
    assumed: bool = False

    def __post_init__(self) -> None:
        for key, kinds in (("channels", Channels), ("fit", Fit)):
            value, known = getattr(self, key), get_args(kinds)
            if value not in known:
                raise InputError(
                    f"preprocess: {key}={value!r} is unknown. {nearest(str(value), known)}"
                )
        if len(numbers := _numbers("scale", self.scale)) != 1 or numbers[0] == 0:
            raise InputError(f"preprocess: scale={self.scale!r} must be one number other than 0.")
        object.__setattr__(self, "scale", numbers[0])
        for key in ("mean", "std"):
            object.__setattr__(self, key, _numbers(key, getattr(self, key)))
        if any(value <= 0 for value in self.std):
            raise InputError(f"preprocess: std={self.std} must be above 0.")
        object.__setattr__(self, "size", _size(self.size))
        count = _COUNTS.get(self.channels)
        for key in ("mean", "std"):
            given = len(getattr(self, key))
            if count and given not in (1, count):
                raise InputError(
                    f"preprocess: {key} has {given} values, {self.channels!r} has {count} channels."
                )

    @classmethod
    def of(
        cls,
        spec: Any,
        port: InputPort,
        *,
        scales_input: bool = False,
        framework: str = "",
    ) -> Preprocessing:
        """Make the preprocessing for an input from what a caller gave.

        Parameters
        ----------
        spec : one of

            - None, for a guess: raw pixels 0..255 if the model scales its own input, "imagenet"
              for a PyTorch model with three channels, else "0-1";
            - a preset name, see `PRESETS`;
            - a mapping with any of `name` (a preset to start from), `mean`, `std`, `size` ((h, w)
              or one number), `scale`, `channels`, `fit`;
            - a tuple `(mean, std)`;
            - a `Preprocess`;
            - a function from a picture `(H, W, 3)` uint8 RGB (multispectral pictures: all their
              channels) to a float array in the model's own layout, resized as the model needs it.

            Where `mean` or `std` come without `scale`, it is 1/255 if no |mean| and no std
            exceeds 1.5 (PyTorch's habit, `mean=(0.485, ...)` for pixels of 0..1), else 1.
        port : the input; its shape gives the number of channels and the size. Where the size is
            open and none is given it is 224 x 224.
        scales_input : whether the model begins with rescaling or normalisation layers.
        framework : "torch" or another.

        Raises
        ------
        InputError : the spec is unknown, out of range, or does not fit the input.

        Examples
        --------
        >>> from pellucid.adapters.base import Port
        >>> port = Port("input", (None, 3, 224, 224))
        >>> Preprocess.of({"mean": 0.5, "std": 0.5}, port).scale == 1 / 255
        True
        """
        if isinstance(spec, CallablePreprocess):
            return replace(spec, port=port)
        if callable(spec) and not isinstance(spec, Preprocess | type):
            return CallablePreprocess(spec, port)
        if len(port.shape) != 4:
            if spec is not None:
                raise InputError(
                    f"preprocess= is for pictures, but {described(port)}: give the batch as "
                    "floats and leave preprocess= out."
                )
            return cls("raw", "any", reason="the model's input is no picture")
        if spec is None:
            chosen = _guess(port, scales_input, framework)
        elif isinstance(spec, Preprocess):
            chosen = spec
        elif isinstance(spec, str):
            chosen = _from_mapping({"name": spec}, port)
        elif isinstance(spec, Mapping):
            chosen = _from_mapping(spec, port)
            if (
                not {"name", "mean", "std", "scale", "standardise"} & spec.keys()
            ):  # only the geometry was given
                guess = _guess(port, scales_input, framework)
                given = {key: getattr(chosen, key) for key in spec}
                chosen = replace(guess, **given)
        elif isinstance(spec, tuple | list) and len(spec) == 2:
            chosen = _from_mapping({"mean": spec[0], "std": spec[1]}, port)
        else:
            raise InputError(
                f"preprocess={spec!r} is not understood: give a preset ({', '.join(PRESETS)}), "
                "(mean, std), a mapping with mean, std, size, scale, channels, fit, or a function."
            )
        keep = isinstance(spec, Preprocess) or (isinstance(spec, Mapping) and "size" in spec)
        return _fitted(chosen, port, None if keep else _DEFAULT_SIZE)

    def for_port(self, port: InputPort) -> Preprocess:
        """Return this preprocessing for another input of the same model: its size and channels."""
        channels = self.channels
        if _COUNTS.get(channels, port.shape[1]) != port.shape[1]:
            channels = natural_channels(port)
        size = self.size if size_fits(self.size, port) else None
        default = None if self.size is None else _DEFAULT_SIZE
        return _fitted(replace(self, size=size, channels=channels), port, default)

    def __call__(self, image: Any) -> Array:
        """Turn one picture, or whatever `read_image` opens, into `(C, h, w)` float32.

        Raises
        ------
        ImageError : the picture cannot be read, or its channels are not what is needed.
        """
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype in ("u1", "f4"):
            picture = image
        else:
            picture = read_image(image, keep_alpha=self.channels == "any")
        height, width, count = picture.shape
        if self.channels != "any" and count not in (1, 3):
            raise ImageError(
                f"The picture has {count} channels; the model takes {_COUNTS[self.channels]} "
                f"({self.channels}). For other channels pass preprocess={{'channels': 'any'}}."
            )
        if self.channels in ("grey", "grey3") and count == 3:
            picture = (picture.astype(np.float32) @ _LUMA)[..., None]
        placement = self._placement((height, width))
        planes = placement.forward(picture.transpose(2, 0, 1))  # (H, W, C) -> (C, h, w)
        if _COUNTS.get(self.channels) == 3:
            planes = np.broadcast_to(planes, (3, *planes.shape[1:]))
        if self.channels == "bgr":
            planes = planes[::-1]
        mean, std = self._per_channel(len(planes))
        rows, columns = placement.covered
        batch = np.zeros(planes.shape, np.float32)  # zero is the mean colour
        inside = (planes[:, rows, columns] * np.float32(self.scale) - mean) / std
        if self.standardise:
            inside = (inside - inside.mean()) / max(inside.std(), inside.size**-0.5)
        batch[:, rows, columns] = inside
        return batch

    def to_image(self, heatmap: Any, image_size: Size) -> Array:
        """Carry a map over the network's input onto the picture's grid.

        Half-pixel bilinear. A crop is undone with zeros outside it, padding is cut off.

        Parameters
        ----------
        heatmap : `(h, w)` of any resolution, covering the network's whole input.
        image_size : the picture's (H, W).

        Returns
        -------
        heatmap : `(H, W)` float32.
        """
        return self._placement(image_size).backward(checked_map(heatmap))

    def picture(self, sample: Array) -> NDArray[np.uint8] | None:
        """Undo all but the resizing: `(C, h, w)` as the network takes it to `(h, w, 3)` uint8.

        None where the channels make no picture, or the picture's own mean was taken away.
        """
        if len(sample) not in (1, 3) or self.standardise:
            return None
        mean, std = self._per_channel(len(sample))
        pixels = (sample * std + mean) / np.float32(self.scale)
        pixels = pixels[::-1] if self.channels == "bgr" else pixels
        return display_picture(np.nan_to_num(pixels.transpose(1, 2, 0)))  # (C, h, w) -> (h, w, C)

    def _placement(self, image_size: Size) -> Placement:
        size = (int(image_size[0]), int(image_size[1]))
        return Placement.of(size, self.size or size, self.fit)

    def _per_channel(self, count: int) -> tuple[Array, Array]:
        """Mean and deviation as (C or 1, 1, 1)."""
        for key in ("mean", "std"):
            if (given := len(getattr(self, key))) not in (1, count):
                raise ImageError(
                    f"The picture has {count} channels; preprocess has {given} values of {key}."
                )
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return mean, std


Preprocessing = Preprocess | CallablePreprocess


# ---- what was asked for ----------------------------------------------------------------------


def _guess(port: InputPort, scales_input: bool, framework: str) -> Preprocess:
    channels, advice = natural_channels(port), "; pass preprocess= to change it"
    if scales_input:
        reason = "the model scales its own input, so it gets the pixels 0..255"
        return Preprocess("0-255", channels, reason=reason)
    if framework == "torch" and channels == "rgb":
        reason = "assumed: the ImageNet mean and deviation, usual for PyTorch models" + advice
        return Preprocess("imagenet", **PRESETS["imagenet"], reason=reason, assumed=True)
    reason = "assumed: pixels scaled to 0..1" + advice
    return Preprocess("0-1", channels, scale=1 / 255, reason=reason, assumed=True)


def _from_mapping(spec: Mapping[str, Any], port: InputPort) -> Preprocess:
    for key in spec:
        if key not in _KEYS:
            raise InputError(f"preprocess: {key!r} is unknown. {nearest(str(key), _KEYS)}")
    options: dict[str, Any] = {"channels": natural_channels(port)}
    name = str(spec.get("name", "custom"))
    if name in PRESETS:
        options |= PRESETS[name]
    elif name != "custom":
        raise InputError(
            f"preprocess={name!r} is no preset. {nearest(name, PRESETS)} "
            f"Presets are {', '.join(PRESETS)}."
        )
    elif "mean" in spec or "std" in spec:
        mean, std = _numbers("mean", spec.get("mean", 0)), _numbers("std", spec.get("std", 1))
        on_unit_scale = max(map(abs, mean)) <= 1.5 and max(std) <= 1.5
        options["scale"] = 1 / 255 if on_unit_scale else 1.0
    options |= {key: value for key, value in spec.items() if key != "name"}
    changed = name != "custom" and spec.keys() & {"mean", "std", "scale", "channels", "standardise"}
    return Preprocess("custom" if changed else name, **options)


def _fitted(chosen: Preprocess, port: InputPort, default: int | None) -> Preprocess:
    """Check a preprocessing against an input and take the size from it."""
    takes, count = port.shape[1], _COUNTS.get(chosen.channels)
    if None not in (takes, count) and takes != count:
        raise InputError(
            f"preprocess ({chosen.name}) gives {count} channels ({chosen.channels}), but "
            f"{described(port)}. Pass preprocess={{'channels': {natural_channels(port)!r}}} "
            "with mean and std to match."
        )
    for key in ("mean", "std"):
        given = len(getattr(chosen, key))
        if takes is not None and given not in (1, takes):
            raise InputError(f"preprocess: {key} has {given} values, but {described(port)}.")
    if not size_fits(chosen.size, port):
        raise InputError(f"preprocess: size={chosen.size}, but {described(port)}.")
    height, width = port.shape[2:]
    if chosen.size is None and (height or width or default):
        side = default or _DEFAULT_SIZE
        return replace(chosen, size=(height or side, width or side))
    return chosen


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in np.ravel(np.asarray(as_array(value), float)))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not np.isfinite(numbers).all():
        raise InputError(f"preprocess: {key}={value!r} must be a number or one per channel.")
    return numbers


def _size(value: Any) -> Size | None:
    if value is None:
        return None
    try:
        sides = (value, value) if np.ndim(value) == 0 else tuple(value)
        height, width = (int(side) for side in sides)
        exact = (height, width) == sides and min(height, width) > 0
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise InputError(
            f"preprocess: size={value!r} must be (height, width) in pixels, or one number."
        )
    return height, width

"""From whatever a user holds to the arrays that a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pellucid.errors import ImageError, InputError, nearest
from pellucid.images.ports import Array, InputPort, shape_fits, shown_shape
from pellucid.images.preprocessing import Preprocess, Preprocessing
from pellucid.images.reading import as_array, display_picture, read_image
from pellucid.images.resampling import resize_map

__all__ = ["Prepared", "prepare"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Prepared:
    """Samples ready for the network, with the pictures to show them by.

    Attributes
    ----------
    batch : one float32 array per input, `(N, C, *spatial)`.
    pictures : per sample the picture in its own size, `(H, W, 3)` uint8, or None where the
        input is none.
    single : whether one sample was given, not a list or batch of them.
    preprocess : what made the batch of the pictures, or None when the caller gave it ready.
    """

    batch: tuple[Array, ...]
    pictures: list[Picture | None]
    single: bool
    preprocess: Preprocessing | None

    def __len__(self) -> int:
        return len(self.batch[0])

    def to_image(self, heatmap: Any, sample: int = 0) -> Array:
        """Carry a map `(h, w)` over the network's input onto the sample's picture `(H, W)`.

        A sample without a picture keeps the map's own grid.
        """
        picture = self.pictures[sample]
        if picture is None:
            return np.asarray(heatmap, np.float32)
        size = (picture.shape[0], picture.shape[1])
        if self.preprocess is None:
            return resize_map(heatmap, size)
        return self.preprocess.to_image(heatmap, size)


def prepare(
    images: Any, ports: Iterable[InputPort], preprocess: Preprocessing | None = None
) -> Prepared:
    """Turn what a user holds into a batch.

    Parameters
    ----------
    images : for each input one of

        - a picture, or a list of pictures: a path, a PIL image, an integer array `(H, W)` or
          `(H, W, C)`; an integer array `(N, H, W, C)` is a list. They go through `preprocess`.
        - floats in the model's own layout, with or without the batch axis: taken as already
          preprocessed. Tensors of any framework count as arrays.
        - for an input that is no picture, numbers of any type in the model's own layout.

        A model with several inputs takes a tuple with one entry per input, a mapping by input
        name, or a list of such tuples or mappings, one per sample.
    ports : the network's inputs.
    preprocess : how pictures become input; None for a guess.

    Returns
    -------
    prepared : the batch, channels first, and the pictures.

    Raises
    ------
    ImageError : a picture cannot be read or does not suit the input.
    InputError : something does not fit the inputs; the message says what was expected.

    Examples
    --------
    >>> from pellucid.adapters.base import Port
    >>> grey = np.zeros((28, 28), np.uint8)
    >>> prepare(grey, [Port("input", (None, 1, 28, 28))]).batch[0].shape
    (1, 1, 28, 28)
    """
    ports = tuple(ports)
    parts = [
        _one_input(entry, port, preprocess)
        for entry, port in zip(_per_input(images, ports), ports, strict=True)
    ]
    counts = [len(part.batch) for part in parts]
    if len(set(counts)) != 1:
        raise InputError(
            f"The inputs differ in the number of samples: "
            f"{', '.join(f'{p.name} has {c}' for p, c in zip(ports, counts, strict=True))}."
        )
    shown = next((part for part in parts if any(p is not None for p in part.pictures)), parts[0])
    return Prepared(
        tuple(part.batch for part in parts),
        shown.pictures,
        any(part.single for part in parts),
        shown.preprocess,
    )


@dataclass(frozen=True)
class _Part:
    """What one input gets."""

    batch: Array
    pictures: list[Picture | None]
    single: bool
    preprocess: Preprocessing | None


# ---- several inputs --------------------------------------------------------------------------


def _per_input(images: Any, ports: tuple[InputPort, ...]) -> Sequence[Any]:
    if isinstance(images, Mapping):
        return _by_name(images, ports)
    if len(ports) == 1:
        return [images]
    if isinstance(images, list) and images:
        if all(isinstance(sample, Mapping) for sample in images):
            images = [tuple(_by_name(sample, ports)) for sample in images]
        if all(isinstance(sample, tuple) and len(sample) == len(ports) for sample in images):
            return [list(entries) for entries in zip(*images, strict=True)]
    if isinstance(images, tuple | list) and len(images) == len(ports):
        return images
    names = ", ".join(port.own_name or port.name for port in ports)
    raise InputError(
        f"The model takes {len(ports)} inputs ({names}): give a tuple with one entry for each, a "
        f"mapping by name, or a list of such tuples; this is {_described(images)}."
    )


def _by_name(images: Mapping[Any, Any], ports: tuple[InputPort, ...]) -> list[Any]:
    known = [port.own_name or port.name for port in ports]
    names = {port.own_name: port.name for port in ports if port.own_name}
    given = {names.get(key, key): value for key, value in images.items()}
    for key in given:
        if key not in [port.name for port in ports]:
            raise InputError(f"The model has no input {key!r}. {nearest(str(key), known)}")
    for port, name in zip(ports, known, strict=True):
        if port.name not in given:
            raise InputError(f"The input {name!r} is missing: the model takes {', '.join(known)}.")
    return [given[port.name] for port in ports]


# ---- one input -------------------------------------------------------------------------------


def _one_input(value: Any, port: InputPort, preprocess: Preprocessing | None) -> _Part:
    value = as_array(value)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Number):
            value = np.asarray(value)
        else:
            return _several(value, port, preprocess)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise InputError(
                f"The model's {port.name} takes numbers; this array holds {value.dtype}."
            )
        if not value.size:
            raise InputError(f"The array for {port.name} is empty: its shape is {value.shape}.")
        if value.dtype.kind == "f" or len(port.shape) != 4:
            return _ready(value, port, preprocess)
        chosen = _chosen(preprocess, port)
        pictures = _split(value, chosen)
        if pictures is None:
            return _from_picture(value, port, chosen)
        return _joined([_from_picture(p, port, chosen) for p in pictures], port)
    if isinstance(value, Image.Image | str | os.PathLike) or hasattr(value, "read"):
        return _from_picture(value, port, _chosen(preprocess, port))
    raise InputError(
        f"Expected a picture (path, PIL image, array H x W x C), a list of them, or floats of "
        f"shape {_batch_shape(port)}; this is {_described(value)}."
    )


def _several(values: Sequence[Any], port: InputPort, preprocess: Preprocessing | None) -> _Part:
    if not values:
        raise InputError("The list of images is empty.")
    return _joined([_one_input(value, port, preprocess) for value in values], port)


def _joined(parts: list[_Part], port: InputPort) -> _Part:
    shapes = list(dict.fromkeys(part.batch.shape[1:] for part in parts))
    if len(shapes) > 1:
        raise InputError(
            f"The samples for {port.name} differ in shape: {', '.join(map(str, shapes[:4]))}. "
            "Give one size for all, preprocess={'size': (224, 224)}."
        )
    pictures = [picture for part in parts for picture in part.pictures]
    used = next((part.preprocess for part in parts if part.preprocess is not None), None)
    return _Part(np.concatenate([part.batch for part in parts]), pictures, False, used)


def _chosen(preprocess: Preprocessing | None, port: InputPort) -> Preprocessing:
    if preprocess is None:
        preprocess = Preprocess.of(None, port)
    if len(port.shape) == 4 or not isinstance(preprocess, Preprocess):
        return preprocess.for_port(port)
    raise InputError(
        f"The model's {port.name} takes no picture but numbers of shape {_batch_shape(port)}: "
        "give an array, or a function as preprocess= that makes one of a picture."
    )


def _split(value: NDArray[Any], preprocess: Preprocessing) -> list[NDArray[Any]] | None:
    """Split an integer array into its pictures; None if it is one picture."""
    if value.ndim == 4:
        return list(value)
    if value.ndim == 3 and preprocess.channels == "grey" and value.shape[-1] not in (1, 3, 4):
        return list(value)  # (N, H, W): a grey network has no use for so many channels
    if value.ndim in (2, 3):
        return None
    raise InputError(
        f"An integer array holds a picture, (H, W) or (H, W, C), or pictures, (N, H, W, C); this "
        f"one has shape {value.shape}."
    )


def _from_picture(value: Any, port: InputPort, preprocess: Preprocessing) -> _Part:
    takes = port.shape[1]
    picture = read_image(value, keep_alpha=preprocess.channels == "any" and takes == 4)
    if picture.shape[-1] not in (1, 3, 4) and picture.shape[0] in (1, 3):
        raise ImageError(
            f"The picture has shape {picture.shape}, channels first: pictures are H x W x C, "
            "transpose it to (1, 2, 0)."
        )
    sample = preprocess(picture)
    if takes is not None and len(sample) != takes:
        raise ImageError(
            f"The picture has {len(sample)} channels; the model's {port.name} takes {takes}."
        )
    return _Part(sample[None], [display_picture(picture)], True, preprocess)


def _ready(array: NDArray[Any], port: InputPort, preprocess: Preprocessing | None) -> _Part:
    """Take an array in the model's own layout as it is."""
    single = array.ndim == len(port.shape) - 1
    batch = array[None] if single else array
    if not shape_fits(batch.shape, port.own_shape):
        advice = (
            " To have pictures resized and normalised, give them as uint8."
            if len(port.shape) == 4
            else ""
        )
        raise InputError(
            f"The model's {port.name} takes floats of shape {_batch_shape(port)}; this array has "
            f"shape {array.shape}.{advice}"
        )
    batch = port.channels_first(batch.astype(np.float32, copy=False))
    return _Part(batch, [_shown(sample, port, preprocess) for sample in batch], single, None)


def _shown(sample: Array, port: InputPort, preprocess: Preprocessing | None) -> Picture | None:
    """Make a picture of a ready sample (C, h, w): preprocessing undone, or else min-max."""
    if sample.ndim != 3 or len(sample) not in (1, 3):
        return None
    if preprocess is not None and not preprocess.assumed:
        with suppress(InputError):  # a second input that this preprocessing does not suit
            picture = preprocess.for_port(port).picture(sample)
            if picture is not None:
                return picture
    low, high = np.nanmin(sample), np.nanmax(sample)
    scaled = (sample - low) / max(high - low, np.float32(1e-12)) * 255
    return display_picture(np.nan_to_num(scaled.transpose(1, 2, 0)))  # (C, h, w) -> (h, w, C)


def _batch_shape(port: InputPort) -> str:
    return f"{shown_shape(port.own_shape, batch=True)} in the model's own layout"


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return f"of type {type(value).__name__}" + (f" and shape {tuple(shape)}" if shape else "")

"""Perturbed copies of an image: by superpixels, by windows, by smooth masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.methods.perturbation.details import Labels

__all__ = [
    "Codes",
    "Composer",
    "HiddenBoxes",
    "HiddenSegments",
    "Pictures",
    "SmoothMasks",
    "digest",
]

Codes = NDArray[Any]


class Composer(Protocol):
    """Writes perturbed copies of an image."""

    @property
    def key(self) -> bytes:
        """Digest of everything but the codes that the copies follow from."""

    def __call__(self, codes: Codes, copies: Array, /) -> None:
        """Fill `copies`, `(n, C, *spatial)`, as `codes`, `(n, ...)`, say.

        The copies lie in memory without gaps, their channels first or last.
        """


@dataclass(frozen=True, eq=False)
class HiddenSegments:
    """Superpixels that stay or are replaced.

    A code is `(K,)`: True keeps a superpixel and False replaces it; numbers between 0 and 1 mix.

    Attributes
    ----------
    image, replacement : `(C, *spatial)`.
    segments : `(*spatial)`, 0 to K - 1.
    """

    image: Array
    replacement: Array
    segments: Labels

    @cached_property
    def key(self) -> bytes:
        """Digest of replacement and superpixels."""
        return digest(self.replacement, self.segments)

    @cached_property
    def _runs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Superpixels of the runs of pixels that lie side by side, and how long those are."""
        labels = self.segments.ravel()
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        return labels[starts].astype(np.intp), np.diff(starts, append=labels.size)

    @cached_property
    def _first(self) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
        """Lengths of the runs, and bits of the image and of what changes, channels first."""
        image, replacement = (_bits(array) for array in (self.image, self.replacement))
        return self._runs[1], image, image ^ replacement

    @cached_property
    def _last(self) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
        """The same for copies that lie in memory with the channels last."""
        lengths, image, changed = self._first
        return lengths * len(image), image.T.reshape(1, -1), changed.T.reshape(1, -1)

    def __call__(self, codes: Codes, copies: Array) -> None:
        """Copy the image, and the replacement over what is hidden.

        Done on the bits, without a branch for every pixel, which is two to four times as fast. The
        copy of a mask's complement is the mask's, with everything changed.
        """
        if codes.dtype == np.bool_:
            last = not copies.flags.c_contiguous
            lengths, image, changed = self._last if last else self._first
            laid_out = np.moveaxis(copies, 1, -1) if last else copies
            written = laid_out.view(np.int32).reshape(len(codes), *image.shape)
            paired = len(codes) % 2 == 0 and bool((codes[::2] ^ codes[1::2]).all())
            step = 2 if paired else 1
            every_bit = -(~codes[::step]).astype(np.int32)  # or none
            hidden = np.repeat(every_bit[:, self._runs[0]], lengths, axis=1)
            np.bitwise_and(hidden[:, None], changed, out=written[::step])
            np.bitwise_xor(written[::step], image, out=written[::step])
            if paired:
                np.bitwise_xor(written[::2], changed, out=written[1::2])
            return
        kept = np.take(codes.astype(np.float32), self.segments, axis=1)[:, None]
        np.multiply(kept, self.image - self.replacement, out=copies)
        copies += self.replacement


@dataclass(frozen=True, eq=False)
class Pictures:
    """Superpixels of the picture itself, which then goes through the preprocessing.

    This is what the `lime` package does. It costs a preprocessing for every copy, so that it is
    used only to give that package's numbers where the network's input is not the picture's size.

    Attributes
    ----------
    picture, replacement : `(H, W, C)`, of the same type.
    segments : `(H, W)`, 0 to K - 1.
    prepare : from a picture to the network's input, `(C, h, w)`.
    """

    picture: NDArray[np.generic]
    replacement: NDArray[np.generic]
    segments: Labels
    prepare: Callable[[NDArray[np.generic]], Array]

    @cached_property
    def key(self) -> bytes:
        """Digest of picture, replacement and superpixels."""
        return digest(self.picture, self.replacement, self.segments)

    def __call__(self, codes: Codes, copies: Array) -> None:
        """Prepare a picture for every code."""
        for code, copy in zip(codes, copies, strict=True):
            kept = code[self.segments][..., None]
            copy[...] = self.prepare(np.where(kept, self.picture, self.replacement))


@dataclass(frozen=True, eq=False)
class HiddenBoxes:
    """Windows that are replaced, all else stays.

    A code is `(2, S)`: first and last-but-one position along each of the S axes.
    """

    image: Array
    replacement: Array

    @cached_property
    def key(self) -> bytes:
        """Digest of the replacement."""
        return b"boxes" + digest(self.replacement)

    def __call__(self, codes: Codes, copies: Array) -> None:
        """Copy the image, and the replacement into each window."""
        np.copyto(copies, self.image)
        for copy, (start, stop) in zip(copies, codes, strict=True):
            box = (slice(None), *map(slice, start, stop))
            copy[box] = self.replacement[box]


@dataclass(frozen=True, eq=False)
class SmoothMasks:
    """Masks in [0, 1] over the image: a code is whatever `masks` turns into `(n, *spatial)`.

    Attributes
    ----------
    image, replacement : `(C, *spatial)`.
    masks : from codes to masks.
    kind : all that the masks follow from besides the codes.
    """

    image: Array
    replacement: Array
    masks: Callable[[Codes], Array]
    kind: str

    @cached_property
    def key(self) -> bytes:
        """Digest of the replacement and the kind of masks."""
        return self.kind.encode() + digest(self.replacement)

    def __call__(self, codes: Codes, copies: Array) -> None:
        """Mix image and replacement."""
        np.multiply(self.masks(codes)[:, None], self.image - self.replacement, out=copies)
        copies += self.replacement


def _bits(array: Array) -> NDArray[np.int32]:
    """View channels, `(C, *spatial)`, as whole numbers of the same bits, `(C, pixels)`."""
    return np.ascontiguousarray(array, np.float32).view(np.int32).reshape(len(array), -1)


def digest(*arrays: NDArray[Any]) -> bytes:
    """Digest arrays, for the key of a composer."""
    total = blake2b(digest_size=16)
    for array in arrays:
        total.update(str((array.shape, array.dtype)).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.digest()

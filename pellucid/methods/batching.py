"""Many forward passes within a given amount of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pellucid.adapters.base import Adapter, Array
from pellucid.errors import MethodError

__all__ = ["MEMORY", "chunks", "rows_within"]

MEMORY = 128 * 2**20  # bytes; more makes no network faster on a CPU
_ALIVE = 3  # tensors of the largest size that are alive at a time: in, out, and one around them


def rows_within(model: Adapter, x: Array, memory: int, after: str | None = None) -> int:
    """Return how many rows may go through the network at a time.

    Parameters
    ----------
    x : the batch that is explained, `(N, C, *spatial)`.
    memory : bytes for the activations and the inputs of a pass; the network itself does not count.
    after : only the layers behind this one are computed for each row.

    Returns
    -------
    rows : at least 1; an estimate from the shapes of the layers.
    """
    if not isinstance(memory, int | np.integer) or isinstance(memory, bool) or memory < 1:
        raise MethodError(f"memory={memory!r}: a whole number of bytes is wanted, such as 2**28.")
    layers = list(model.layers) if model.framework != "function" else []
    if after is not None:
        names = [layer.name for layer in layers]
        layers = layers[names.index(after) :] if after in names else layers
    first = math.prod(x.shape[1:])
    largest = max([first, *(_size(layer.shape[1:], x.shape[2:]) for layer in layers)])
    return max(1, int(memory) // (4 * (_ALIVE * largest + 2 * first)))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _size(shape: tuple[int | None, ...], spatial: tuple[int, ...]) -> int:
    """Count the numbers of a layer; an extent that is not known is at most the input's."""
    return math.prod(size or max(spatial, default=1) for size in shape)

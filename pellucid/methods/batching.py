"""Many passes through a network within a given amount of memory, with word of how far they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from pellucid.adapters.base import Adapter, Array, Layer
from pellucid.errors import MethodError

__all__ = [
    "MEMORY",
    "MEMORY_OF_GRADIENTS",
    "chunks",
    "gradient_rows",
    "prediction_rows",
    "rows_within",
    "watched",
]

# Bytes. PyTorch gives tensors of more than about 16 MiB back to the system after each use and pays
# for their pages anew every time: ResNet-50 takes 33 ms per row at 4 rows, 40 at 12,
# EfficientNet-Lite0 13 ms at 4 and 24 at 32.
MEMORY = 48 * 2**20
MEMORY_OF_GRADIENTS = 512 * 2**20
# For predictions by each engine. onnxruntime keeps its memory, but where activations outgrow the
# processor's caches it may be slower: EfficientNet-Lite0 took 3.4, 3.2 and 3.2 ms per row at 3, 4
# and 8 rows, and an hour later, on the same shared machine, 3.6, 3.7 and 4.1. This allows 4.
_MEMORY = {"onnx": 64 * 2**20, "native": MEMORY}
# Rows of predictions at a time: onnxruntime is slower from 32 on, frameworks gain up to 64, since
# every call costs them a millisecond or two.
_MOST_ROWS = {"onnx": 16, "native": 64}
_ALIVE = 3  # tensors of the largest size that are alive at a time: in, out, and one around them

Watcher = Callable[[int, int], None]  # called with the passes done and to do
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def rows_within(model: Adapter, x: Array, memory: int, after: str | None = None) -> int:
    """Return how many rows may go forward through the network at a time.

    Parameters
    ----------
    x : the batch that is explained, `(N, C, *spatial)`.
    memory : bytes for the activations and the inputs of a pass; the network itself does not count.
    after : only the layers behind this one are computed for each row.

    Returns
    -------
    rows : at least 1; an estimate from the shapes of the layers.
    """
    sizes = [_size(layer.shape[1:], x.shape[2:]) for layer in _after(model, after)]
    # Where only a layer is replaced, the image goes in as a single row.
    first = math.prod(x.shape[1:]) if after is None else 1
    return _rows(memory, _ALIVE * max([first, *sizes]) + 2 * first)


def prediction_rows(model: Adapter, x: Array, memory: int | None = None) -> int:
    """Return how many rows are predicted at a time where there are many to predict.

    Parameters
    ----------
    x : the batch that is explained, `(N, C, *spatial)`.
    memory : bytes for the activations and the inputs of a pass; None: what suits the engine.
    """
    given = _MEMORY[model.engine] if memory is None else memory
    return model.fixed_batch or min(_MOST_ROWS[model.engine], rows_within(model, x, given))


def gradient_rows(model: Adapter, x: Array, memory: int) -> int:
    """Return how many rows may go forward and back at a time: all activations are kept."""
    first = math.prod(x.shape[1:])
    kept = (_size(one.shape[1:], x.shape[2:]) for one in model.layers if not one.container)
    return _rows(memory, sum(kept) + 2 * first)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Cut `count` passes into slices of at most `size`, and tell the watcher of each."""
    watcher = _watcher.get()
    for start in range(0, count, size):
        if watcher:
            watcher(start, count)
        yield slice(start, min(start + size, count))
    if watcher:
        watcher(count, count)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call `watcher(done, total)` as passes get done inside the context."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _rows(memory: int, numbers: int) -> int:
    if not isinstance(memory, int | np.integer) or isinstance(memory, bool) or memory < 1:
        raise MethodError(f"memory={memory!r}: a whole number of bytes is wanted, such as 2**28.")
    return max(1, int(memory) // (4 * numbers))


def _after(model: Adapter, name: str | None) -> list[Layer]:
    """List a layer and those that finish after it; all layers where there is no such one."""
    layers = list(model.layers) if model.framework != "function" else []
    names = [layer.name for layer in layers]
    return layers[names.index(name) :] if name in names else layers


def _size(shape: tuple[int | None, ...], spatial: tuple[int, ...]) -> int:
    """Count the numbers of a layer; an extent that is not known is at most the input's."""
    return math.prod(size or max(spatial, default=1) for size in shape)

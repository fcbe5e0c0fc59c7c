"""Images whose score is known in terms of their superpixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SEGMENTS = np.arange(12).reshape(3, 4).repeat(4, 0).repeat(4, 1)  # twelve boxes on 12 x 16


def image(channels: int = 3, seed: int = 0) -> np.ndarray:
    """Draw an image whose superpixels have a mean of zero and a mark of one."""
    pixels = np.random.default_rng(seed).normal(0, 0.1, (*SEGMENTS.shape, channels))
    for k in range(12):
        inside = k == SEGMENTS
        pixels[inside] -= pixels[inside].mean(axis=0)
    pixels[::4, ::4] = 1  # hidden behind zero, a mark is gone
    return pixels.astype(np.float32)


def kept(batch: np.ndarray) -> np.ndarray:
    """Read off which superpixels a batch of such images shows, `(N, 12)` of 0 and 1."""
    return batch[:, ::4, ::4, 0].reshape(len(batch), 12).astype(np.float64)


def network(game: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Make a predict function of a function of the superpixels shown."""

    def predict(batch: np.ndarray) -> np.ndarray:
        return np.asarray(game(kept(batch)))

    return predict

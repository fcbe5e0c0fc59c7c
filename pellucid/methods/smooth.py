"""SmoothGrad over any method: its maps, averaged over noisy copies of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import MethodError
from pellucid.methods.gradient import copies, first_input, positive
from pellucid.methods.objective import Objective

__all__ = ["smoothed"]


def smoothed(
    function: Callable[..., Any],
    model: Adapter,
    x: Batch,
    objective: Objective,
    arguments: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    *,
    smooth: int = 25,
    noise: float = 0.15,
    seed: int = 0,
) -> Any:
    """Average what a method gives over noisy copies of the image.

    Parameters
    ----------
    function : the method; `arguments`, behind the objective, and `options` are its own.
    smooth : how many copies.
    noise : standard deviation of the noise, as a share of the image's range of values.
    seed : governs the noise.

    Source
    ------
    Smilkov et al., "SmoothGrad: removing noise by adding noise", 1706.03825.
    """
    positive("smooth", smooth)
    if not isinstance(noise, int | float) or noise < 0:
        raise MethodError(f"noise={noise!r}: a share of the image's range, such as 0.15.")
    start = first_input(x)
    axes = tuple(range(1, start.ndim))
    spread = start.max(axis=axes, keepdims=True) - start.min(axis=axes, keepdims=True)
    rng = np.random.default_rng(seed)
    objective.settle(x)
    total: list[Array] | None = None
    for _ in range(smooth):
        noisy = start + rng.standard_normal(start.shape, np.float32) * np.float32(noise) * spread
        found = function(model, copies(x, [noisy]), objective, *arguments, **options or {})
        parts = found if isinstance(found, list) else [found]
        total = parts if total is None else [t + p for t, p in zip(total, parts, strict=True)]
    assert total is not None
    means = [np.asarray(part / smooth, np.float32) for part in total]
    objective.details.clear()  # they would be those of the last copy
    return means if isinstance(found, list) else means[0]

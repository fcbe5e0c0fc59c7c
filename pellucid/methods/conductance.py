"""Layer conductance: how much of the score flows through each position of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import MethodError
from pellucid.methods.baselines import Baseline, baselines_of
from pellucid.methods.batching import MEMORY_OF_GRADIENTS, chunks, gradient_rows
from pellucid.methods.gradient import by_copy, copies, first_input, positive
from pellucid.methods.layer_choice import as_grid
from pellucid.methods.objective import Objective

__all__ = ["layer_conductance"]


def layer_conductance(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    baseline: Baseline = "zero",
    steps: int = 50,
    relu: bool = False,
    memory: int = MEMORY_OF_GRADIENTS,
) -> list[Array]:
    """Integrate gradient times change of a layer along the line from a baseline to the image.

    With `y(t)` the layer at `b + t (x - b)`, the map is the sum over channels of the integral of
    `dscore/dy * dy/dt` over t in [0, 1], by the trapezoidal rule. Summed over positions it is
    `score(x) - score(b)` for every layer through which all paths lead.

    Parameters
    ----------
    model, x, objective, layers : see `pellucid.methods.cam.grad_cam`.
    baseline : as for integrated gradients.
    steps : pieces of the line.
    relu : keep only what speaks for the target.
    memory : bytes for the activations of a pass.

    Returns
    -------
    maps : one array `(N, *grid)` per layer.

    Source
    ------
    Dhamdhere et al., "How Important Is a Neuron?", 1805.12233.
    """
    start = first_input(x)
    (origin, *others) = baselines_of(start, baseline)
    if others:
        raise MethodError("Conductance takes one baseline: zero, mean, blurred or an array.")
    objective.settle(x)
    totals: list[Array | float] = [0.0] * len(layers)
    fetch = (*objective.fetch, *layers)
    size = max(1, gradient_rows(model, start, memory) // len(start) - 1)
    for some in chunks(positive("steps", steps), size):
        # One point more than pieces; the last point of a chunk is the first of the next.
        shares = np.arange(some.start, some.stop + 1) / steps
        path = [origin + np.float32(t) * (start - origin) for t in shares]
        values, gradients = model.pullback(copies(x, path), objective, layers, fetch=fetch)
        for place, layer in enumerate(layers):
            y, g = (by_copy(found[layer], len(path)) for found in (values, gradients))
            pieces = (g[1:] + g[:-1]) / 2 * (y[1:] - y[:-1])
            totals[place] = totals[place] + pieces.sum(axis=0)
    maps = []
    for layer, total in zip(layers, totals, strict=True):
        (grid,) = as_grid(model, layer, np.asarray(total, np.float32), size=start.shape[2:])
        cam = grid.sum(axis=1)
        maps.append(np.maximum(cam, 0) if relu else cam)
    return maps

"""Class activation maps from the first singular vector of a layer.

The activations of a layer are a matrix of positions by channels. Its first right singular vector
is the mixture of channels that holds most of it, and the projection on that vector is a map. A
singular vector has no sign of its own, and which one a linear algebra library returns is chance;
here the map correlates positively with the mean of the matrix over the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.methods.layer_choice import as_grid
from pellucid.methods.objective import Objective

__all__ = ["eigen_cam", "eigengrad_cam"]


def eigen_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    centred: bool = False,
) -> list[Array]:
    """Project the activations of a layer on their first right singular vector.

    The map does not depend on the target. Its sign is that with which it correlates positively
    with the mean of the channels.

    Parameters
    ----------
    model, x, objective, layers : see `pellucid.methods.cam.grad_cam`.
    relu : keep only what is positive; of a map that is positive nowhere, what exceeds its
        smallest value.
    centred : take each channel's mean away first, so that the vector is a principal component.

    Returns
    -------
    maps : one array `(N, *grid)` per layer.

    Source
    ------
    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", 2008.00299.
    """
    values = model.run(x, (*objective.fetch, *layers))
    objective(values)
    size = model.batch(x)[0].shape[2:]
    grids = [as_grid(model, layer, values[layer], size=size)[0] for layer in layers]
    return [_projections(grid, relu, centred) for grid in grids]


def eigengrad_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    centred: bool = False,
) -> list[Array]:
    """Project gradient times activation on its first right singular vector.

    Like Eigen-CAM, and it depends on the target. Its sign is that with which it correlates
    positively with the mean over the channels, which is HiResCAM.

    Parameters
    ----------
    model, x, objective, layers, relu, centred : see `eigen_cam`.

    Returns
    -------
    maps : one array `(N, *grid)` per layer.

    Source
    ------
    Gildenblat, pytorch-grad-cam, after 2008.00299.
    """
    fetch = (*objective.fetch, *layers)
    values, gradients = model.pullback(x, objective, layers, fetch=fetch)
    size = model.batch(x)[0].shape[2:]
    maps = []
    for layer in layers:
        activation, gradient = as_grid(model, layer, values[layer], gradients[layer], size=size)
        maps.append(_projections(gradient * activation, relu, centred))
    return maps


def _projections(grids: Array, relu: bool, centred: bool) -> Array:
    made = [_projection(grid, centred) for grid in grids]
    if relu:
        made = [np.maximum(one, 0) if one.max() > 0 else one - one.min() for one in made]
    return np.asarray(np.stack(made), np.float32)


def _projection(grid: Array, centred: bool) -> Array:
    """Project one image's `(C, *grid)`; in float64, by the smaller of its two Gram matrices."""
    matrix = grid.reshape(len(grid), -1).T.astype(np.float64)  # (P, C)
    if centred:
        matrix = matrix - matrix.mean(axis=0)
    positions, channels = matrix.shape
    if positions <= channels:
        squares, vectors = np.linalg.eigh(matrix @ matrix.T)
        projected = vectors[:, -1] * np.sqrt(max(squares[-1], 0))
    else:
        projected = matrix @ np.linalg.eigh(matrix.T @ matrix)[1][:, -1]
    mean = grid.reshape(len(grid), -1).mean(axis=0)
    agreement = (projected - projected.mean()) @ (mean - mean.mean())
    if abs(agreement) <= 1e-6 * np.abs(projected).sum() * np.abs(grid).max():
        agreement = projected.sum()  # a flat map, or a flat mean: then it is positive on the whole
    return np.asarray(projected if agreement >= 0 else -projected).reshape(grid.shape[1:])

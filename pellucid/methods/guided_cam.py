"""Guided Grad-CAM: where of Grad-CAM, times what of guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.methods.cam import grad_cam
from pellucid.methods.gradient import guided_backprop
from pellucid.methods.libraries import mean_of_layers, resized
from pellucid.methods.objective import Objective

__all__ = ["guided_grad_cam"]


def guided_grad_cam(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, nearest: bool = False
) -> Array:
    """Multiply guided backpropagation by Grad-CAM, drawn on the input's grid.

    Parameters
    ----------
    nearest : enlarge Grad-CAM by nearest neighbours, as captum does; otherwise half-pixel linear,
        as the paper's bilinear.

    Returns
    -------
    attribution : `(N, C, *spatial)`, of the first input.

    Source
    ------
    Selvaraju et al., "Grad-CAM", ICCV 2017, 1610.02391, section 3.2.
    """
    guided = guided_backprop(model, x, objective)
    maps = grad_cam(model, x, objective, layers)
    size = guided.shape[2:]
    enlarged = _nearest if nearest else resized
    return guided * enlarged(mean_of_layers(maps, size), size)[:, None]


def _nearest(maps: Array, size: Sequence[int]) -> Array:
    """Draw maps `(N, *grid)` on another grid: every point takes the cell that it starts in."""
    for axis, length in enumerate(size, start=1):
        maps = maps.take(np.arange(length) * maps.shape[axis] // length, axis=axis)
    return maps

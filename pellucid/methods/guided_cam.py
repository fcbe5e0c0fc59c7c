"""Guided Grad-CAM: where of Grad-CAM, times what of guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.methods.cam import grad_cam, mean_of_layers, resized
from pellucid.methods.gradient import guided_backprop
from pellucid.methods.objective import Objective

__all__ = ["guided_grad_cam"]


def guided_grad_cam(model: Adapter, x: Batch, objective: Objective, layers: Sequence[str]) -> Array:
    """Multiply guided backpropagation by Grad-CAM, drawn on the input's grid.

    Returns
    -------
    attribution : `(N, C, *spatial)`, of the first input.

    Source
    ------
    Selvaraju et al., "Grad-CAM", ICCV 2017, 1610.02391, section 3.2. (captum enlarges the map by
    nearest neighbours; here it is half-pixel linear, as the paper's bilinear.)
    """
    guided = guided_backprop(model, x, objective)
    maps = grad_cam(model, x, objective, layers)
    drawn = resized(mean_of_layers(maps, guided.shape[2:]), guided.shape[2:])
    return guided * drawn[:, None]

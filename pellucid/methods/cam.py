"""Class activation maps by gradients.

Source: Selvaraju et al., Grad-CAM, 1610.02391. What the libraries make of such maps is in
`pellucid.methods.libraries`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import MethodError
from pellucid.methods.layer_choice import as_grid
from pellucid.methods.objective import Objective

__all__ = ["grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "xgrad_cam"]

Weigh = Callable[[Array, Array], Array]


def _class_activation_maps(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], relu: bool, weigh: Weigh
) -> list[Array]:
    """Sum weighed channels of each layer, `(N, *grid)`, from one forward and backward pass.

    `weigh` makes the terms of the sum over channels of activation and gradient, `(N, C, *grid)`.
    """
    values, gradients = model.pullback(x, objective, layers, fetch=(*objective.fetch, *layers))
    size = model.batch(x)[0].shape[2:]
    maps = []
    for layer in layers:
        activation, gradient = as_grid(model, layer, values[layer], gradients[layer], size=size)
        cam = weigh(activation, gradient).sum(axis=1)  # (N, C, h, w) -> (N, h, w)
        maps.append(np.maximum(cam, 0) if relu else cam)
    return maps


def _mean(array: Array) -> Array:
    return _over_grid(np.mean, array)


def _sum(array: Array) -> Array:
    return _over_grid(np.sum, array)


def _over_grid(reduce: Callable[..., Array], array: Array) -> Array:
    return reduce(array, axis=tuple(range(2, array.ndim)), keepdims=True)  # (N, C, 1, 1)


def grad_cam(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, relu: bool = True
) -> list[Array]:
    """Weigh the channels of a layer by their mean gradient and add them up.

    With `A` the layer's activation and `g` the gradient of the score at it, the map is
    `relu(sum over c of mean over positions of g_c, times A_c)`.

    Parameters
    ----------
    model : the network.
    x : batch of N images, `(N, C, *spatial)`.
    objective : the score.
    layers : names of layers; all of them share one forward and one backward pass.
    relu : keep only what speaks for the target, as the paper does.

    Returns
    -------
    maps : one array `(N, *grid)` per layer, at the layer's own resolution.

    Raises
    ------
    LayerError : a layer is unknown or has no spatial grid.

    Source
    ------
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, 1610.02391.
    """
    return _class_activation_maps(model, x, objective, layers, relu, lambda a, g: _mean(g) * a)


def grad_cam_plus_plus(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    formula: str = "paper",
) -> list[Array]:
    """Weigh channels by their positive gradients, each with a weight of its own.

    `alpha = g^2 / (2 g^2 + sum(A) g^3)`, zero where the gradient is, and the channel's weight is
    `sum(alpha relu(g))`: the paper's closed form for an exponential of the score, without the
    common factor `exp(score)`, which no scaled map can show.

    Parameters
    ----------
    formula : of the channel's weight, as a library has it: `"paper"`; `"pytorch-grad-cam"` adds
        1e-6 to the denominator; `"tf-keras-vis"` divides alpha by its sum and keeps `exp(score)`;
        `"xplique"` has means in place of both sums; `"torch-cam"` has `alpha = g^2`.

    Source
    ------
    Chattopadhay et al., "Grad-CAM++", WACV 2018, 1710.11063.
    """
    if formula not in _PLUS_PLUS:
        raise MethodError(f"formula={formula!r} is unknown: {', '.join(_PLUS_PLUS)}.")
    maps = _class_activation_maps(
        model, x, objective, layers, relu, lambda a, g: _PLUS_PLUS[formula](a, g) * a
    )
    if formula == "tf-keras-vis":
        factors = np.exp(objective.scores.astype(np.float32))
        maps = [m * factors.reshape(-1, *[1] * (m.ndim - 1)) for m in maps]
    return maps


def _alpha(sums: Array, g: Array, least: float = 1e-12, added: float = 0.0) -> Array:
    """Return `g^2 / (2 g^2 + sums g^3 + added)`, zero where it is none."""
    denominator = 2 * g**2 + sums * g**3 + np.float32(added)
    usable = (g != 0) & (np.abs(denominator) > least)
    alpha = np.where(usable, g**2 / np.where(usable, denominator, 1), 0)
    return np.asarray(alpha, np.float32)


def _shared_out(a: Array, g: Array) -> Array:
    alpha = _alpha(_sum(a), g, 0)
    total = _sum(alpha)
    share = np.asarray(alpha / np.where(total == 0, 1, total), np.float32)
    return _sum(share * np.maximum(g, 0))


_PLUS_PLUS: dict[str, Weigh] = {
    "paper": lambda a, g: _sum(_alpha(_sum(a), g) * np.maximum(g, 0)),
    "pytorch-grad-cam": lambda a, g: _sum(_alpha(_sum(a), g, 0, 1e-6) * np.maximum(g, 0)),
    "tf-keras-vis": _shared_out,
    "xplique": lambda a, g: _mean(_alpha(_mean(a), g, 0) * np.maximum(g, 0)),
    "torch-cam": lambda a, g: _sum(g**2 * np.maximum(g, 0)),
}


def xgrad_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    epsilon: float = 1e-7,
) -> list[Array]:
    """Weigh channels by their gradient, averaged with the activation as weight.

    Parameters
    ----------
    epsilon : added to the sum of a channel before it divides.

    Source
    ------
    Fu et al., "Axiom-based Grad-CAM", BMVC 2020, 2008.02312.
    """

    def weigh(activation: Array, gradient: Array) -> Array:
        share = _sum(gradient * activation) / (_sum(activation) + np.float32(epsilon))
        return share * activation

    return _class_activation_maps(model, x, objective, layers, relu, weigh)


def hires_cam(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, relu: bool = True
) -> list[Array]:
    """Multiply gradient and activation at every position before the channels are summed.

    Source
    ------
    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", 2011.08891.
    """
    return _class_activation_maps(model, x, objective, layers, relu, lambda a, g: g * a)


def layer_cam(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, relu: bool = True
) -> list[Array]:
    """Multiply the positive gradient and the activation at every position.

    Source
    ------
    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps", TIP 2021.
    """
    return _class_activation_maps(
        model, x, objective, layers, relu, lambda a, g: np.maximum(g, 0) * a
    )

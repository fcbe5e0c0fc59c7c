"""Class activation maps by gradients.

Source: Selvaraju et al., Grad-CAM, 1610.02391. How the libraries' numbers differ from the paper's
and from each other is in the table `LIKE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import zoom

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import LayerError
from pellucid.images import resize_map
from pellucid.methods.layer_choice import LayerChoice, as_grid, choose_layer
from pellucid.methods.objective import Objective

__all__ = ["LIKE", "CamStyle", "grad_cam"]


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
    values, gradients = model.pullback(x, objective, layers, fetch=(*objective.fetch, *layers))
    maps = []
    for layer in layers:
        activation, gradient = as_grid(model, layer, values[layer], gradients[layer])
        positions = tuple(range(2, gradient.ndim))
        weights = gradient.mean(axis=positions, keepdims=True)  # (N, C, 1, 1)
        cam = (weights * activation).sum(axis=1)  # (N, C, h, w) -> (N, h, w)
        maps.append(np.maximum(cam, 0) if relu else cam)
    return maps


@dataclass(frozen=True)
class CamStyle:
    """How a library makes its array from the maps.

    Attributes
    ----------
    relu : whether negative values are cut off.
    finish : from maps of several layers and the size of the network's input to the array.
    layer : the layer that the library takes when none is named.
    """

    relu: bool
    finish: Callable[[Sequence[Array], Sequence[int]], Array]
    layer: Callable[[Adapter], LayerChoice] = choose_layer


def mean_of_layers(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Average the maps on the finest grid, each scaled to a maximum of one; one stays raw."""
    return _fused(maps, lambda stack: stack.mean(axis=0))


def maximum_of_layers(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Take the maximum of the maps on the finest grid, each scaled to a maximum of one."""
    return _fused(maps, lambda stack: stack.max(axis=0))


def _fused(maps: Sequence[Array], fuse: Callable[[Array], Array]) -> Array:
    if len(maps) == 1:
        return maps[0]
    finest = max((m.shape[1:] for m in maps), key=np.prod)
    peaks: list[Array] = [_over_positions(np.max, np.abs(m)) for m in maps]
    scaled = [m / np.where(p > 0, p, np.float32(1)) for m, p in zip(maps, peaks, strict=True)]
    return fuse(np.stack([_resized(np.asarray(m, np.float32), finest) for m in scaled]))


def _as_pytorch_grad_cam(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Scale each map to [0, 1], resize it to the input, average the layers, scale again.

    Pictures are resized linearly, volumes by corner-aligned cubic splines.
    """

    def scaled(maps: Array) -> Array:
        shifted = maps - _over_positions(np.min, maps)
        return shifted / (1e-7 + _over_positions(np.max, shifted))

    resized = _resized if len(size) == 2 else partial(_zoomed, order=3)
    drawn = np.stack([resized(scaled(np.maximum(m, 0)), size) for m in maps])
    return scaled(np.maximum(drawn, 0).mean(axis=0))


def _as_tf_keras_vis(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Resize by corner-aligned linear interpolation, then scale to [0, 1]."""
    if len(maps) > 1:
        raise LayerError("tf-keras-vis draws one layer at a time: name one, or leave like= out.")
    drawn = _zoomed(maps[0], size, order=1)
    shifted = drawn - _over_positions(np.min, drawn)
    spread = _over_positions(np.max, drawn) - _over_positions(np.min, drawn)
    return np.asarray(shifted / (spread + 1e-7), np.float32)


def _last_convolution(model: Adapter) -> LayerChoice:
    for layer in reversed(model.layers):
        if layer.kind in ("Conv1D", "Conv2D", "Conv3D"):  # it passes over other convolutions
            return LayerChoice(layer.name, "the last convolution, which tf-keras-vis takes")
    raise LayerError("This model has no convolution, and tf-keras-vis would need one.")


def _over_positions(reduce: Callable[..., Array], maps: Array) -> Array:
    return reduce(maps, axis=tuple(range(1, maps.ndim)), keepdims=True)


def _resized(maps: Array, size: Sequence[int]) -> Array:
    return np.stack([resize_map(m, size) for m in maps])


def _zoomed(maps: Array, size: Sequence[int], order: int) -> Array:
    """Resize by corner-aligned splines."""
    factors = [want / have for want, have in zip(size, maps.shape[1:], strict=True)]
    return np.stack([zoom(m, factors, order=order) for m in maps])


LIKE = {
    "paper": CamStyle(relu=True, finish=mean_of_layers),
    "captum": CamStyle(relu=False, finish=mean_of_layers),
    "pytorch-grad-cam": CamStyle(relu=True, finish=_as_pytorch_grad_cam),
    "tf-keras-vis": CamStyle(relu=True, finish=_as_tf_keras_vis, layer=_last_convolution),
}

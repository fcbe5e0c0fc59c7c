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

__all__ = [
    "LIKE",
    "CamStyle",
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "layer_cam",
    "mean_of_layers",
    "resized",
    "xgrad_cam",
]


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
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, relu: bool = True
) -> list[Array]:
    """Weigh channels by their positive gradients, each with a weight of its own.

    `alpha = g^2 / (2 g^2 + sum(A) g^3)`, zero where the gradient is, and the channel's weight is
    `sum(alpha relu(g))`: the paper's closed form for an exponential of the score, without the
    common factor `exp(score)`, which no scaled map can show.

    Source
    ------
    Chattopadhay et al., "Grad-CAM++", WACV 2018, 1710.11063.
    """

    def weigh(activation: Array, gradient: Array) -> Array:
        square = gradient**2
        denominator = 2 * square + _sum(activation) * square * gradient
        usable = (gradient != 0) & (np.abs(denominator) > 1e-12)
        alpha = np.where(usable, square / np.where(usable, denominator, 1), 0)
        return _sum(alpha * np.maximum(gradient, 0)) * activation

    return _class_activation_maps(model, x, objective, layers, relu, weigh)


def xgrad_cam(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str], *, relu: bool = True
) -> list[Array]:
    """Weigh channels by their gradient, averaged with the activation as weight.

    Source
    ------
    Fu et al., "Axiom-based Grad-CAM", BMVC 2020, 2008.02312.
    """

    def weigh(activation: Array, gradient: Array) -> Array:
        return _sum(gradient * activation) / (_sum(activation) + np.float32(1e-7)) * activation

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


@dataclass(frozen=True)
class CamStyle:
    """How a library makes its array from the maps.

    Attributes
    ----------
    relu : whether negative values are cut off.
    finish : from maps of several layers and the size of the network's input to the array.
    layer : the layer that the library takes when none is named, by the outputs in the score.
    """

    relu: bool
    finish: Callable[[Sequence[Array], Sequence[int]], Array]
    layer: Callable[[Adapter, Sequence[str]], LayerChoice] = choose_layer


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
    return fuse(np.stack([resized(np.asarray(m, np.float32), finest) for m in scaled]))


def _as_pytorch_grad_cam(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Scale each map to [0, 1], resize it to the input, average the layers, scale again.

    Pictures are resized linearly, volumes by corner-aligned cubic splines.
    """

    def scaled(maps: Array) -> Array:
        shifted = maps - _over_positions(np.min, maps)
        return shifted / (1e-7 + _over_positions(np.max, shifted))

    enlarged = resized if len(size) == 2 else partial(_zoomed, order=3)
    drawn = np.stack([enlarged(scaled(np.maximum(m, 0)), size) for m in maps])
    return scaled(np.maximum(drawn, 0).mean(axis=0))


def _as_tf_keras_vis(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Resize by corner-aligned linear interpolation, then scale to [0, 1]."""
    if len(maps) > 1:
        raise LayerError("tf-keras-vis draws one layer at a time: name one, or leave like= out.")
    drawn = _zoomed(maps[0], size, order=1)
    shifted = drawn - _over_positions(np.min, drawn)
    spread = _over_positions(np.max, drawn) - _over_positions(np.min, drawn)
    return np.asarray(shifted / (spread + 1e-7), np.float32)


def _last_convolution(model: Adapter, _outputs: Sequence[str]) -> LayerChoice:
    for layer in reversed(model.layers):
        if layer.kind in ("Conv1D", "Conv2D", "Conv3D"):  # it passes over other convolutions
            return LayerChoice(layer.name, "the last convolution, which tf-keras-vis takes")
    raise LayerError("This model has no convolution, and tf-keras-vis would need one.")


def _over_positions(reduce: Callable[..., Array], maps: Array) -> Array:
    return reduce(maps, axis=tuple(range(1, maps.ndim)), keepdims=True)


def resized(maps: Array, size: Sequence[int]) -> Array:
    """Draw maps `(N, *grid)` on another grid, half-pixel linear."""
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

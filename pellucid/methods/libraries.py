"""How other libraries make the array that they hand out, from what a method gives.

The formulas of a method that differ from its paper's are options of the method itself, see
`pellucid.methods.registry`; here is what comes after: cutting off, scaling, resizing, fusing layers
and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.ndimage import zoom

from pellucid.adapters.base import Adapter, Array
from pellucid.errors import LayerError
from pellucid.images import resize_map
from pellucid.methods.layer_choice import LayerChoice, choose_layer

__all__ = ["Style", "maximum_of_layers", "mean_of_layers", "resized", "style_of"]


@dataclass(frozen=True)
class Style:
    """How a library makes its array.

    Attributes
    ----------
    relu : whether negative values of class activation maps are cut off.
    finish : from maps of several layers and the size of the network's input to the array.
    pixels : from what a pixel method gives, `(N, C, *spatial)`, to the array.
    layer : the layer that the library takes when none is named, by the outputs in the score.
    """

    relu: bool
    finish: Callable[[Sequence[Array], Sequence[int]], Array]
    pixels: Callable[[Array], Array] = lambda attribution: attribution
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
    peaks: list[Array] = [_each(np.max, np.abs(m)) for m in maps]
    scaled = [m / np.where(p > 0, p, np.float32(1)) for m, p in zip(maps, peaks, strict=True)]
    return fuse(np.stack([resized(np.asarray(m, np.float32), finest) for m in scaled]))


def resized(maps: Array, size: Sequence[int]) -> Array:
    """Draw maps `(N, *grid)` on another grid, half-pixel linear."""
    return np.stack([resize_map(m, size) for m in maps])


def _each(reduce: Callable[..., Array], maps: Array) -> Array:
    return reduce(maps, axis=tuple(range(1, maps.ndim)), keepdims=True)


def _one(library: str, maps: Sequence[Array]) -> Array:
    if len(maps) > 1:
        raise LayerError(f"{library} draws one layer at a time: name one, or leave like= out.")
    return maps[0]


def _by_maximum(maps: Array, least: float) -> Array:
    """Subtract the smallest value of each map, and divide by the largest that is left."""
    shifted = maps - _each(np.min, maps)
    return np.asarray(shifted / (_each(np.max, shifted) + least), np.float32)


# ---- pytorch-grad-cam ----------------------------------------------------------------------------


def _as_pytorch_grad_cam(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Scale each map to [0, 1], resize it to the input, average the layers, scale again.

    Pictures are resized linearly, volumes by corner-aligned cubic splines.
    """
    enlarged = resized if len(size) == 2 else partial(_zoomed, order=3)
    drawn = np.stack([enlarged(_by_maximum(np.maximum(m, 0), 1e-7), size) for m in maps])
    return _by_maximum(np.maximum(drawn, 0).mean(axis=0), 1e-7)


# ---- tf-keras-vis --------------------------------------------------------------------------------


def _as_tf_keras_vis(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Resize by corner-aligned linear interpolation, then scale to [0, 1]."""
    return _by_maximum(_zoomed(_one("tf-keras-vis", maps), size, order=1), 1e-7)


def _zoomed(maps: Array, size: Sequence[int], order: int) -> Array:
    """Resize by corner-aligned splines."""
    factors = [want / have for want, have in zip(size, maps.shape[1:], strict=True)]
    return np.stack([zoom(m, factors, order=order) for m in maps])


def _largest_channel(attribution: Array) -> Array:
    return np.asarray(np.abs(attribution).max(axis=1))


def _last_layer(
    library: str, *stems: str, nested: bool
) -> Callable[[Adapter, Sequence[str]], LayerChoice]:
    """Make the choice of the last layer of some kinds, as a library makes it."""
    kinds = {f"{stem}{rank}D" for stem in stems for rank in (1, 2, 3)}

    def choose(model: Adapter, _outputs: Sequence[str]) -> LayerChoice:
        for layer in reversed(model.layers):
            if layer.kind in kinds and (nested or "/" not in layer.name):
                return LayerChoice(layer.name, f"the last convolution, which {library} takes")
        raise LayerError(f"This model has no convolution, and {library} would need one.")

    return choose


# ---- torch-cam -----------------------------------------------------------------------------------


def _as_torch_cam(
    maps: Sequence[Array], size: Sequence[int], *, squash: Callable[[Array], Array] | None = None
) -> Array:
    """Scale each map to [0, 1] on its own grid; of several layers take the maximum."""
    scaled = [_by_maximum(np.maximum(m, 0), 1e-8) for m in maps]
    if len(scaled) == 1:
        return scaled[0]
    finest = [max(lengths) for lengths in zip(*(m.shape[1:] for m in scaled), strict=True)]
    squashed = scaled if squash is None else [squash(m) for m in scaled]
    drawn = np.stack([resized(np.asarray(m, np.float32), finest) for m in squashed])
    return np.asarray(drawn.max(axis=0))


# ---- xplique -------------------------------------------------------------------------------------


def _as_xplique(maps: Sequence[Array], size: Sequence[int]) -> Array:
    """Resize by TensorFlow's cubic convolution, which may go below zero; nothing is scaled."""
    drawn = _one("xplique", maps)
    for axis, length in enumerate(size, start=1):
        weights = _cubic(drawn.shape[axis], length)
        drawn = np.moveaxis(np.tensordot(weights, drawn, (1, axis)), 0, axis)
    return np.asarray(drawn, np.float32)


def _cubic(old: int, new: int) -> Array:
    """Return the weights `(new, old)` of Keys' cubic convolution (a = -1/2), half-pixel.

    Taps outside the map do not count, and TensorFlow looks the kernel up at 1024 places a cell.
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(places)
    share = np.rint((places - below) * 1024) / 1024
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        away, taps = np.abs(share - step), (below + step).astype(int)
        near = (1.5 * away - 2.5) * away**2 + 1
        far = ((-0.5 * away + 2.5) * away - 4) * away + 2
        inside = (taps >= 0) & (taps < old)
        weights[inside.nonzero()[0], taps[inside]] = np.where(away <= 1, near, far)[inside]
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _mean_of_channels(attribution: Array) -> Array:
    return np.asarray(attribution.mean(axis=1))


# ---- all of them ---------------------------------------------------------------------------------

_STYLES = {
    "paper": Style(relu=True, finish=mean_of_layers),
    "captum": Style(relu=False, finish=mean_of_layers),
    "lime": Style(relu=True, finish=mean_of_layers),
    "pytorch-grad-cam": Style(relu=True, finish=_as_pytorch_grad_cam),
    "tf-keras-vis": Style(
        relu=True,
        finish=_as_tf_keras_vis,
        pixels=lambda attribution: _by_maximum(_largest_channel(attribution), 1e-7),
        layer=_last_layer("tf-keras-vis", "Conv", nested=True),  # not transposed or separable ones
    ),
    "torch-cam": Style(relu=True, finish=_as_torch_cam),
    "xplique": Style(
        relu=True,
        finish=_as_xplique,
        pixels=_mean_of_channels,
        layer=_last_layer("xplique", "Conv", "ConvTranspose", "SeparableConv", nested=False),
    ),
}
_OWN = {
    ("torch-cam", "layer-cam"): replace(
        _STYLES["torch-cam"],
        finish=partial(_as_torch_cam, squash=lambda maps: np.tanh(2 * maps)),
    ),
    ("xplique", "saliency"): replace(_STYLES["xplique"], pixels=_largest_channel),
}


def style_of(library: str, method: str) -> Style:
    """Return how a library finishes what a method gives."""
    return _OWN.get((library, method), _STYLES[library])

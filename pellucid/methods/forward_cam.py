"""Class activation maps without gradients: the network is asked, many times.

Each image's many variants go through the network in batches that fit into `memory`. What comes
before the layer in question is not computed again for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import zoom

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import MethodError
from pellucid.graph.placement import Placement, neighbourhoods
from pellucid.images import resize_map
from pellucid.methods.batching import MEMORY, chunks, rows_within
from pellucid.methods.layer_choice import as_grid, placement_of
from pellucid.methods.objective import Objective
from pellucid.methods.threads import one_thread

__all__ = ["ablation_cam", "recipro_cam", "score_cam"]


def score_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    channels: int | None = None,
    corners: bool = False,
    scale_first: bool = False,
    softmax: bool = True,
    memory: int = MEMORY,
) -> list[Array]:
    """Weigh the channels of a layer by the score of the image masked with them.

    A channel, enlarged to the input and scaled to [0, 1], is multiplied with the image; the
    softmax over channels of the scores of these images are the weights.

    Parameters
    ----------
    model : the network.
    x : batch of N images, `(N, C, *spatial)`.
    objective : the score.
    layers : names of layers.
    relu : keep only what speaks for the target, as the paper does.
    channels : look only at so many channels, those that vary most (Faster Score-CAM); None is all.
    corners : enlarge with aligned corners, as some libraries do, rather than aligned halves.
    scale_first : scale a channel to [0, 1] before it is enlarged, which may lose its peaks, rather
        than after.
    softmax : pass the scores through a softmax over the channels, or take them as they are.
    memory : bytes for the activations of a forward pass; the estimate ignores the weights.

    Returns
    -------
    maps : one array `(N, *grid)` per layer.

    Source
    ------
    Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
    Networks", 1910.01279. The paper subtracts the score of an empty image from all scores, which
    the softmax cancels.
    """
    inputs = _inputs(x)
    objective.settle(x)
    values = model.run(x, layers)
    rows = rows_within(model, inputs[0], memory)
    maps = []
    for layer in layers:
        (activation,) = as_grid(model, layer, values[layer], size=inputs[0].shape[2:])
        made = []
        for index, all_channels in enumerate(activation):
            image = [array[index : index + 1] for array in inputs]
            own = all_channels[_most_varied(all_channels, channels)]
            drawn = _scaled(own) if scale_first else own
            scores = _masked_scores(
                model, image, objective, index, drawn, rows, corners, not scale_first
            )
            weights = _softmax(scores) if softmax else scores
            made.append(np.tensordot(weights, own, 1))  # (C,) (C, h, w) -> (h, w)
        maps.append(_finished(made, relu))
    return maps


def _masked_scores(
    model: Adapter,
    image: list[Array],
    objective: Objective,
    index: int,
    activation: Array,
    rows: int,
    corners: bool,
    scaled: bool,
) -> Array:
    """Return the score of the image masked by each channel, scaled or as it is, `(C,)`."""
    flat = activation.reshape(len(activation), -1)
    spread = np.ptp(flat, axis=1)
    scores = np.zeros(len(activation), np.float32)
    # A channel without any variation is an empty mask: one pass answers for all of them.
    varied = np.flatnonzero(spread > 0)
    if len(varied) < len(activation):
        dark = [np.zeros_like(image[0]), *image[1:]]
        scores[:] = objective.variants(model.run(dark, objective.fetch), index)
    size = image[0].shape[2:]
    for some in chunks(len(varied), rows):
        with one_thread():
            masks = _enlarged(activation[varied[some]], size, corners)
        masks = _scaled(masks) if scaled else masks
        masked = image[0] * masks[:, None]
        others = [np.repeat(array, len(masked), axis=0) for array in image[1:]]
        found = model.run([masked, *others], objective.fetch)
        scores[varied[some]] = objective.variants(found, index)
    return scores


def _scaled(maps: Array) -> Array:
    """Scale each map to [0, 1]; one that is constant becomes zero."""
    axes = tuple(range(1, maps.ndim))
    low, high = (f(maps, axis=axes, keepdims=True) for f in (np.min, np.max))
    return np.asarray((maps - low) / np.where(high > low, high - low, 1), np.float32)


def _enlarged(maps: Array, size: Sequence[int], corners: bool) -> Array:
    if not corners:
        return resize_map(maps, (len(maps), *size))
    factors = [1.0, *(want / have for want, have in zip(size, maps.shape[1:], strict=True))]
    return np.asarray(zoom(maps, factors, order=1, mode="nearest"), np.float32)


def _most_varied(activation: Array, count: int | None) -> slice | Array:
    if count is None:
        return slice(None)
    if not isinstance(count, int) or count < 1:
        raise MethodError(f"channels={count!r}: a whole number of at least 1 is wanted.")
    deviation = activation.std(axis=tuple(range(1, activation.ndim)))
    return np.sort(np.argsort(-deviation, kind="stable")[:count])


def ablation_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    relu: bool = True,
    magnitude: bool = True,
    memory: int = MEMORY,
) -> list[Array]:
    """Weigh the channels of a layer by how far the score falls without them.

    `(score - score with the channel set to zero) / |score|`.

    Parameters
    ----------
    model, x, objective, layers, relu, memory : see `score_cam`.
    magnitude : divide by the score's magnitude, so that a negative score does not turn the map
        upside down; the paper, which has positive scores in mind, divides by the score.

    Returns
    -------
    maps : one array `(N, *grid)` per layer.

    Source
    ------
    Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization", WACV 2020.
    """

    def mapped(ask: _Question, own: Array) -> Array:
        placement = ask.placement(own)
        axis, grid = placement.channels, placement.on_grid(own)  # (1, C, h, w)
        per_channel = np.moveaxis(own, axis, 1).reshape(grid.shape[1], -1)
        live = np.flatnonzero(per_channel.any(axis=1))  # to ablate the others changes nothing

        def ablated(some: slice) -> Array:
            variants = np.repeat(own, some.stop - some.start, axis=0)
            np.moveaxis(variants, axis, 1)[np.arange(len(variants)), live[some]] = 0
            return variants

        score = float(ask.scores(lambda _: own, 1)[0])
        weights = np.zeros(grid.shape[1], np.float32)
        weights[live] = score - ask.scores(ablated, len(live))
        weights /= (abs(score) if magnitude else score) or 1
        return np.asarray(np.tensordot(weights, grid[0], 1))

    return _by_image(model, x, objective, layers, memory, mapped, relu)


def recipro_cam(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    *,
    memory: int = MEMORY,
) -> list[Array]:
    """Score the network on what a layer knows of one neighbourhood, for all neighbourhoods.

    At each position the layer's values are multiplied by a kernel of three cells per axis around
    it, 1/16, 1/8, 1/4 in two axes, and zero elsewhere; the map is the score, less its smallest
    value. Tokens that stand for no position are kept.

    Parameters
    ----------
    model, x, objective, layers, memory : see `score_cam`.

    Returns
    -------
    maps : one array `(N, *grid)` per layer, from zero.

    Source
    ------
    Byun and Lee, "Recipro-CAM: Gradient-free reciprocal class activation map", 2209.14074.
    """

    def mapped(ask: _Question, own: Array) -> Array:
        placement = ask.placement(own)

        def near(some: slice) -> Array:
            masks = neighbourhoods(placement.grid, some)  # (P, h, w)
            return np.asarray(own * placement.over(masks, own.shape))

        scores = ask.scores(near, math.prod(placement.grid))
        return np.asarray(scores - scores.min()).reshape(placement.grid)

    return _by_image(model, x, objective, layers, memory, mapped)


@dataclass(frozen=True)
class _Question:
    """How one image scores when a layer has other values."""

    model: Adapter
    image: list[Array]
    objective: Objective
    index: int
    layer: str
    rows: int

    def placement(self, own: Array) -> Placement:
        """Say how the layer's values lie on the image."""
        return placement_of(self.model, self.layer, own.shape, self.image[0].shape[2:])

    def scores(self, variants: Callable[[slice], Array], count: int) -> Array:
        """Return the score of `count` variants of the layer, made by slices, `(count,)`."""
        found = [np.zeros(0, np.float32)]
        for some in chunks(count, self.rows):
            replaced = {self.layer: variants(some)}
            values = self.model.run(self.image, self.objective.fetch, replace=replaced)
            found.append(self.objective.variants(values, self.index))
        return np.concatenate(found)


def _by_image(
    model: Adapter,
    x: Batch,
    objective: Objective,
    layers: Sequence[str],
    memory: int,
    mapped: Callable[[_Question, Array], Array],
    relu: bool = False,
) -> list[Array]:
    """Make the map of each image and layer from the layer's values, `(1, C, h, w)`."""
    inputs = _inputs(x)
    objective.settle(x)
    values = model.run(x, layers)
    maps = []
    for layer in layers:
        rows = rows_within(model, inputs[0], memory, after=layer)
        made = []
        for index in range(len(inputs[0])):
            image = [array[index : index + 1] for array in inputs]
            ask = _Question(model, image, objective, index, layer, rows)
            made.append(mapped(ask, values[layer][index : index + 1]))
        maps.append(_finished(made, relu))
    return maps


def _inputs(x: Batch) -> list[Array]:
    return [np.asarray(array) for array in ([x] if isinstance(x, np.ndarray) else x)]


def _finished(maps: list[Array], relu: bool) -> Array:
    stacked = np.asarray(np.stack(maps), np.float32)
    return np.maximum(stacked, 0) if relu else stacked


def _softmax(scores: Array) -> Array:
    exponents = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(exponents / exponents.sum(), np.float32)

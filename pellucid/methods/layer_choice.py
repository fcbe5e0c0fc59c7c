"""Which layer to look at, and what its positions are on the image.

Class activation maps want the deepest layer that still knows where things are: the last one with
a spatial grid before the head. Pooling that leads into the head counts as head, since it holds
the same activations on a coarser grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.adapters.base import Adapter, Array, Layer
from pellucid.errors import LayerError
from pellucid.graph.kinds import POOLING

__all__ = ["LayerChoice", "as_grid", "choose_layer"]

_MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens


@dataclass(frozen=True)
class LayerChoice:
    """A layer, and the reason in words."""

    name: str
    reason: str


def choose_layer(model: Adapter) -> LayerChoice:
    """Pick the last layer with a spatial grid before the head.

    Of a residual network that is the output of the last block, not the convolution inside it.
    Of a transformer it is the input of the last attention, since after it only the class token
    may still reach the score.

    Raises
    ------
    LayerError : no layer has a spatial grid.
    """
    layers = list(model.layers)
    output = model.outputs[0].shape
    while layers and len(output) > 2 and layers[-1].shape[1:2] == output[1:2]:
        layers.pop()  # the dense output itself and what follows it
    if tokens := _last_mixed_tokens(layers):
        grid = _token_grid(layers, tokens)
        return LayerChoice(tokens.name, f"the last tokens ({_shown(grid)}) that attention mixes")
    last_leaf, found = "", None
    for layer in layers:
        last_leaf = last_leaf if layer.container else layer.kind
        turned = found is not None and layer.kind == "Permute"  # the same values, axes turned
        if _has_grid(layer) and last_leaf not in POOLING and not turned:
            found = layer
    if found is None:
        raise LayerError(
            "No layer of this model has a spatial grid, so no class activation map can be drawn. "
            "Use a method that explains the input itself."
        )
    shape = f"{found.shape[1]} channels on {_shown(found.grid)}"
    return LayerChoice(found.name, f"the last layer with a spatial grid ({shape}) before the head")


def as_grid(model: Adapter, name: str, *arrays: Array) -> tuple[Array, ...]:
    """View values of a layer as `(N, C, *grid)`; tokens lose their class token and get a grid.

    Raises
    ------
    LayerError : the layer has no spatial grid.
    """
    if arrays[0].ndim == 2:
        with_grid = [layer.name for layer in model.layers if _has_grid(layer)]
        raise LayerError(
            f"Layer {name!r} has no spatial grid (its output is {arrays[0].shape[1]} numbers). "
            f"The last layers with one: {', '.join(repr(n) for n in with_grid[-3:]) or 'none'}."
        )
    if arrays[0].ndim > 3 or name == "input":
        return arrays
    layer = model.layer(name)
    if layer.layout != "tokens":
        return arrays
    grid = _token_grid(model.layers, layer)
    if not grid:
        raise LayerError(
            f"The {layer.shape[1]} tokens of layer {name!r} fit no grid of this model."
        )
    count = math.prod(grid)
    # (N, T, C) -> (N, h * w, C) -> (N, C, h, w)
    return tuple(
        a[:, -count:].transpose(0, 2, 1).reshape(len(a), a.shape[2], *grid) for a in arrays
    )


def _has_grid(layer: Layer) -> bool:
    return bool(layer.grid) and any(size is None or size > 1 for size in layer.grid)


def _last_mixed_tokens(layers: Sequence[Layer]) -> Layer | None:
    """Find the normalised tokens that go into the last attention."""
    tokens = [layer for layer in layers if layer.layout == "tokens" and _token_grid(layers, layer)]
    norms = [layer for layer in tokens if layer.kind in ("LayerNorm", "RMSNorm")]
    attention = [i for i, layer in enumerate(layers) if layer.kind == "Attention"]
    if attention:
        before = [layer for layer in norms if layers.index(layer) < attention[-1]]
        return before[-1] if before else None
    # Attention in plain layers: norm, attention, norm, MLP, ..., and one norm before the head.
    return norms[-3] if len(norms) >= 3 else None


def _token_grid(layers: Sequence[Layer], layer: Layer) -> tuple[int, ...]:
    """Find the grid whose cells the tokens are: that of the last spatial layer that fits."""
    count = layer.shape[1]
    for other in reversed(layers):
        if not _has_grid(other) or count is None:
            continue
        grid = tuple(size for size in other.grid if size is not None)
        if len(grid) == len(other.grid) and 0 <= count - math.prod(grid) <= _MOST_EXTRA_TOKENS:
            return grid
    return ()


def _shown(grid: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in grid)

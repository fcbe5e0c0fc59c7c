"""Fills a PyTorch twin with fixed random weights, and its Keras twin with the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

__all__ = ["fill_keras", "fill_torch"]

# The order of Keras's own `get_weights`, by PyTorch's names.
_NORM = ("weight", "bias", "running_mean", "running_var")
_ATTENTION = tuple(
    f"{part}.{array}"
    for part in ("query", "key", "value", "project")
    for array in ("weight", "bias")
)
_ARRAYS = {
    "BatchNormalization": _NORM,
    "LayerNormalization": _NORM[:2],
    "MultiHeadAttention": _ATTENTION,
    "SeparableConv2D": ("depthwise.weight", "pointwise.weight", "pointwise.bias"),
    "Tokens": ("class_token", "positions"),
}


def fill_torch(module: nn.Module, seed: int, gain: float) -> nn.Module:
    """Draw weights that keep activations alive, and statistics that normalisation can't skip."""
    import torch

    rng = np.random.default_rng(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            array = _drawn(rng, name.rpartition(".")[2], tuple(tensor.shape), gain)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(array.astype(np.float32)))
    return module


def _drawn(rng: np.random.Generator, kind: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    if kind == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if kind != "weight":  # biases, running means, tokens
        return rng.normal(0, 0.2, shape)
    if len(shape) == 1:  # the scale of a normalisation
        return gain * rng.uniform(0.5, 1.5, shape)
    inputs = tuple(range(1, len(shape)))
    weight = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    # Rectified inputs have a positive mean, which would leave channels always on or always off.
    return weight - weight.mean(inputs, keepdims=True)


def fill_keras(model: Any, state: Mapping[str, Any], flattened: Mapping[str, Any]) -> Any:
    """Copy the PyTorch weights to the layers of the same path."""
    for path, layer in _leaves(model):
        prefix = path.replace("/", ".")
        own = layer.get_weights()
        names = _ARRAYS.get(type(layer).__name__, ("weight", "bias"))[: len(own)]
        arrays = [state[f"{prefix}.{name}"].numpy() for name in names]
        if prefix in flattened:
            arrays[0] = _channels_last_rows(arrays[0], flattened[prefix])
        layouts = [
            _in_keras_layout(name, array, target.shape, "Depthwise" in type(layer).__name__)
            for name, array, target in zip(names, arrays, own, strict=True)
        ]
        layer.set_weights(layouts)
    return model


def _leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer, f"{prefix}{layer.name}/")
        elif layer.get_weights():
            yield prefix + layer.name, layer


def _channels_last_rows(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    # (out, C * spatial) -> (out, spatial * C)
    return np.moveaxis(weight.reshape(-1, *shape), 1, -1).reshape(len(weight), -1)


def _in_keras_layout(
    name: str, array: np.ndarray, shape: tuple[int, ...], depthwise: bool
) -> np.ndarray:
    if name.endswith("weight") and array.ndim > 1:
        if depthwise or name == "depthwise.weight":  # (C, 1, *spatial) -> (*spatial, C, 1)
            array = np.moveaxis(array, (0, 1), (-2, -1))
        else:  # (out, in, *spatial) -> (*spatial, in, out)
            array = np.moveaxis(array, (1, 0), (-2, -1))
    return array.reshape(shape)  # attention splits its features into heads

"""FullGrad: what the input and what every bias of the network contribute to the score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal, get_args

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import LayerError, MethodError
from pellucid.methods.layer_choice import as_grid
from pellucid.methods.libraries import resized
from pellucid.methods.objective import Objective

__all__ = ["full_grad"]

Scale = Literal["channel", "layer", "none"]
_EPSILON = np.float32(1e-7)


def full_grad(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    scale: Scale = "channel",
    absolute: bool = True,
    merged: bool = True,
    bounded: bool = True,
) -> list[Array]:
    """Add up input times gradient and bias times gradient of all layers.

    A network of rectifiers is linear around an image, so its score is exactly
    `sum(x dscore/dx) + sum over all biases b of sum(b dscore/db)`. The terms that have a place on
    the image are drawn: `psi(x g) + sum over layers and channels of psi(b g)`, where psi takes
    the magnitude, scales it to [0, 1] and resizes it to the image. An activation that stands at
    an upper bound (ReLU6) is such a constant too. Of several inputs the first one is drawn, with
    the biases of what follows from it; those of another tower, the same layers called on another
    image included, count in the sum alone.

    Other functions (GELU, SiLU, attention, products) are not linear there: then the map holds the
    same terms, and they do not sum to the score. How far off they are is
    `details["completeness_delta"]`, zero for rectifiers up to rounding.

    Parameters
    ----------
    model : the network, on the ONNX engine.
    x : batch of N images, `(N, C, *spatial)`.
    objective : the score; where it is no linear function of the logits its linear part at the
        image is explained.
    scale : what psi scales to [0, 1]: `"channel"`, each channel alone, the formula of the paper;
        `"layer"`, the channels of a layer together, as the authors' code does; `"none"`.
    absolute : False keeps the signs, and does not scale: each term is spread over the pixels that
        its cell of the grid stands for, so that the map sums to all that has a place.
    merged : see `pellucid.adapters.base.Adapter.biases`; False counts the biases of a convolution
        and of the normalisation behind it apart, as code that looks for modules does.
    bounded : count activations at an upper bound.

    Returns
    -------
    maps : one array `(N, *spatial)` in a list.

    Source
    ------
    Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization",
    NeurIPS 2019, 1905.00780.
    """
    if scale not in get_args(Scale):
        raise MethodError(f"scale={scale!r} is unknown: {', '.join(get_args(Scale))}.")
    batch, biases = model.batch(x), model.biases(merged=merged)
    bounds = model.bounds() if bounded else {}
    inputs = {
        port.name: array
        for port, array in zip(model.inputs, batch, strict=True)
        if port.dtype.startswith("float")
    }
    fetch = (*bounds, *objective.fetch)
    values, gradients = model.pullback(x, objective, {**inputs, **biases, **bounds}, fetch=fetch)
    size, first = batch[0].shape[2:], model.inputs[0].name
    others = _not_from(model, first) if len(batch) > 1 else set()
    total, drawn = -_linear_part(objective, values), np.zeros((len(batch[0]), *size), np.float32)
    for name, factor in _factors(inputs, biases, bounds, values):
        term = factor * gradients[name]  # (N, C, h, w)
        total += term.reshape(len(term), -1).sum(axis=1, dtype=np.float64)
        if name not in others:
            for grid in _placed(model, name, term, size):
                drawn += _drawn(grid, size, scale, absolute)
    objective.details["completeness_delta"] = total
    return [drawn]


def _not_from(model: Adapter, first: str) -> set[str]:
    """Return what follows from other inputs alone, and these: it has no place on the first one."""
    apart = {name for name, inputs in model.origins().items() if first not in inputs}
    return apart | {port.name for port in model.inputs if port.name != first}


def _factors(
    inputs: Mapping[str, Array],
    biases: Mapping[str, Array],
    bounds: Mapping[str, tuple[float, ...]],
    values: Mapping[str, Array],
) -> Iterator[tuple[str, Array]]:
    """Yield by what each gradient is multiplied; of an activation, where it is a constant."""
    yield from inputs.items()
    yield from biases.items()
    for name, given in bounds.items():
        value = values[name]
        yield name, np.where(np.isin(value, np.asarray(given, value.dtype)), value, 0)


def _linear_part(objective: Objective, values: Mapping[str, Array]) -> Array:
    """Return the score's linear part at the logits, which is the score itself for a class."""
    cotangents = objective.score(values)[1]
    parts = (cotangent * values[name] for name, cotangent in cotangents.items())
    return np.asarray(sum(p.reshape(len(p), -1).sum(axis=1, dtype=np.float64) for p in parts))


def _placed(model: Adapter, name: str, term: Array, size: Sequence[int]) -> Iterator[Array]:
    """Yield a term as `(N, C, *grid)`, or nothing where it lies on no grid of the image."""
    if term.ndim > 2:
        with suppress(LayerError):
            yield from as_grid(model, name, term, size=size)


def _drawn(term: Array, size: Sequence[int], scale: Scale, absolute: bool) -> Array:
    """Return psi of a term, summed over its channels, on the image's grid: `(N, *spatial)`."""
    if not absolute:
        cells = math.prod(term.shape[2:]) / math.prod(size)
        return resized(term.sum(axis=1), size) * np.float32(cells)
    term = np.abs(term)
    if scale != "none":
        axes = tuple(range(2 if scale == "channel" else 1, term.ndim))
        term = term - term.min(axis=axes, keepdims=True)
        term = term / (term.max(axis=axes, keepdims=True) + _EPSILON)
    return resized(term.sum(axis=1), size)  # resizing is linear: once for all channels

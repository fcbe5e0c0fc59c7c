"""FullGrad: what the input and what every bias of the network contribute to the score."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

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
    implicit: bool = True,
) -> list[Array]:
    """Add up input times gradient and bias times gradient of all layers.

    Around an image a network is linear in its input and its biases, so its score is exactly
    `sum(x dscore/dx) + sum over all biases b of sum(b dscore/db)`. The terms that have a place on
    the image are drawn: `psi(x g) + sum over layers and channels of psi(b g)`, where psi takes
    the magnitude, scales it to [0, 1] and resizes it to the image. Of several inputs the first one
    is drawn, with the biases of what follows from it; those of another tower, the same layers
    called on another image included, count in the sum alone.

    A bias is explicit, a constant of a convolution, a dense layer or a normalisation, a position or
    a class token; or implicit, `f(x) - J x` with the Jacobian J at the image, which is what a
    non-linearity adds to its linear part. ReLU and maxima have none. ReLU6 has one where it stands
    at its bound, GELU where it bends, normalisation and attention nearly everywhere. What is done
    to each number of a tensor by itself is one layer: a bias, the BatchNorm and the activation
    behind it, and attention is one, from scores to mixed values.

    Of functions whose implicit bias is not known (a loop of unknown length, sampling at places
    that follow from the image) the terms lack what they add: `details["completeness_delta"]`,
    zero up to rounding for all others.

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
    merged : False draws every bias of a layer by itself, those of a convolution and of the
        normalisation behind it apart, as code that looks for modules does.
    implicit : count what non-linearities add.

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
    batch = model.batch(x)
    biases = [one for one in model.biases() if implicit or not isinstance(one.value, str)]
    inputs = {
        port.name: array
        for port, array in zip(model.inputs, batch, strict=True)
        if port.dtype.startswith("float")
    }
    wrt = dict.fromkeys([*inputs, *(bias.name for bias in biases)])
    computed = dict.fromkeys(bias.value for bias in biases if isinstance(bias.value, str))
    values, gradients = model.pullback(x, objective, wrt, fetch=(*computed, *objective.fetch))
    size, first = batch[0].shape[2:], model.inputs[0].name
    total, grids = -_linear_part(objective, values), dict[tuple[Any, ...], Array]()
    terms: list[tuple[str, Array | str, str, Collection[str]]] = [
        *((name, array, name, (name,)) for name, array in inputs.items()),
        *((bias.name, bias.value, bias.step, bias.inputs) for bias in biases),
    ]
    for number, (name, held, step, sources) in enumerate(terms):
        term = (values[held] if isinstance(held, str) else held) * gradients[name]
        if len(term) != len(total):  # windows or heads stand with the images
            term = term.reshape(len(total), -1, *term.shape[1:])
        total += term.reshape(len(total), -1).sum(axis=1, dtype=np.float64)
        for grid in _placed(model, name, term, size) if first in sources else ():
            key = (step if merged else number, grid.shape)  # (N, C, *grid)
            grids[key] = grids[key] + grid if key in grids else grid
    drawn = np.zeros((len(total), *size), np.float32)
    for grid in grids.values():
        drawn += _drawn(grid, size, scale, absolute)
    objective.details["completeness_delta"] = total
    return [drawn]


def _linear_part(objective: Objective, values: Mapping[str, Array]) -> Array:
    """Return the score's linear part at the logits, which is the score itself for a class."""
    cotangents = objective.score(values)[1]
    parts = (cotangent * values[name] for name, cotangent in cotangents.items())
    return np.asarray(sum(p.reshape(len(p), -1).sum(axis=1, dtype=np.float64) for p in parts))


def _placed(model: Adapter, name: str, term: Array, size: Sequence[int]) -> Iterator[Array]:
    """Yield a term as `(N, C, *grid)`, or nothing where it lies on no grid of the image."""
    if term.ndim > 2:
        with suppress(LayerError):
            for grid in as_grid(model, name, term, size=size, apart=True):
                if grid.ndim == 2 + len(size):  # no view in which rows follow one another
                    yield grid


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

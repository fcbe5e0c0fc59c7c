"""Methods that explain the input itself by the gradient of the score at it.

Each returns an array of the input's own shape, `(N, C, *spatial)`, for the model's first input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Rectifier
from pellucid.errors import MethodError
from pellucid.methods.batching import MEMORY_OF_GRADIENTS, chunks, gradient_rows
from pellucid.methods.objective import Objective

__all__ = [
    "by_copy",
    "copies",
    "deconvnet",
    "first_input",
    "gradient",
    "guided_backprop",
    "input_x_gradient",
    "positive",
    "saliency",
    "smoothgrad",
]


def saliency(model: Adapter, x: Batch, objective: Objective, *, absolute: bool = True) -> Array:
    """Return the gradient of the score at the input, by default its magnitude.

    Source
    ------
    Simonyan et al., "Deep Inside Convolutional Networks", 1312.6034.
    """
    found = gradient(model, x, objective)
    return np.abs(found) if absolute else found


def guided_backprop(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return the gradient, with negative cotangents set to zero at every rectifier.

    Source
    ------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 1412.6806.
    """
    return gradient(model, x, objective, relu="guided")


def deconvnet(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return what the transposed network makes of the score.

    At every rectifier negative cotangents are set to zero and the derivative is not applied.

    Source
    ------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 1311.2901.
    """
    return gradient(model, x, objective, relu="deconv")


def input_x_gradient(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return input times gradient: what each value contributes to a linear score.

    Source
    ------
    Shrikumar et al., "Not Just a Black Box", 1605.01713.
    """
    return first_input(x) * gradient(model, x, objective)


def smoothgrad(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    samples: int = 25,
    noise: float = 0.15,
    unit: Literal["image", "input"] = "image",
    statistic: Literal["mean", "square", "variance"] = "mean",
    absolute: bool | None = None,
    unbiased: bool = False,
    memory: int = MEMORY_OF_GRADIENTS,
    seed: int = 0,
) -> Array:
    """Average saliency over noisy copies of the image.

    Parameters
    ----------
    samples : noisy copies.
    noise : standard deviation of the noise.
    unit : of the noise: `"image"`, the image's range of values; `"input"`, the numbers that the
        network takes.
    statistic : `"mean"` is SmoothGrad, `"square"` SmoothGrad-squared, `"variance"` VarGrad.
    absolute : of magnitudes rather than signed gradients; None: for the mean alone.
    unbiased : divide the variance by one sample less.
    memory : bytes for the activations of a pass.

    Source
    ------
    Smilkov et al., "SmoothGrad: removing noise by adding noise", 1706.03825; Hooker et al.,
    1806.10758 (squared); Adebayo et al., 1810.03307 (variance).
    """
    if statistic not in ("mean", "square", "variance"):
        raise MethodError(f"statistic={statistic!r} is unknown: 'mean', 'square' or 'variance'.")
    if unbiased and positive("samples", samples) < 2:
        raise MethodError("The unbiased variance of one sample is not defined: samples=2 or more.")
    start = first_input(x)
    deviation = np.float32(noise) * _spread(start, unit)
    rng = np.random.default_rng(seed)
    objective.settle(x)
    magnitudes = statistic == "mean" if absolute is None else absolute
    first, second = np.zeros_like(start), np.zeros_like(start)
    at_a_time = max(1, gradient_rows(model, start, memory) // len(start))
    for some in chunks(positive("samples", samples), at_a_time):
        count = some.stop - some.start
        drawn = rng.standard_normal((count, *start.shape), np.float32) * deviation
        found = by_copy(gradient(model, copies(x, list(start + drawn)), objective), count)
        found = np.abs(found) if magnitudes else found
        first += found.sum(axis=0) / samples
        second += (found**2).sum(axis=0) / samples
    if statistic != "variance":
        return first if statistic == "mean" else second
    return (second - first**2) * np.float32(samples / (samples - 1) if unbiased else 1)


def _spread(start: Array, unit: str) -> Array | float:
    """Return what the noise is measured in, `(N, 1, ...)`."""
    if unit == "input":
        return 1.0
    if unit != "image":
        raise MethodError(f"unit={unit!r} is unknown: 'image' or 'input'.")
    axes = tuple(range(1, start.ndim))
    return np.asarray(start.max(axis=axes, keepdims=True) - start.min(axis=axes, keepdims=True))


def gradient(model: Adapter, x: Batch, objective: Objective, relu: Rectifier = "exact") -> Array:
    """Return the gradient of the score at the first input."""
    return model.pullback(x, objective, ["input"], fetch=objective.fetch, relu=relu)[1]["input"]


def first_input(x: Batch) -> Array:
    """Return the input that is explained."""
    return np.asarray(x if isinstance(x, np.ndarray) else next(iter(x)), np.float32)


def copies(x: Batch, variants: Sequence[Array]) -> Batch:
    """Put copies of the first input, one behind the other, beside copies of the others."""
    stacked = np.concatenate(variants)
    others = [] if isinstance(x, np.ndarray) else list(x)[1:]
    return (stacked, *(np.concatenate([np.asarray(o)] * len(variants)) for o in others))


def by_copy(gradient: Array, count: int) -> Array:
    """Separate what belongs to each copy: (T * N, ...) -> (T, N, ...)."""
    return gradient.reshape(count, -1, *gradient.shape[1:])


def positive(name: str, value: int) -> int:
    """Check that an option is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise MethodError(f"{name}={value!r}: a whole number of at least 1 is wanted.")
    return value

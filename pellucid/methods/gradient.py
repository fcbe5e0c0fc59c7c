"""Methods that explain the input itself by the gradient of the score at it.

Each returns an array of the input's own shape, `(N, C, *spatial)`, for the model's first input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from pellucid.adapters.base import Adapter, Array, Batch, Rectifier
from pellucid.errors import MethodError
from pellucid.methods.objective import Objective

__all__ = [
    "Baseline",
    "baseline_of",
    "by_copy",
    "copies",
    "deconvnet",
    "first_input",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "positive",
    "saliency",
    "smoothgrad",
]

Baseline = Literal["zero", "mean", "blurred", "uniform"] | Array
_ROWS = 64  # rows that go through the network at a time


def saliency(model: Adapter, x: Batch, objective: Objective, *, absolute: bool = True) -> Array:
    """Return the gradient of the score at the input, by default its magnitude.

    Source
    ------
    Simonyan et al., "Deep Inside Convolutional Networks", 1312.6034.
    """
    gradient = _gradient(model, x, objective)
    return np.abs(gradient) if absolute else gradient


def guided_backprop(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return the gradient, with negative cotangents set to zero at every rectifier.

    Source
    ------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 1412.6806.
    """
    return _gradient(model, x, objective, relu="guided")


def deconvnet(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return what the transposed network makes of the score.

    At every rectifier negative cotangents are set to zero and the derivative is not applied.

    Source
    ------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 1311.2901.
    """
    return _gradient(model, x, objective, relu="deconv")


def input_x_gradient(model: Adapter, x: Batch, objective: Objective) -> Array:
    """Return input times gradient: what each value contributes to a linear score.

    Source
    ------
    Shrikumar et al., "Not Just a Black Box", 1605.01713.
    """
    return first_input(x) * _gradient(model, x, objective)


def integrated_gradients(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    baseline: Baseline = "zero",
    steps: int = 50,
    rule: Literal["gauss-legendre", "trapezoid"] = "gauss-legendre",
) -> Array:
    """Integrate the gradient along the straight line from a baseline to the input.

    `(x - b) * integral over t in [0, 1] of gradient(b + t (x - b))`. The attributions sum to
    `score(x) - score(b)`, up to the error of the integration rule.

    Parameters
    ----------
    baseline : `"zero"`; `"mean"`, the mean of each channel of the image; `"blurred"`, the image
        blurred by a tenth of its size; `"uniform"`, one colour drawn per image (seed 0); or an
        array of the input's shape, with or without the batch.
    steps : evaluations of the gradient.
    rule : of integration.

    Source
    ------
    Sundararajan et al., "Axiomatic Attribution for Deep Networks", 1703.01365.
    """
    start = first_input(x)
    origin = baseline_of(start, baseline)
    points, weights = _quadrature(rule, steps)
    objective.settle(x)
    total = np.zeros_like(start)
    for some in _chunks(steps, len(start)):
        path = [origin + np.float32(t) * (start - origin) for t in points[some]]
        gradient = _gradient(model, copies(x, path), objective)
        total += np.einsum("t,tn...->n...", weights[some], by_copy(gradient, len(path)))
    return (start - origin) * total


def smoothgrad(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    samples: int = 25,
    noise: float = 0.15,
    statistic: Literal["mean", "square", "variance"] = "mean",
    absolute: bool = True,
    seed: int = 0,
) -> Array:
    """Average saliency over noisy copies of the image.

    Parameters
    ----------
    samples : noisy copies.
    noise : standard deviation of the noise, as a share of the image's range of values.
    statistic : `"mean"` is SmoothGrad, `"square"` SmoothGrad-squared, `"variance"` VarGrad.
    absolute : average magnitudes rather than signed gradients (for the mean).

    Source
    ------
    Smilkov et al., "SmoothGrad: removing noise by adding noise", 1706.03825; Hooker et al.,
    1806.10758 (squared); Adebayo et al., 1810.03307 (variance).
    """
    if statistic not in ("mean", "square", "variance"):
        raise MethodError(f"statistic={statistic!r} is unknown: 'mean', 'square' or 'variance'.")
    start = first_input(x)
    axes = tuple(range(1, start.ndim))
    spread = start.max(axis=axes, keepdims=True) - start.min(axis=axes, keepdims=True)
    rng = np.random.default_rng(seed)
    objective.settle(x)
    first, second = np.zeros_like(start), np.zeros_like(start)
    for some in _chunks(positive("samples", samples), len(start)):
        count = some.stop - some.start
        drawn = rng.standard_normal((count, *start.shape), np.float32) * (noise * spread)
        gradient = _gradient(model, copies(x, list(start + drawn)), objective)
        found = by_copy(gradient, count)
        found = np.abs(found) if statistic == "mean" and absolute else found
        first += found.sum(axis=0) / samples
        second += (found**2).sum(axis=0) / samples
    return {"mean": first, "square": second, "variance": second - first**2}[statistic]


def _gradient(model: Adapter, x: Batch, objective: Objective, relu: Rectifier = "exact") -> Array:
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


def _chunks(count: int, rows: int) -> Iterator[slice]:
    """Cut copies into slices that keep the batch near `_ROWS`."""
    size = max(1, _ROWS // rows)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _quadrature(rule: str, steps: int) -> tuple[Array, Array]:
    """Return points and weights on [0, 1]."""
    positive("steps", steps)
    if rule == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)
    if rule == "trapezoid" and steps > 1:
        shares = np.full(steps, 1 / (steps - 1), np.float32)
        shares[[0, -1]] /= 2
        return np.linspace(0, 1, steps, dtype=np.float32), shares
    raise MethodError(
        f"rule={rule!r} with {steps} steps: take 'gauss-legendre', or 'trapezoid' with two steps "
        "or more."
    )


def baseline_of(start: Array, baseline: Baseline) -> Array:
    """Return the baseline for a batch, `(N, C, *spatial)`."""
    positions = tuple(range(2, start.ndim))
    if not isinstance(baseline, str):
        array = np.asarray(baseline, np.float32)
        if array.shape not in (start.shape, start.shape[1:]):
            raise MethodError(
                f"The baseline has shape {array.shape}, the input {start.shape[1:]} per image."
            )
        return np.broadcast_to(array, start.shape)
    makers: dict[str, Callable[[], Array]] = {
        "zero": lambda: np.zeros_like(start),
        "mean": lambda: start.mean(axis=positions, keepdims=True) + np.zeros_like(start),
        "blurred": lambda: np.asarray(
            gaussian_filter(start, [0, 0, *(size / 10 for size in start.shape[2:])])
        ),
        "uniform": lambda: _uniform(start),
    }
    if baseline not in makers:
        raise MethodError(f"baseline={baseline!r} is unknown: {', '.join(makers)}, or an array.")
    return makers[baseline]()


def _uniform(start: Array) -> Array:
    low = start.min(axis=tuple(range(2, start.ndim)), keepdims=True)
    high = start.max(axis=tuple(range(2, start.ndim)), keepdims=True)
    drawn = np.random.default_rng(0).random(low.shape, np.float32)
    return np.broadcast_to(low + drawn * (high - low), start.shape)


def positive(name: str, value: int) -> int:
    """Check that an option is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise MethodError(f"{name}={value!r}: a whole number of at least 1 is wanted.")
    return value

"""Methods that integrate the gradient along a path from an image that shows nothing.

Whatever the path, what the pixels get sums to the difference of the scores at its ends; how far
the sum is off is the convergence delta, which every explanation by these methods carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from pellucid.adapters.base import Adapter, Array, Batch
from pellucid.errors import MethodError
from pellucid.methods.baselines import Baseline, baselines_of
from pellucid.methods.batching import MEMORY_OF_GRADIENTS, chunks, gradient_rows
from pellucid.methods.gradient import by_copy, copies, first_input, gradient, positive
from pellucid.methods.objective import Objective

__all__ = ["blur_ig", "expected_gradients", "guided_ig", "integrated_gradients"]

Rule = Literal["gauss-legendre", "trapezoid"]


def integrated_gradients(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    baseline: Baseline = "zero",
    steps: int = 50,
    rule: Rule = "gauss-legendre",
    memory: int = MEMORY_OF_GRADIENTS,
    seed: int = 0,
) -> Array:
    """Integrate the gradient along the straight line from a baseline to the input.

    `(x - b) * integral over t in [0, 1] of gradient(b + t (x - b))`. The attributions sum to
    `score(x) - score(b)`, up to the error of the integration rule.

    Parameters
    ----------
    baseline : see `pellucid.methods.baselines.baselines_of`; over several the result is averaged.
    steps : evaluations of the gradient.
    rule : of integration.
    memory : bytes for the activations of a pass.
    seed : governs the baseline `"uniform"`.

    Source
    ------
    Sundararajan et al., "Axiomatic Attribution for Deep Networks", 1703.01365.
    """
    start = first_input(x)
    origins = baselines_of(start, baseline, seed)
    points, weights = _quadrature(rule, steps)
    objective.settle(x)
    size = _copies(model, start, memory)
    result = np.zeros_like(start)
    for origin in origins:
        total = np.zeros_like(start)
        for some in chunks(steps, size):
            path = [origin + np.float32(t) * (start - origin) for t in points[some]]
            found = gradient(model, copies(x, path), objective)
            total += np.einsum("t,tn...->n...", weights[some], by_copy(found, len(path)))
        result += (start - origin) * total / len(origins)
    _report(model, x, objective, origins, result)
    return result


def expected_gradients(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    background: Array | Literal["uniform"] = "uniform",
    samples: int = 100,
    memory: int = MEMORY_OF_GRADIENTS,
    seed: int = 0,
) -> Array:
    """Average `(x - b) * gradient(b + t (x - b))` over baselines b and shares t drawn at random.

    Integrated gradients whose baseline is a whole distribution. The shares are drawn one from
    each of as many equal intervals as there are samples.

    Parameters
    ----------
    background : images `(M, C, *spatial)` to draw baselines from, preprocessed as the input is;
        `"uniform"` draws noise in the range of each channel.
    samples : evaluations of the gradient.

    Source
    ------
    Erion et al., "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients", 1906.10670.
    """
    start, rng = first_input(x), np.random.default_rng(seed)
    shares = (rng.permutation(positive("samples", samples)) + rng.random(samples)) / samples
    objective.settle(x)
    result, ends = np.zeros_like(start), np.zeros(len(start), np.float32)
    for some in chunks(samples, _copies(model, start, memory)):
        origins = [_drawn(start, background, rng) for _ in shares[some]]
        path = [o + np.float32(t) * (start - o) for o, t in zip(origins, shares[some], strict=True)]
        found = by_copy(gradient(model, copies(x, path), objective), len(path))
        result += sum((start - o) * g for o, g in zip(origins, found, strict=True)) / samples
        values = model.run(copies(x, origins), objective.fetch)
        ends += by_copy(objective.rows(values), len(path)).sum(axis=0) / samples
    _report_ends(objective, ends, result)
    return result


def blur_ig(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    steps: int = 50,
    blur: float = 0.2,
    memory: int = MEMORY_OF_GRADIENTS,
) -> Array:
    """Integrate the gradient while the image comes into focus.

    The path are the image's Gaussian blurs, from the strongest to none, so no baseline brings in
    values or edges of its own. Trapezoidal rule over the images of the path.

    Parameters
    ----------
    steps : pieces of the path, of equal steps of the blur's standard deviation.
    blur : largest standard deviation, as a share of the image's longest side.

    Source
    ------
    Xu et al., "Attribution in Scale and Space", 2004.03383.
    """
    start = first_input(x)
    if not 0 < blur <= 10:
        raise MethodError(f"blur={blur!r}: a share of the image's size above 0 is wanted.")
    widths = np.linspace(blur * max(start.shape[2:], default=1), 0, positive("steps", steps) + 1)
    objective.settle(x)
    result = np.zeros_like(start)
    size = _copies(model, start, memory)
    last: tuple[Array, Array] | None = None
    for some in chunks(steps + 1, size):
        path = [_blurred(start, width) for width in widths[some]]
        found = by_copy(gradient(model, copies(x, path), objective), len(path))
        for image, slope in zip(path, found, strict=True):
            if last is not None:
                result += (image - last[0]) * (slope + last[1]) / 2
            last = image, slope
    _report(model, x, objective, [_blurred(start, widths[0])], result)
    return result


def guided_ig(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    baseline: Baseline = "zero",
    steps: int = 100,
    fraction: float = 0.25,
    distance: float = 0.02,
) -> Array:
    """Integrate the gradient along a path that moves first where the gradient is small.

    In each step, the values with the smallest gradients move towards the image until the step's
    share of the distance is covered, so that the noise of steep regions is not collected.

    Parameters
    ----------
    baseline : where the path begins, see `integrated_gradients`; one baseline only.
    steps : evaluations of the gradient.
    fraction : the share of all values that moves at a time.
    distance : how far a value may be ahead of or behind the straight line, as a share of it.

    Source
    ------
    Kapishnikov et al., "Guided Integrated Gradients", 2106.09788.
    """
    start = first_input(x)
    (origin, *others) = baselines_of(start, baseline)
    if others:
        raise MethodError("Guided IG has one path, so one baseline: zero, mean, blurred, an array.")
    if not (0 < fraction <= 1 and 0 < distance <= 1):
        raise MethodError(f"fraction={fraction!r}, distance={distance!r}: between 0 and 1.")
    objective.settle(x)
    points, result = origin.copy(), np.zeros_like(start)
    for some in chunks(positive("steps", steps), 1):
        slopes = gradient(model, copies(x, [points]), objective)
        share = some.stop / steps
        for row, slope in enumerate(slopes):
            moved = _guided_step(points[row], start[row], origin[row], slope, share, fraction,
                                 distance)  # fmt: skip
            result[row] += (moved - points[row]) * slope
            points[row] = moved
    _report(model, x, objective, [origin], result)
    return result


def _guided_step(
    point: Array,
    end: Array,
    origin: Array,
    slope: Array,
    share: float,
    fraction: float,
    distance: float,
) -> Array:
    """Move the values with the smallest slopes until `share` of the whole way is covered."""
    least, most = (np.float32(min(max(share + d, 0), 1)) for d in (-distance, distance))
    whole = np.abs(end - origin)
    covered = np.where(whole > 0, np.abs(point - origin) / np.where(whole > 0, whole, 1), 1)
    covered = np.maximum(covered, least)  # nothing stays further behind than that
    left = float((whole * (1 - covered)).sum(dtype=np.float64)) - float(
        whole.sum(dtype=np.float64) * (1 - share)
    )
    order = np.argsort(np.abs(slope), axis=None, kind="stable")
    order = order[covered.reshape(-1)[order] < most]
    at_a_time = max(1, int(fraction * slope.size))
    flat, lengths = covered.reshape(-1), whole.reshape(-1)
    for begin in range(0, len(order), at_a_time):
        some = order[begin : begin + at_a_time]
        room = float((lengths[some] * (most - flat[some])).sum(dtype=np.float64))
        if left <= 0:
            break
        flat[some] += (most - flat[some]) * np.float32(min(1, left / room) if room > 0 else 1)
        left -= room
    if share == 1:
        return end.copy()
    return np.asarray(origin + flat.reshape(end.shape) * (end - origin), np.float32)


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


def _copies(model: Adapter, start: Array, memory: int) -> int:
    """Return how many copies of the whole batch go through the network at a time."""
    return max(1, gradient_rows(model, start, memory) // len(start))


def _drawn(start: Array, background: Array | str, rng: np.random.Generator) -> Array:
    if isinstance(background, str):
        if background != "uniform":
            raise MethodError(f"background={background!r}: 'uniform', or images (M, C, ...).")
        axes = tuple(range(2, start.ndim))
        low, high = start.min(axis=axes, keepdims=True), start.max(axis=axes, keepdims=True)
        return np.asarray(low + (high - low) * rng.random(start.shape, np.float32))
    images = np.asarray(background, np.float32)
    if images.ndim != start.ndim or images.shape[1:] != start.shape[1:] or not len(images):
        raise MethodError(
            f"The background has shape {images.shape}: (M, {', '.join(map(str, start.shape[1:]))})"
            " is wanted."
        )
    return np.asarray(images[rng.integers(len(images), size=len(start))])


def _blurred(start: Array, width: float) -> Array:
    axes = [0.0, 0.0, *([width] * (start.ndim - 2))]
    return np.asarray(gaussian_filter(start, axes), np.float32) if width > 0 else start


def _report(
    model: Adapter, x: Batch, objective: Objective, origins: Sequence[Array], result: Array
) -> None:
    """Leave the score at the path's beginning, and how far the sum is off."""
    ends = np.zeros(len(result), np.float32)
    for origin in origins:
        values = model.run(copies(x, [origin]), objective.fetch)
        ends += objective.rows(values) / len(origins)
    _report_ends(objective, ends, result)


def _report_ends(objective: Objective, ends: Array, result: Array) -> None:
    total = result.reshape(len(result), -1).sum(axis=1, dtype=np.float64)
    objective.details["baseline_score"] = ends
    objective.details["convergence_delta"] = total - (objective.scores - ends)

"""Numbers about each layer for given images, to paint on a drawing of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pellucid.adapters.base import Adapter, Array
from pellucid.errors import InputError, nearest
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.measuring import layer_times, layer_values
from pellucid.methods import layer_choice
from pellucid.methods.objective import Objective

__all__ = ["MEASURES", "dead_channels", "gradient_energy", "mean_activation", "measure", "time"]

Numbers = dict[str, float]
Batches = tuple[Array, ...]


def measure(model: Adapter, images: Any, what: str, target: Any = None) -> Paint:
    """Measure every layer for some images.

    Parameters
    ----------
    images : as for `pellucid.explain`: paths, pictures, or a batch.
    what : "time", "mean_activation", "dead_channels" or "gradient_energy".
    target : of which score "gradient_energy" is, as for `pellucid.explain`.

    Returns
    -------
    Paint
        `values` by layer, with title and unit; what `graph.draw(path, paint=...)` takes.

    Raises
    ------
    InputError : `what` is unknown.

    Examples
    --------
    >>> model.graph.draw("times.html", paint=pellucid.measure(model, "cat.jpg", "time"))
    ... # doctest: +SKIP
    """
    if what not in MEASURES:
        raise InputError(f"{what!r} is no measure of layers. {nearest(what, MEASURES)}")
    title, unit, combine, function = MEASURES[what]
    batches = model.batch(model.prepare(images).batch)
    options = {"target": target} if what == "gradient_energy" else {}
    return Paint(function(model, batches, **options), title, unit, combine)


def time(model: Adapter, x: Batches) -> Numbers:
    """Return how many milliseconds each layer computes for one image, on one core."""
    seconds = layer_times(model.graph, x)
    return {name: 1e3 * found / len(x[0]) for name, found in seconds.items()}


def mean_activation(model: Adapter, x: Batches) -> Numbers:
    """Return the mean of each layer's absolute values."""
    return {layer.name: float(np.abs(a).mean()) for layer, a in layer_values(model.graph, x)}


def dead_channels(model: Adapter, x: Batches) -> Numbers:
    """Return the share of each layer's channels that are 0 at every position of every image."""
    found = {}
    for layer, a in layer_values(model.graph, x):
        axis = a.ndim - 1 if layer.layout == "tokens" else min(1, a.ndim - 1)
        others = tuple(i for i in range(a.ndim) if i != axis)
        found[layer.name] = float((np.abs(a).max(axis=others) == 0).mean())
    return found


def gradient_energy(model: Adapter, x: Batches, target: Any = None) -> Numbers:
    """Return the sum of squares of the score's gradient at each layer, for one image on average.

    Only layers that the framework names have one; operations that are spelled out in its code
    do not. A layer that the score does not depend on, such as a final softmax, has 0.
    """
    known = {layer.name for layer in model.layers}
    names = [x.name for x in model.graph.layers if x.name in known and not x.is_port]
    return layer_choice.gradient_energy(model, x, Objective(model, target), names)


class _Measure(NamedTuple):
    title: str
    unit: str
    combine: Any
    function: Callable[..., Numbers]


MEASURES = {
    "time": _Measure("measured time for one image on one core", "milliseconds", "sum", time),
    "mean_activation": _Measure("mean absolute activation", "", "mean", mean_activation),
    "dead_channels": _Measure("share of dead channels", "percent", "mean", dead_channels),
    "gradient_energy": _Measure("energy of the score's gradient", "", "mean", gradient_energy),
}

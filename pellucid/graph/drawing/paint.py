"""Numbers as colours: the scale, its legend, and the numbers in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pellucid.errors import InputError
from pellucid.graph.drawing.colours import scaled
from pellucid.graph.layers import LayerGraph

__all__ = ["COUNTS", "Paint", "paint_of"]

COUNTS = {  # of what the graph itself tells: the title and the unit
    "parameters": ("parameters", ""),
    "multiply_adds": ("multiply-adds for one image", ""),
    "activation_bytes": ("bytes of activation for one image", "bytes"),
}
_WIDE = 100.0  # from this ratio of the largest number to the median on, the scale is logarithmic
_DECADES = 4.0  # that a logarithmic scale shows; what is smaller gets the palest colour
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Paint:
    """A number per layer, and how it becomes a colour.

    Attributes
    ----------
    values : by layer; a layer without one stays white.
    title : what the number is, in words.
    unit : in words, or "".
    combine : what a closed group shows of its layers' numbers.
    low, high : ends of the scale.
    logarithmic : whether equal ratios, not equal differences, get equal steps of colour.
    """

    values: Mapping[str, float]
    title: str = ""
    unit: str = ""
    combine: Literal["sum", "mean"] = "mean"
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False

    def over(self, values: Iterable[float]) -> Paint:
        """Return the same with a scale that suits these values.

        It is linear and begins at 0, unless most of the values would look the same on it.
        """
        known = sorted(values)
        positive = [value for value in known if value > 0]
        if not positive or known[0] < 0:
            low, high = (known[0], known[-1]) if known else (0.0, 1.0)
            return replace(self, low=min(low, 0.0), high=high if high > low else low + 1.0)
        high = positive[-1]
        if high / positive[len(positive) // 2] < _WIDE:
            return replace(self, low=0.0, high=high, logarithmic=False)
        low = max(positive[0], high / 10**_DECADES)
        return replace(self, low=low, high=high, logarithmic=True)

    def of(self, layers: Iterable[str]) -> float | None:
        """Return the number of several layers together, None where none of them has one."""
        found = [self.values[name] for name in layers if name in self.values]
        if not found:
            return None
        return sum(found) / (1 if self.combine == "sum" else len(found))

    def fill(self, value: float | None) -> str:
        """Return the colour of a number."""
        return "#ffffff" if value is None else scaled(self.fraction(value))

    def fraction(self, value: float) -> float:
        """Return where on the scale a number lies, from 0 to 1."""
        if not self.logarithmic:
            return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        if value <= self.low:
            return 0.0
        return min(math.log(value / self.low) / math.log(self.high / self.low), 1.0)

    def at(self, fraction: float) -> float:
        """Return the number at a place on the scale."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** fraction)
        return self.low + fraction * (self.high - self.low)

    def shown(self, value: float) -> str:
        """Write a number with its unit."""
        if self.unit == "percent":
            return f"{100 * value:.3g} %"
        return f"{_short(value)} {self.unit}".strip()

    @property
    def caption(self) -> str:
        """What the legend says."""
        return f"{self.title}, logarithmic scale" if self.logarithmic else self.title


def paint_of(graph: LayerGraph, paint: str | Mapping[str, float] | Paint | None) -> Paint | None:
    """Read what a drawing is to be painted by.

    Raises
    ------
    InputError : the name is unknown, or a number is not finite.
    """
    if paint is None:
        return None
    if isinstance(paint, str):
        if paint not in COUNTS:
            raise InputError(
                f"paint={paint!r} is nothing to paint by: {', '.join(COUNTS)}, or a number for "
                "each layer name, such as pellucid.measure(model, image, 'time') gives."
            )
        title, unit = COUNTS[paint]
        values = {x.name: float(getattr(x, paint) or 0) for x in graph.layers if not x.is_port}
        paint = Paint(values, title, unit, "sum")
    elif not isinstance(paint, Paint):
        paint = Paint({name: float(value) for name, value in paint.items()}, "number given")
    for name, value in paint.values.items():
        if not math.isfinite(value):
            raise InputError(f"paint gives layer {name!r} the number {value}.")
    if not any(layer.name in paint.values for layer in graph.layers):
        raise InputError("paint has a number for none of the layers of this graph.")
    return paint.over(paint.values.values())


def _short(value: float) -> str:
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"

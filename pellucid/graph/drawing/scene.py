"""A picture as a list of shapes, which every file format writes in its own way.

Lengths are in points; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

__all__ = ["Anchor", "Curve", "Label", "Polygon", "Rectangle", "Scene", "text_width"]

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Rectangle:
    """A filled box; `key` is the layer that it shows, `title` what hovering tells."""

    x: float
    y: float
    width: float
    height: float
    fill: str = "none"
    stroke: str = "#55555f"
    radius: float = 0.0
    dashed: bool = False
    key: str = ""
    title: str = ""


@dataclass(frozen=True)
class Polygon:
    """A filled outline."""

    points: Sequence[Point]
    fill: str
    stroke: str = "#55555f"
    key: str = ""
    title: str = ""


@dataclass(frozen=True)
class Label:
    """A line of text; (x, y) is its left, middle or right end at mid height."""

    x: float
    y: float
    text: str
    size: float = 10.0
    colour: str = "#1d1d22"
    anchor: Anchor = "start"
    bold: bool = False


@dataclass(frozen=True)
class Curve:
    """A smooth line through points that leaves and arrives vertically; `ends` are layers."""

    points: Sequence[Point]
    stroke: str = "#7d7d88"
    width: float = 1.1
    ends: tuple[str, str] = ("", "")
    arrow: bool = True
    straight: bool = False


Shape = Rectangle | Polygon | Label | Curve


@dataclass
class Scene:
    """Shapes from back to front, and the size of the page."""

    width: float
    height: float
    shapes: list[Shape] = field(default_factory=list)
    title: str = ""

    def add(self, *shapes: Shape) -> None:
        """Put shapes in front."""
        self.shapes.extend(shapes)


@lru_cache(maxsize=8192)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Estimate how wide a line of sans-serif text is."""
    narrow = sum(c in "iljtf.,:;|!' ()[]1" for c in text)
    wide = sum(c in "mwMW%@" for c in text)
    upper = sum(c.isupper() for c in text)
    units = 0.56 * len(text) - 0.24 * narrow + 0.3 * wide + 0.1 * upper
    return units * size * (1.06 if bold else 1.0)

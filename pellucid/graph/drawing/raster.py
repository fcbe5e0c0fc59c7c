"""A scene as PNG or PDF, through matplotlib's renderers.

A picture of a large network has thousands of shapes. As artists they would be laid out one by one
for seconds, so one artist hands all of them to the renderer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from pellucid.graph.drawing.scene import Curve, Label, Point, Polygon, Rectangle, Scene

__all__ = ["save_figure"]

_WIDER = 0.84  # DejaVu Sans is wider than the fonts that SVG viewers take
_MIDDLE = 0.36  # of the font's size: from the baseline to the middle of a line
_CORNER = 0.5523  # control points that make a quarter of a circle
_MOST_PIXELS = 30000  # per side; readers refuse more
_MOST_AREA = 2.5e7  # pixels in all


def save_figure(scene: Scene, path: Path, dpi: float = 144) -> None:
    """Save a scene through matplotlib; the suffix says in which format."""
    from matplotlib.artist import Artist
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Artist):
        """All shapes of a scene."""

        def draw(self, renderer: Any) -> None:
            pen = _Pen(renderer, scene.height)
            for shape in scene.shapes:
                pen.draw(shape)

    area = scene.width * scene.height / 72**2
    dpi = min(dpi, 72 * _MOST_PIXELS / max(scene.width, scene.height), math.sqrt(_MOST_AREA / area))
    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    figure.add_artist(Picture(), clip=False)
    # Flat colours pack well at any level; the usual one takes several times as long.
    packing: Any = {"pil_kwargs": {"compress_level": 1}} if path.suffix.lower() == ".png" else {}
    figure.savefig(path, dpi=dpi, **packing)


class _Pen:
    """Draws shapes with a renderer, whose y grows upwards, in pixels."""

    def __init__(self, renderer: Any, height: float) -> None:
        from matplotlib.transforms import Affine2D

        self.renderer = renderer
        self.height = height
        self.unit = renderer.points_to_pixels(1.0)
        self.place = Affine2D().scale(self.unit, -self.unit).translate(0, height * self.unit)

    def draw(self, shape: Rectangle | Polygon | Label | Curve) -> None:
        if isinstance(shape, Label):
            self._write(shape)
        elif isinstance(shape, Curve):
            self._line(shape)
        elif isinstance(shape, Polygon):
            self._path([*shape.points, shape.points[0]], None, shape.stroke, 0.8, shape.fill)
        else:
            points, codes = _rounded(shape)
            self._path(points, codes, shape.stroke, 0.9, shape.fill, shape.dashed)

    def _path(
        self,
        points: list[Point],
        codes: list[int] | None,
        stroke: str,
        width: float,
        fill: str = "none",
        dashed: bool = False,
    ) -> None:
        from matplotlib.path import Path as Outline

        context = self.renderer.new_gc()  # its lengths are points whatever the resolution
        context.set_linewidth(0.0 if stroke == "none" else width)
        context.set_foreground("#000000" if stroke == "none" else stroke)
        if dashed:
            context.set_dashes(0, [5, 3])
        self.renderer.draw_path(context, Outline(points, codes), self.place, _rgba(fill))
        context.restore()

    def _line(self, curve: Curve) -> None:
        points, codes = [curve.points[0]], [1]
        for point in curve.points[1:]:
            before = points[-1]
            if curve.straight or abs(point[0] - before[0]) < 0.5:
                points.append(point)
                codes.append(2)
            else:
                middle = (before[1] + point[1]) / 2
                points += [(before[0], middle), (point[0], middle), point]
                codes += [4, 4, 4]
        self._path(points, codes, curve.stroke, curve.width)
        if curve.arrow:
            tip = _tip(points[-2], points[-1])
            self._path([*tip, tip[0]], None, "none", 0, curve.stroke)

    def _write(self, label: Label) -> None:
        context = self.renderer.new_gc()
        context.set_foreground(label.colour)
        size = label.size * _WIDER
        x = label.x
        if part := {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]:
            x -= part * size * _unit_width(label.text, label.bold)
        y = label.y + _MIDDLE * size
        if not self.renderer.flipy():
            y = self.height - y
        self.renderer.draw_text(
            context, x * self.unit, y * self.unit, label.text, _font(size, label.bold), 0
        )
        context.restore()


def _rounded(box: Rectangle) -> tuple[list[Point], list[int] | None]:
    """Return the outline of a box: points, and what matplotlib calls codes."""
    x0, y0, x1, y1 = box.x, box.y, box.x + box.width, box.y + box.height
    r = min(box.radius, box.width / 2, box.height / 2)
    if not r:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], None
    k = r * (1 - _CORNER)
    points = [
        (x0 + r, y0), (x1 - r, y0), (x1 - k, y0), (x1, y0 + k), (x1, y0 + r),
        (x1, y1 - r), (x1, y1 - k), (x1 - k, y1), (x1 - r, y1),
        (x0 + r, y1), (x0 + k, y1), (x0, y1 - k), (x0, y1 - r),
        (x0, y0 + r), (x0, y0 + k), (x0 + k, y0), (x0 + r, y0),
    ]  # fmt: skip
    return points, [1, *[2, 4, 4, 4] * 4]


def _tip(before: Point, end: Point) -> list[Point]:
    (x0, y0), (x, y) = before, end
    if abs(y - y0) < 0.5:
        side = 1.0 if x >= x0 else -1.0
        return [(x, y), (x - 5.5 * side, y - 2.4), (x - 5.5 * side, y + 2.4)]
    away = 1.0 if y >= y0 else -1.0
    return [(x, y), (x - 2.4, y - 5.5 * away), (x + 2.4, y - 5.5 * away)]


@lru_cache(maxsize=1024)
def _rgba(colour: str) -> tuple[float, float, float, float] | None:
    from matplotlib.colors import to_rgba

    return None if colour == "none" else to_rgba(colour)


@lru_cache(maxsize=64)
def _font(size: float, bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties

    # DejaVu Sans comes with matplotlib.
    return FontProperties("DejaVu Sans", weight="bold" if bold else "normal", size=size)


@lru_cache(maxsize=8192)
def _unit_width(text: str, bold: bool) -> float:
    """Measure a line of text, per point of the font's size."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(100.0, bold), False)
    return float(width) / 100

"""A scene as PNG or PDF, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.graph.drawing.scene import Curve, Label, Polygon, Rectangle, Scene

__all__ = ["save_figure"]

_WIDER = 0.84  # DejaVu Sans is wider than the fonts that SVG viewers take
_MOST_PIXELS = 30000  # per side; readers refuse more


def save_figure(scene: Scene, path: Path, dpi: float = 144) -> None:
    """Save a scene through matplotlib; the suffix says in which format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi = min(dpi, 72 * _MOST_PIXELS / max(scene.width, scene.height))
    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.axis("off")
    for order, shape in enumerate(scene.shapes):
        _draw(axes, shape, order)
    figure.savefig(path, dpi=dpi)


def _draw(axes: Any, shape: Rectangle | Polygon | Label | Curve, order: int) -> None:
    from matplotlib import patches
    from matplotlib.path import Path as Outline

    if isinstance(shape, Label):
        places = {"start": "left", "middle": "center", "end": "right"}
        axes.text(
            shape.x, shape.y, shape.text.replace("$", r"\$"), fontsize=shape.size * _WIDER,
            color=shape.colour, ha=places[shape.anchor], va="center_baseline",
            fontweight="bold" if shape.bold else "normal", zorder=order,
            family="DejaVu Sans",  # comes with matplotlib
        )  # fmt: skip
    elif isinstance(shape, Curve):
        points, codes = [shape.points[0]], [Outline.MOVETO]
        for point in shape.points[1:]:
            before = points[-1]
            if shape.straight or abs(point[0] - before[0]) < 0.5:
                points.append(point)
                codes.append(Outline.LINETO)
            else:
                middle = (before[1] + point[1]) / 2
                points += [(before[0], middle), (point[0], middle), point]
                codes += [Outline.CURVE4] * 3
        outline = Outline(points, codes)
        axes.add_patch(
            patches.PathPatch(
                outline, fill=False, edgecolor=shape.stroke, linewidth=shape.width, zorder=order
            )
        )
        if shape.arrow:
            (x0, y0), (x, y) = points[-2], points[-1]
            away = 1.0 if y >= y0 else -1.0
            tip = [(x, y), (x - 2.4, y - 5.5 * away), (x + 2.4, y - 5.5 * away)]
            if abs(y - y0) < 0.5:
                side = 1.0 if x >= x0 else -1.0
                tip = [(x, y), (x - 5.5 * side, y - 2.4), (x - 5.5 * side, y + 2.4)]
            axes.add_patch(patches.Polygon(tip, facecolor=shape.stroke, zorder=order))
    elif isinstance(shape, Polygon):
        axes.add_patch(
            patches.Polygon(
                list(shape.points), facecolor=shape.fill, edgecolor=shape.stroke,
                linewidth=0.8, zorder=order,
            )
        )  # fmt: skip
    else:
        axes.add_patch(
            patches.FancyBboxPatch(
                (shape.x, shape.y), shape.width, shape.height,
                boxstyle=f"round,pad=0,rounding_size={shape.radius}" if shape.radius else
                "square,pad=0",
                facecolor=shape.fill, edgecolor=shape.stroke, linewidth=0.9,
                linestyle=(0, (5, 3)) if shape.dashed else "-", zorder=order,
            )
        )  # fmt: skip

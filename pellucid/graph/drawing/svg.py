"""A scene as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from pellucid.graph.drawing.scene import Curve, Label, Point, Polygon, Rectangle, Scene

__all__ = ["curve_path", "to_svg"]

_FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


def to_svg(scene: Scene) -> str:
    """Write a scene as an SVG document."""
    width, height = scene.width, scene.height
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.1f} {height:.1f}" font-family="{_FONT}">',
        f"<title>{escape(scene.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0,0.8 L8,4 L0,7.2 z" fill="#7d7d88"/>'
        "</marker></defs>",
        f'<rect class="page" width="{width:.1f}" height="{height:.1f}" fill="#ffffff"/>',
    ]
    lines += [_shape(shape) for shape in scene.shapes]
    return "\n".join([*lines, "</svg>\n"])


def _shape(shape: Rectangle | Polygon | Label | Curve) -> str:
    if isinstance(shape, Label):
        weight = ' font-weight="bold"' if shape.bold else ""
        return (
            f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" '
            f'fill="{shape.colour}" text-anchor="{shape.anchor}" dominant-baseline="central"'
            f"{weight}>{escape(shape.text)}</text>"
        )
    if isinstance(shape, Curve):
        tip = ' marker-end="url(#tip)"' if shape.arrow else ""
        ends = f" data-from={quoteattr(shape.ends[0])} data-to={quoteattr(shape.ends[1])}"
        return (
            f'<path d="{curve_path(shape.points, shape.straight)}" fill="none" '
            f'stroke="{shape.stroke}" stroke-width="{shape.width:g}"{tip}{ends}/>'
        )
    key = f" data-layer={quoteattr(shape.key)}" if shape.key else ""
    inner = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Polygon):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return (
            f'<polygon points="{points}" fill="{shape.fill}" stroke="{shape.stroke}" '
            f'stroke-width="0.8" stroke-linejoin="round"{key}>{inner}</polygon>'
        )
    fill = shape.fill
    see_through = ""
    if len(fill) == 9:
        fill, see_through = fill[:7], f' fill-opacity="{int(fill[7:], 16) / 255:.3f}"'
    dash = ' stroke-dasharray="5 3"' if shape.dashed else ""
    return (
        f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" '
        f'height="{shape.height:.1f}" rx="{shape.radius:g}" fill="{fill}"{see_through} '
        f'stroke="{shape.stroke}"{dash}{key}>{inner}</rect>'
    )


def curve_path(points: Sequence[Point], straight: bool = False) -> str:
    """Write a smooth line that is vertical at each point."""
    start, *others = points
    parts = [f"M{start[0]:.1f},{start[1]:.1f}"]
    before = start
    for point in others:
        if straight or abs(point[0] - before[0]) < 0.5:
            parts.append(f"L{point[0]:.1f},{point[1]:.1f}")
        else:
            middle = (before[1] + point[1]) / 2
            parts.append(
                f"C{before[0]:.1f},{middle:.1f} {point[0]:.1f},{middle:.1f} "
                f"{point[0]:.1f},{point[1]:.1f}"
            )
        before = point
    return " ".join(parts)

"""The legend of a painted picture."""

from __future__ import annotations

from pellucid.graph.drawing.colours import scaled
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.scene import Anchor, Label, Rectangle, Scene

__all__ = ["colour_bar"]

_WIDE, _HIGH, _STEPS = 200.0, 9.0, 50


def colour_bar(scene: Scene, paint: Paint, x: float, y: float) -> None:
    """Draw a scale with its caption above and its numbers below; y is where the colours begin."""
    scene.add(Label(x, y - 11, paint.caption, 9, bold=True))
    for step in range(_STEPS):
        fill = scaled((step + 0.5) / _STEPS)
        scene.add(
            Rectangle(x + _WIDE * step / _STEPS, y, _WIDE / _STEPS + 0.3, _HIGH, fill, "none")
        )
    scene.add(Rectangle(x, y, _WIDE, _HIGH, "none", "#8a8a95"))
    anchors: tuple[Anchor, ...] = ("start", "middle", "end")
    for fraction, anchor in zip((0.0, 0.5, 1.0), anchors, strict=True):
        text = paint.shown(paint.at(fraction))
        scene.add(Label(x + _WIDE * fraction, y + _HIGH + 7, text, 8.5, anchor=anchor))

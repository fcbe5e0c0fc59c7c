"""The style *table*: one row per layer."""

from __future__ import annotations

from pellucid.graph.drawing.colours import colour_of, ink_on
from pellucid.graph.drawing.legend import colour_bar
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.scene import Label, Rectangle, Scene, text_width
from pellucid.graph.layer_table import COLUMNS, cells, short_count
from pellucid.graph.layers import LayerGraph

__all__ = ["sheet"]

_ROW = 16.0
_SIZE = 9.0
_WIDEST = 260.0
_RIGHT = (3, 4)


def sheet(graph: LayerGraph, paint: Paint | None = None) -> Scene:
    """Draw a graph as a table; `paint` colours the cells of the kinds."""
    rows = [cells(layer) for layer in graph.layers]
    widths = [
        min(_WIDEST, max(text_width(row[i], _SIZE, bold=not i) for row in (COLUMNS, *rows)) + 20)
        for i in range(len(COLUMNS))
    ]
    scene = Scene(sum(widths) + 40, _ROW * (len(rows) + 3) + 50, title=graph.name)
    scene.add(Label(20, 20, graph.name, 13, bold=True))
    y = 46.0
    _row(scene, COLUMNS, widths, y, head=True)
    for layer, row in zip(graph.layers, rows, strict=True):
        y += _ROW
        fill = colour_of(layer.kind)
        if paint:
            fill = paint.fill(paint.of([layer.name]))
        x = 20 + widths[0]
        scene.add(
            Rectangle(20, y - _ROW / 2, sum(widths), _ROW, "none", "#e3e3e8", key=layer.name),
            Rectangle(x + 3, y - _ROW / 2 + 1, widths[1] - 8, _ROW - 2, fill, "none", 3),
        )
        _row(scene, row, widths, y, ink=ink_on(fill))
    y += _ROW + 4
    total = (
        "total", "", "", f"{graph.parameters:,}", short_count(graph.multiply_adds), "",
    )  # fmt: skip
    _row(scene, total, widths, y, head=True)
    if paint:
        scene.height += 50
        colour_bar(scene, paint, 20, scene.height - 30)
    return scene


def _row(
    scene: Scene,
    row: tuple[str, ...],
    widths: list[float],
    y: float,
    head: bool = False,
    ink: str = "#1d1d22",
) -> None:
    x = 20.0
    for i, (text, width) in enumerate(zip(row, widths, strict=True)):
        while text and (wide := text_width(text, _SIZE, bold=not i)) > width - 12:
            kept = int(len(text) * (width - 12) / wide)
            text = "…" + text[max(len(text) - kept, 2) :]
        colour = ink if i == 1 else "#1d1d22"
        if i in _RIGHT:
            scene.add(Label(x + width - 12, y, text, _SIZE, colour, "end", bold=head))
        else:
            scene.add(Label(x + 8, y, text, _SIZE, colour, bold=head or not i))
        x += width

"""Figures: one explanation beside its image, or several in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.adapters.base import Array
from pellucid.errors import MethodError
from pellucid.explanation import Explanation
from pellucid.plots.colours import colour_bar
from pellucid.plots.panels import aspect_ratio, draw, reduced, show
from pellucid.plots.sheet import (
    BAR,
    BAR_ROOM,
    GAP,
    LINE,
    MARGIN,
    NARROWEST,
    SMALL,
    SUBTITLE,
    TITLE,
    new_sheet,
    panel_size,
    place,
    wrapped,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure", "grid"]


def figure(
    explanation: Explanation,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    signal: Array | None = None,
    notes: bool = True,
) -> Figure:
    """Draw the picture and its overlay beside each other, with title and colour bar.

    Wide pictures stand one above the other. Explanations without a picture show the map alone.

    Parameters
    ----------
    explanation : what to draw.
    colormap, alpha : as for `overlay`.
    signal : as for `draw`.
    notes : whether the explanation's notes stand below the picture.

    Returns
    -------
    A matplotlib `Figure` of its own, unknown to pyplot.
    """
    image = explanation.image
    curve = explanation.heatmap.ndim == 1
    width, height = panel_size(aspect_ratio(explanation.heatmap))
    stacked = image is not None and width > 1.9 * height
    columns = 2 if image is not None and not stacked else 1
    left, below = (MARGIN + 0.3, 0.25) if curve else (MARGIN, 0.0)
    body = columns * width + (columns - 1) * GAP + (0 if stacked else BAR_ROOM)
    total = max(NARROWEST, left + body + MARGIN)
    text_width = total - 2 * MARGIN

    title = wrapped(explanation.name, text_width, TITLE, 2, suffix=f" — {explanation.score_text}")
    subtitle = wrapped(explanation.method + explanation.place, text_width, SUBTITLE, 2)
    footer = wrapped(" ".join(explanation.notes), text_width, SMALL, 4) if notes else []
    top = MARGIN + LINE * (TITLE * len(title) + SUBTITLE * len(subtitle)) + 0.06
    bottom = top + height * (2 if stacked else 1) + (GAP if stacked else 0) + below
    end = bottom + (0.4 if stacked else 0.0)
    note_room = LINE * SMALL * len(footer) + 0.08 if footer else 0.0
    sheet = new_sheet(total, end + note_room + MARGIN)

    write(sheet, MARGIN, MARGIN, title, TITLE)
    write(sheet, MARGIN, MARGIN + LINE * TITLE * len(title), subtitle, SUBTITLE, "0.35")
    write(sheet, MARGIN, end + 0.08, footer, SMALL, "0.35")
    x, y = left, top
    if image is not None:
        show(place(sheet, x, y, width, height), reduced(image, 1200))
        x, y = (x, y + height + GAP) if stacked else (x + width + GAP, y)
    axes = place(sheet, x, y, width, height)
    draw(axes, explanation, colormap=colormap, alpha=alpha, signal=signal)
    bar = (x, y + height + 0.08, width, BAR) if stacked else (x + width + 0.08, y, BAR, height)
    colour_bar(place(sheet, *bar), colormap, explanation.signed, vertical=not stacked)
    return sheet


def grid(
    explanations: Sequence[Explanation],
    columns: int | None = None,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    originals: bool = True,
) -> Figure:
    """Draw several explanations in a grid, each as picture and overlay.

    Parameters
    ----------
    explanations : what to draw, row by row.
    columns : explanations in a row; by default the grid is about as wide as high.
    colormap, alpha : as for `overlay`.
    originals : whether the picture stands beside every overlay.

    Returns
    -------
    A matplotlib `Figure` of its own, unknown to pyplot.

    Raises
    ------
    MethodError : there are no explanations, or `columns` is less than one.
    """
    items = list(explanations)
    if not items:
        raise MethodError("A grid takes at least one explanation; none were given.")
    if columns is not None and columns < 1:
        raise MethodError(f"columns={columns}: a grid has at least one column.")
    panels = 2 if originals and any(item.image is not None for item in items) else 1
    aspect = float(np.median([aspect_ratio(item.heatmap) for item in items]))
    width, height = panel_size(aspect, scale=0.62)
    room = panels * width + (panels - 1) * 0.04  # of one item
    title_height = LINE * (SUBTITLE + SMALL) + 0.04
    auto = round(float(np.sqrt(len(items) * (height + title_height) / room)))
    columns = min(len(items), columns or max(1, auto))
    rows = -(-len(items) // columns)
    cell_width, cell_height = room + 1.6 * GAP, title_height + height + GAP
    body = MARGIN + columns * cell_width - 1.6 * GAP
    kinds = sorted({item.signed for item in items})
    total = body + len(kinds) * BAR_ROOM + MARGIN
    sheet = new_sheet(total, MARGIN + rows * cell_height - GAP + MARGIN)

    for index, item in enumerate(items):
        x = MARGIN + (index % columns) * cell_width
        y = MARGIN + (index // columns) * cell_height
        title = wrapped(item.name, room, SUBTITLE, 1, suffix=f" — {item.score_text}")
        write(sheet, x, y, title, SUBTITLE)
        subtitle = wrapped(item.method + item.place, room, SMALL, 1)
        write(sheet, x, y + LINE * SUBTITLE, subtitle, SMALL, "0.35")
        box = (x, y + title_height, width, height)
        _draw_pair(sheet, box, item, panels == 2, colormap, alpha)
    for index, signed in enumerate(kinds):
        bar = place(sheet, body + index * BAR_ROOM + 0.08, MARGIN + title_height, BAR, height)
        colour_bar(bar, colormap, signed)
    return sheet


def _draw_pair(
    sheet: Figure,
    box: tuple[float, float, float, float],
    item: Explanation,
    original: bool,
    colormap: str | None,
    alpha: float,
) -> None:
    """Draw picture and overlay side by side, each as large as fits the box of one of them."""
    x, y, width, height = box
    curve = item.heatmap.ndim == 1
    aspect = width / height if curve else aspect_ratio(item.heatmap)
    across, down = min(width, height * aspect), min(height, width / aspect)
    if original and item.image is not None:
        show(place(sheet, x, y, across, down), reduced(item.image, 500))
        x += across + 0.04
    axes = place(sheet, x, y, across, down)
    draw(axes, item, colormap=colormap, alpha=alpha, limit=500)
    if curve:
        axes.set(xticks=[], yticks=[])

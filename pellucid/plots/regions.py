"""The figure of an explanation by superpixels: kept regions, weights, a ranking, its certainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pellucid.plots.colours import Picture, colormap_named, colour_bar, overlay
from pellucid.plots.panels import aspect_ratio, show
from pellucid.plots.sheet import (
    BAR,
    BAR_ROOM,
    GAP,
    LINE,
    MARGIN,
    SMALL,
    SUBTITLE,
    TITLE,
    new_sheet,
    panel_size,
    place,
    wrapped,
    write,
)
from pellucid.region_explanation import RegionExplanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["boundaries", "kept_regions", "region_figure"]

_BARS = 8  # superpixels in the chart
_CHART = 2.9  # inches
_DIM = 0.82  # how far what is not kept fades towards white


def region_figure(
    explanation: RegionExplanation,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    top: int = 5,
) -> Figure:
    """Draw the regions kept, the weights over the picture and a chart of the largest of them.

    Parameters
    ----------
    explanation : with superpixels.
    colormap, alpha : as for `overlay`.
    top : superpixels that are kept, those that speak for the target.

    Returns
    -------
    A matplotlib `Figure` of its own, unknown to pyplot.
    """
    weights, segments = explanation.weights, explanation.segments
    assert weights is not None
    assert segments is not None
    image, aspect = explanation.image, aspect_ratio(explanation.heatmap)
    width, height = panel_size(aspect, scale=0.8)
    caption = LINE * SMALL + 0.05
    columns = 2 if image is not None else 1
    body = columns * width + (columns - 1) * GAP + BAR_ROOM + _CHART
    total = MARGIN + body + MARGIN
    room = total - 2 * MARGIN
    title = wrapped(explanation.name, room, TITLE, 2, suffix=f" — {explanation.score_text}")
    subtitle = wrapped(explanation.method, room, SUBTITLE, 1)
    told = ". ".join(text[0].upper() + text[1:] for text in explanation.summary()) + "."
    footer = wrapped(" ".join((told, *explanation.notes)), 0.96 * room, SMALL, 5)
    y = MARGIN + LINE * (TITLE * len(title) + SUBTITLE * len(subtitle)) + 0.06 + caption
    height = max(height, 1.6)
    end = y + height + 0.3
    sheet = new_sheet(total, end + LINE * SMALL * len(footer) + MARGIN)
    write(sheet, MARGIN, MARGIN, title, TITLE)
    write(sheet, MARGIN, MARGIN + LINE * TITLE * len(title), subtitle, SUBTITLE, "0.35")
    write(sheet, MARGIN, end, footer, SMALL, "0.35")

    x = MARGIN
    kept = explanation.ranking("positive")[:top]
    if image is not None:
        most = "speak most for it" if explanation.signed else "matter most to it"
        words = f"The {len(kept)} regions that {most}" if kept else "No region speaks for it"
        write(sheet, x, y - caption, wrapped(words, width, SMALL, 1), SMALL)
        show(place(sheet, x, y, width, height), kept_regions(image, segments, kept))
        x += width + GAP
    largest = float(np.abs(weights).max())
    write(sheet, x, y - caption, wrapped("Weight of every region", width, SMALL, 1), SMALL)
    axes = place(sheet, x, y, width, height)
    mixed = overlay(
        image, explanation.heatmap, colormap=colormap, alpha=alpha, signed=explanation.signed
    )
    mixed = np.where(boundaries(segments)[..., None], (mixed // 2) + 96, mixed).astype(np.uint8)
    show(axes, mixed)
    ranking = _weighed(explanation)[:_BARS]
    _number(axes, segments, ranking)
    bar = place(sheet, x + width + 0.08, y, BAR, height)
    signed = explanation.signed
    colour_bar(bar, colormap, signed=signed)
    lowest = -largest if signed else float(weights.min())
    middle = "0" if signed else _number_text((lowest + largest) / 2)
    bar.set_yticks([0, 0.5, 1], labels=[_number_text(lowest), middle, _number_text(largest)])
    left = x + width + BAR_ROOM
    words = f"The {len(ranking)} largest weights"
    words += f" ({explanation.space})" if explanation.signed else ""
    write(sheet, left + 0.3, y - caption, wrapped(words, _CHART - 0.3, SMALL, 1), SMALL)
    _chart(place(sheet, left + 0.3, y, _CHART - 0.42, height), explanation, ranking, colormap)
    return sheet


def _weighed(explanation: RegionExplanation) -> list[int]:
    """Rank the superpixels without those that a sparse model leaves out: no weight, no error."""
    everyone, weights = explanation.ranking(), explanation.weights
    errors = explanation.standard_errors
    if weights is None or errors is None:
        return everyone
    return [k for k in everyone if weights[k] or errors[k]] or everyone


def kept_regions(image: Picture, segments: NDArray[np.int32], kept: list[int]) -> NDArray[np.uint8]:
    """Return the picture with all but some superpixels faded to a pale grey."""
    grey = image.mean(axis=-1, keepdims=True)
    faded = (1 - _DIM) * grey + _DIM * 255
    inside = np.isin(segments, kept)
    picture = np.where(inside[..., None], image, faded)
    edge = boundaries(inside.astype(np.int32))
    picture[edge] = (40, 40, 40)
    return np.asarray(picture, np.uint8)


def boundaries(segments: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark the pixels whose right or lower neighbour belongs to another superpixel."""
    edge = np.zeros(segments.shape, bool)
    edge[:, :-1] |= segments[:, 1:] != segments[:, :-1]
    edge[:-1] |= segments[1:] != segments[:-1]
    return edge


def _number(axes: Axes, segments: NDArray[np.int32], ranking: list[int]) -> None:
    """Write the rank of the largest superpixels at their innermost point."""
    for rank, superpixel in enumerate(ranking, 1):
        inside = np.pad(segments == superpixel, 1)
        if not inside.any():
            continue
        depth = distance_transform_edt(inside)
        row, column = np.unravel_index(np.argmax(depth), depth.shape)
        axes.text(
            float(column) - 1,
            float(row) - 1,
            str(rank),
            ha="center",
            va="center",
            fontsize=SMALL,
            bbox={"boxstyle": "circle,pad=0.15", "color": "white", "alpha": 0.8, "lw": 0},
        )


def _chart(
    axes: Axes, explanation: RegionExplanation, ranking: list[int], colormap: str | None
) -> None:
    """Draw the largest weights as bars, with a whisker of two standard errors."""
    assert explanation.weights is not None
    values = explanation.weights[ranking]
    largest = np.abs(explanation.weights).max() or 1
    lowest = -largest if explanation.signed else explanation.weights.min()
    heat = (values - lowest) / ((largest - lowest) or 1)
    colours = colormap_named(colormap, explanation.signed)(heat)
    places = np.arange(len(ranking))
    errors = explanation.standard_errors
    axes.barh(
        places,
        values,
        color=colours,
        edgecolor="0.4",
        linewidth=0.4,
        xerr=None if errors is None else 2 * errors[ranking],
        error_kw={"elinewidth": 0.8, "ecolor": "0.25", "capsize": 1.5, "capthick": 0.8},
    )
    axes.axvline(0, color="0.3", linewidth=0.6)
    axes.set_yticks(places, labels=[str(place + 1) for place in places])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.tick_params(labelsize=SMALL, width=0.5, length=2.5)
    axes.locator_params(axis="x", nbins=4)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", linewidth=0.5)


def _number_text(value: float) -> str:
    return f"{value:+.2g}".replace("-", "\N{MINUS SIGN}")

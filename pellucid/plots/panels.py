"""One explanation on one panel: an image with its heat, a curve, or the slices of a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import ImageError
from pellucid.explanation import Explanation
from pellucid.plots.colours import Picture, overlay, ticks
from pellucid.plots.sheet import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["aspect_ratio", "draw", "reduced", "show"]


def draw(
    axes: Axes,
    explanation: Explanation,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    signal: Array | None = None,
    limit: int = 1200,
) -> None:
    """Draw an explanation on matplotlib axes.

    Images are drawn as their overlay, 1-D maps as a filled curve or, with `signal`, as its line
    in the colours of the heat, 3-D maps as up to twelve slices.

    Parameters
    ----------
    axes : where to draw.
    explanation : what to draw.
    colormap, alpha : as for `overlay`.
    signal : what lies under a map without a picture: `(L,)`, `(H, W)` or `(D, H, W)`.
    limit : pictures are reduced by whole factors towards this many pixels a side.
    """
    heatmap, signed = explanation.heatmap, explanation.signed
    if signal is not None and np.shape(signal) != heatmap.shape:
        raise ImageError(f"The signal is {np.shape(signal)}, the heatmap {heatmap.shape}.")
    if heatmap.ndim == 1:
        _draw_curve(axes, heatmap, signal, colormap, signed)
        return
    image = explanation.image
    if signal is not None:
        image = np.repeat(_grey(signal)[..., None], 3, axis=-1)

    def blended(picture: Picture | None, heat: Array) -> Picture:
        picture = None if picture is None else reduced(picture, limit)
        heat = reduced(heat, limit)
        return overlay(picture, heat, colormap=colormap, alpha=alpha, signed=signed)

    if heatmap.ndim == 2:
        show(axes, blended(image, heatmap))
        return
    slices = _slices(len(heatmap))
    tiles = [blended(None if image is None else image[i], heatmap[i]) for i in slices]
    columns = _montage_columns(len(tiles), tiles[0].shape[1] / tiles[0].shape[0])
    _draw_montage(axes, tiles, [f"slice {i}" for i in slices], columns)


def show(axes: Axes, picture: Picture) -> None:
    """Fill a panel with a picture."""
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _draw_curve(
    axes: Axes, heatmap: Array, signal: Array | None, colormap: str | None, signed: bool
) -> None:
    from matplotlib.collections import LineCollection

    x = np.arange(len(heatmap))
    if signal is None:
        base = 0.5 if signed else 0.0
        area = axes.fill_between(x, base, heatmap, color="none")
        axes.plot(x, heatmap, color="0.25", linewidth=0.6)
        strip = overlay(None, heatmap[None], colormap=colormap, signed=signed)
        drawn = axes.imshow(strip, extent=(-0.5, len(x) - 0.5, 0, 1), aspect="auto")
        if len(x) > 1:
            drawn.set_clip_path(area.get_paths()[0], axes.transData)
        axes.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
        axes.set_yticklabels(ticks(signed))
    else:
        points = np.stack([x, signal], axis=1)  # (L, 2)
        segments = np.stack([points[:-1], points[1:]], axis=1)  # (L - 1, 2, 2)
        middles = (heatmap[:-1] + heatmap[1:]) * np.float32(0.5)
        colours = overlay(None, middles, colormap=colormap, signed=signed) / 255
        axes.plot(x, signal, color="0.8", linewidth=2.6, solid_capstyle="round")
        axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=1.4))
        axes.margins(y=0.08)
    axes.set_xlim(-0.5, len(x) - 0.5)
    axes.tick_params(labelsize=SMALL, width=0.5, length=2.5)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), linewidth=0.5)


def _draw_montage(axes: Axes, tiles: list[Picture], names: list[str], columns: int) -> None:
    height, width = tiles[0].shape[:2]
    gap = max(1, round(0.03 * max(height, width)))
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
        axes.annotate(
            names[index],
            (left - 0.5, top - 0.5),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=SMALL - 1,
            bbox={"boxstyle": "square,pad=0.15", "color": "white", "alpha": 0.75, "lw": 0},
        )
    axes.imshow(sheet)
    axes.set_axis_off()


def _slices(depth: int, most: int = 12) -> list[int]:
    """Evenly spaced slices of a volume, the first and the last among them."""
    return sorted({round(z) for z in np.linspace(0, depth - 1, min(depth, most))})


def _montage_columns(count: int, aspect: float) -> int:
    """Columns that bring a sheet of tiles close to 3 : 2 and leave few places empty."""

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        shape = abs(float(np.log(columns * aspect / rows / 1.5)))
        return shape + (rows * columns - count) / count

    return min(range(1, count + 1), key=badness)


def _grey(signal: Array) -> Picture:
    low, high = float(np.min(signal)), float(np.max(signal))
    scaled = (np.asarray(signal, np.float32) - low) / ((high - low) or 1)
    return np.asarray(np.rint(255 * scaled), np.uint8)


def reduced(array: NDArray[Any], limit: int) -> NDArray[Any]:
    """Average blocks of pixels, so that a large photograph costs no more than a small one."""
    factor = max(array.shape[:2]) // limit
    if factor < 2:
        return array
    from PIL import Image

    factors = (min(factor, array.shape[1]), min(factor, array.shape[0]))
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).reduce(factors))


# ---- one figure ----------------------------------------------------------------------------------


def aspect_ratio(heatmap: Array) -> float:
    """Width over height of a drawn map."""
    if heatmap.ndim == 1:
        return 4.0
    aspect = float(heatmap.shape[-1] / heatmap.shape[-2])
    if heatmap.ndim == 2:
        return aspect
    count = len(_slices(len(heatmap)))
    columns = _montage_columns(count, aspect)
    return float(columns * aspect / -(-count // columns))

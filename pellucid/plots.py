"""Pictures of explanations: the overlay, the figure, the grid.

Everything is drawn with matplotlib's objects and never with pyplot, whose registry keeps every
figure alive; matplotlib itself is imported when the first picture is drawn. Figures are laid out
in inches, so that text and colour bars keep their size whatever the shape of the picture.

Colours always span 0 to 1, never the range of the map at hand: the same heat has the same colour
in every picture, so that pictures can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import ImageError, MethodError, UnsupportedError, nearest
from pellucid.explanation import Explanation, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "FIGURE_SUFFIXES",
    "HEAT",
    "SIGNED",
    "Blend",
    "colormap_names",
    "draw",
    "figure",
    "grid",
    "overlay",
    "save_figure",
]

HEAT = "inferno"
SIGNED = "RdBu_r"
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")

Blend = Literal["heat", "even"]
Picture = NDArray[np.uint8]

# Inches, except for the sizes of letters, which are points.
MARGIN, GAP, BAR, BAR_ROOM = 0.12, 0.10, 0.12, 0.55
TITLE, SUBTITLE, SMALL = 10.5, 8.5, 7.0
NARROWEST, WIDEST, TALLEST = 3.4, 6.5, 5.0
LINE = 1.3 / 72  # one line of text, per point


def colormap_names() -> tuple[str, ...]:
    """Return the names of all colour maps."""
    import matplotlib

    return tuple(matplotlib.colormaps)


def _colormap(name: str | None, signed: bool) -> Colormap:
    import matplotlib

    name = name or (SIGNED if signed else HEAT)
    if name not in matplotlib.colormaps:
        raise MethodError(f"There is no colour map {name!r}. {nearest(name, matplotlib.colormaps)}")
    return matplotlib.colormaps[name]


def overlay(
    image: Picture | None,
    heatmap: Array,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    signed: bool = False,
    blend: Blend = "heat",
) -> Picture:
    """Lay a heatmap over a picture.

    `(1 - w) image + w colour(heat)`, where with `blend="heat"` the weight grows with the heat,
    `w = alpha ** (3 ** (1 - 2 heat))`, so that cold regions leave the picture visible: at the
    default alpha the weight is 1/8 at heat 0, 1/2 at heat 1/2 and 0.79 at heat 1. Alpha 0 gives
    the picture and alpha 1 the pure colours, exactly.

    Parameters
    ----------
    image : `(H, W, 3)` or greyscale `(H, W)`, uint8; None gives the pure colours.
    heatmap : `(H, W)` in [0, 1]; without a picture, of any shape.
    colormap : name of a matplotlib colour map; by default `inferno`, signed maps `RdBu_r`.
    alpha : weight of the colours at heat one half, in [0, 1].
    signed : whether 0.5 means zero and heat is the distance from it.
    blend : `"heat"`, or `"even"` for the weight `alpha` everywhere.

    Returns
    -------
    `(H, W, 3)` uint8.

    Raises
    ------
    ImageError : picture and heatmap differ in size, or the picture is not uint8.
    MethodError : unknown colour map or blend, or alpha outside [0, 1].

    Examples
    --------
    >>> heat = np.array([[0, 0.5, 1]], np.float32)
    >>> overlay(np.zeros((1, 3, 3), np.uint8), heat, colormap="gray")[..., 0].tolist()
    [[0, 64, 202]]
    """
    if not 0 <= alpha <= 1:
        raise MethodError(f"alpha={alpha} is outside [0, 1].")
    if blend not in ("heat", "even"):
        raise MethodError(f"blend={blend!r} is unknown: heat or even.")
    colours, weight = _table(_colormap(colormap, signed), alpha, signed, blend)
    levels = len(colours)
    if image is None:
        return colours[_level(heatmap, levels)]
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(
            f"A picture is (H, W, 3) or (H, W) of uint8; this is {image.shape} of {image.dtype}."
        )
    if image.shape[:2] != heatmap.shape:
        raise ImageError(
            f"The picture is {image.shape[:2]}, the heatmap {heatmap.shape}: "
            "resize one to the size of the other."
        )

    added = (weight * colours).astype(np.float32)  # (levels, 3)
    kept = (1 - weight).astype(np.float32)  # (levels, 1)
    blended = np.empty((*heatmap.shape, 3), np.uint8)
    step = max(1, 2**18 // max(1, heatmap.shape[1]))  # the temporaries stay in the cache
    for start in range(0, len(blended), step):
        rows = slice(start, start + step)
        level = _level(heatmap[rows], levels)
        mixed = image[rows] * kept[level] + added[level]
        blended[rows] = np.rint(mixed, out=mixed)
    return blended


def _table(
    colormap: Colormap, alpha: float, signed: bool, blend: Blend
) -> tuple[Picture, NDArray[np.float64]]:
    """Return the colours `(levels, 3)` of a colour map and their weights `(levels, 1)`."""
    colours = colormap(np.arange(colormap.N), bytes=True)[:, :3]
    heat = np.linspace(0, 1, colormap.N)[:, None]
    strength = np.abs(2 * heat - 1) if signed else heat
    weight = np.power(alpha, 3 ** (1 - 2 * strength) if blend == "heat" else np.ones_like(heat))
    return np.asarray(colours, np.uint8), weight


def _level(heatmap: Array, levels: int) -> NDArray[np.intp]:
    """Index into a table of colours, rounded the way matplotlib does."""
    return np.clip(np.nan_to_num(heatmap) * levels, 0, levels - 1).astype(np.intp)


# ---- one axes ------------------------------------------------------------------------------------


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
        picture = None if picture is None else _reduced(picture, limit)
        heat = _reduced(heat, limit)
        return overlay(picture, heat, colormap=colormap, alpha=alpha, signed=signed)

    if heatmap.ndim == 2:
        _show(axes, blended(image, heatmap))
        return
    slices = _slices(len(heatmap))
    tiles = [blended(None if image is None else image[i], heatmap[i]) for i in slices]
    columns = _montage_columns(len(tiles), tiles[0].shape[1] / tiles[0].shape[0])
    _draw_montage(axes, tiles, [f"slice {i}" for i in slices], columns)


def _show(axes: Axes, picture: Picture) -> None:
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
        axes.set_yticklabels(_ticks(signed))
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


def _reduced(array: NDArray[Any], limit: int) -> NDArray[Any]:
    """Average blocks of pixels, so that a large photograph costs no more than a small one."""
    factor = max(array.shape[:2]) // limit
    if factor < 2:
        return array
    from PIL import Image

    factors = (min(factor, array.shape[1]), min(factor, array.shape[0]))
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).reduce(factors))


# ---- one figure ----------------------------------------------------------------------------------


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
    width, height = _panel_size(_aspect(explanation.heatmap))
    stacked = image is not None and width > 1.9 * height
    columns = 2 if image is not None and not stacked else 1
    left, below = (MARGIN + 0.3, 0.25) if curve else (MARGIN, 0.0)
    body = columns * width + (columns - 1) * GAP + (0 if stacked else BAR_ROOM)
    total = max(NARROWEST, left + body + MARGIN)
    text_width = total - 2 * MARGIN

    title = _wrapped(explanation.name, text_width, TITLE, 2, suffix=f" — {explanation.score_text}")
    subtitle = _wrapped(explanation.method + explanation.place, text_width, SUBTITLE, 2)
    footer = _wrapped(" ".join(explanation.notes), text_width, SMALL, 4) if notes else []
    top = MARGIN + LINE * (TITLE * len(title) + SUBTITLE * len(subtitle)) + 0.06
    bottom = top + height * (2 if stacked else 1) + (GAP if stacked else 0) + below
    end = bottom + (0.4 if stacked else 0.0)
    note_room = LINE * SMALL * len(footer) + 0.08 if footer else 0.0
    sheet = _sheet(total, end + note_room + MARGIN)

    _write(sheet, MARGIN, MARGIN, title, TITLE)
    _write(sheet, MARGIN, MARGIN + LINE * TITLE * len(title), subtitle, SUBTITLE, "0.35")
    _write(sheet, MARGIN, end + 0.08, footer, SMALL, "0.35")
    x, y = left, top
    if image is not None:
        _show(_place(sheet, x, y, width, height), _reduced(image, 1200))
        x, y = (x, y + height + GAP) if stacked else (x + width + GAP, y)
    axes = _place(sheet, x, y, width, height)
    draw(axes, explanation, colormap=colormap, alpha=alpha, signal=signal)
    bar = (x, y + height + 0.08, width, BAR) if stacked else (x + width + 0.08, y, BAR, height)
    _colour_bar(_place(sheet, *bar), colormap, explanation.signed, vertical=not stacked)
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
    aspect = float(np.median([_aspect(item.heatmap) for item in items]))
    width, height = _panel_size(aspect, scale=0.62)
    room = panels * width + (panels - 1) * 0.04  # of one item
    title_height = LINE * (SUBTITLE + SMALL) + 0.04
    auto = round(float(np.sqrt(len(items) * (height + title_height) / room)))
    columns = min(len(items), columns or max(1, auto))
    rows = -(-len(items) // columns)
    cell_width, cell_height = room + 1.6 * GAP, title_height + height + GAP
    body = MARGIN + columns * cell_width - 1.6 * GAP
    kinds = sorted({item.signed for item in items})
    total = body + len(kinds) * BAR_ROOM + MARGIN
    sheet = _sheet(total, MARGIN + rows * cell_height - GAP + MARGIN)

    for index, item in enumerate(items):
        x = MARGIN + (index % columns) * cell_width
        y = MARGIN + (index // columns) * cell_height
        title = _wrapped(item.name, room, SUBTITLE, 1, suffix=f" — {item.score_text}")
        _write(sheet, x, y, title, SUBTITLE)
        subtitle = _wrapped(item.method + item.place, room, SMALL, 1)
        _write(sheet, x, y + LINE * SUBTITLE, subtitle, SMALL, "0.35")
        box = (x, y + title_height, width, height)
        _draw_pair(sheet, box, item, panels == 2, colormap, alpha)
    for index, signed in enumerate(kinds):
        bar = _place(sheet, body + index * BAR_ROOM + 0.08, MARGIN + title_height, BAR, height)
        _colour_bar(bar, colormap, signed)
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
    aspect = width / height if curve else _aspect(item.heatmap)
    across, down = min(width, height * aspect), min(height, width / aspect)
    if original and item.image is not None:
        _show(_place(sheet, x, y, across, down), _reduced(item.image, 500))
        x += across + 0.04
    axes = _place(sheet, x, y, across, down)
    draw(axes, item, colormap=colormap, alpha=alpha, limit=500)
    if curve:
        axes.set(xticks=[], yticks=[])


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> Path:
    """Write a figure as `.png`, `.pdf` or `.svg`, whole or not at all.

    The same figure gives the same bytes. Sheets of more than 20 000 pixels a side are written
    at a lower resolution.

    Raises
    ------
    UnsupportedError : another suffix.
    PellucidError : the file cannot be written.
    """
    import matplotlib

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise UnsupportedError(
            f"{path.name}: figures are written as {', '.join(FIGURE_SUFFIXES)}, "
            f"not as {path.suffix or 'a file without suffix'}."
        )
    # Level 4 takes half the time of the default 6 for 3 % more bytes.
    settings: dict[str, dict[str, Any]] = {
        ".png": {"pil_kwargs": {"compress_level": 4}},
        ".pdf": {"metadata": {"CreationDate": None}},
        ".svg": {"metadata": {"Date": None}},
    }
    dpi = min(dpi, int(20_000 / max(figure.get_size_inches())))
    with (
        replacing(path) as file,
        matplotlib.rc_context({"svg.hashsalt": "pellucid", "pdf.fonttype": 42}),
    ):
        figure.savefig(file, format=suffix[1:], dpi=dpi, **settings[suffix])
    return path


# ---- layout in inches ----------------------------------------------------------------------------


def _sheet(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(sheet)
    return sheet


def _place(sheet: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes, measured from the upper left corner."""
    across, down = sheet.get_size_inches()
    box = (left / across, 1 - (top + height) / down, width / across, height / down)
    return sheet.add_axes(box)


def _write(
    sheet: Figure, left: float, top: float, lines: list[str], size: float, color: str = "0"
) -> None:
    across, down = sheet.get_size_inches()
    for index, line in enumerate(lines):
        y = 1 - (top + (index + 1) * LINE * size - 0.3 * size / 72) / down
        sheet.text(left / across, y, line, size=size, color=color, va="baseline", parse_math=False)


def _wrapped(text: str, width: float, size: float, most: int, suffix: str = "") -> list[str]:
    """Break text into at most so many lines of so many inches; what is too long ends in "…".

    The suffix is kept whole, and on one line.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)

    def fits(line: str) -> bool:
        exact = text_to_path.get_text_width_height_descent(line, font, False)[0]
        return exact * 1.04 <= width * 72  # letters on whole pixels are up to 4 % wider

    def broken(text: str) -> list[str]:
        lines = [""]
        *words, last = text.split(" ")
        for word in [*words, last + suffix]:
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            lines = [*lines[:-1], longer] if fits(longer) else [*filter(None, lines), word]
        return lines

    def whole(text: str) -> list[str] | None:
        lines = broken(text)
        return lines if len(lines) <= most and all(map(fits, lines)) else None

    text = " ".join(text.split())
    if not text + suffix:
        return []
    if lines := whole(text):
        return lines
    low, high = 0, min(len(text), 400)  # the longest beginning that fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if whole(text[:middle].rstrip() + "…") else (low, middle - 1)
    return broken(text[:low].rstrip() + "…")


def _aspect(heatmap: Array) -> float:
    """Width over height of a drawn map."""
    if heatmap.ndim == 1:
        return 4.0
    aspect = float(heatmap.shape[-1] / heatmap.shape[-2])
    if heatmap.ndim == 2:
        return aspect
    count = len(_slices(len(heatmap)))
    columns = _montage_columns(count, aspect)
    return float(columns * aspect / -(-count // columns))


def _panel_size(aspect: float, scale: float = 1.0) -> tuple[float, float]:
    """Width and height of a panel: about nine square inches, whatever its shape."""
    width = scale * min(3 * aspect**0.5, WIDEST, TALLEST * aspect)
    return max(0.15, width), max(0.15, width / aspect)


def _ticks(signed: bool) -> list[str]:
    return ["\N{MINUS SIGN}1", "0", "1"] if signed else ["0", "0.5", "1"]


def _colour_bar(axes: Axes, colormap: str | None, signed: bool, vertical: bool = True) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), _colormap(colormap, signed))
    orientation = "vertical" if vertical else "horizontal"
    bar = axes.figure.colorbar(scale, cax=axes, orientation=orientation)
    bar.set_ticks([0, 0.5, 1], labels=_ticks(signed))
    bar.ax.tick_params(labelsize=SMALL, width=0.5, length=2.5)
    bar.outline.set_linewidth(0.5)

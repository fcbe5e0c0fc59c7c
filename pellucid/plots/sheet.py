"""The sheet that figures are drawn on: its measures, its text, its file.

Figures are laid out in inches, so that text and colour bars keep their size whatever the shape of
the picture. Everything is drawn with matplotlib's objects and never with pyplot, whose registry
keeps every figure alive; matplotlib itself is imported when the first picture is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import UnsupportedError
from pellucid.explanation import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_SUFFIXES", "new_sheet", "panel_size", "place", "save_figure", "wrapped", "write"]

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")

# Inches, except for the sizes of letters, which are points.
MARGIN, GAP, BAR, BAR_ROOM = 0.12, 0.10, 0.12, 0.55
TITLE, SUBTITLE, SMALL = 10.5, 8.5, 7.0
NARROWEST, WIDEST, TALLEST = 3.4, 6.5, 5.0
LINE = 1.3 / 72  # one line of text, per point


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


def new_sheet(width: float, height: float) -> Figure:
    """Make an empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(sheet)
    return sheet


def place(sheet: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes, measured from the upper left corner."""
    across, down = sheet.get_size_inches()
    box = (left / across, 1 - (top + height) / down, width / across, height / down)
    return sheet.add_axes(box)


def write(
    sheet: Figure, left: float, top: float, lines: list[str], size: float, color: str = "0"
) -> None:
    """Write lines of text downwards from a point."""
    across, down = sheet.get_size_inches()
    for index, line in enumerate(lines):
        y = 1 - (top + (index + 1) * LINE * size - 0.3 * size / 72) / down
        sheet.text(left / across, y, line, size=size, color=color, va="baseline", parse_math=False)


def wrapped(text: str, width: float, size: float, most: int, suffix: str = "") -> list[str]:
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


def panel_size(aspect: float, scale: float = 1.0) -> tuple[float, float]:
    """Width and height of a panel: about nine square inches, whatever its shape."""
    width = scale * min(3 * aspect**0.5, WIDEST, TALLEST * aspect)
    return max(0.15, width), max(0.15, width / aspect)

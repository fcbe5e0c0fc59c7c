"""What goes to the terminal: plain text, in colour only where someone watches."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, TextIO

__all__ = ["encodable", "item", "plain", "styled", "table", "terminal_of_stderr", "width"]

Style = Literal["bold", "dim", "green", "yellow"]

_CODES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33"}


def plain(text: Any) -> str:
    """Put text on one line, with control characters spelt out.

    Labels, layer names and file names come from files that others made; printed raw, they could
    steer the terminal.
    """
    line = " ".join(str(text).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


def styled(text: str, style: Style) -> str:
    """Colour text if stdout is a terminal and `NO_COLOR` is not set."""
    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not watched or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def width(text: str) -> int:
    """Count the columns that text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Line up cells in columns, two spaces apart.

    Parameters
    ----------
    rows : cells, one line each.
    align : one letter per column, "<" for left and ">" for right.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, side, wide in zip(row, align, widths, strict=True):
            space = " " * (wide - width(cell))
            cells.append(cell + space if side == "<" else space + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def item(name: str, text: Any, style: Style | None = None) -> str:
    """Format `name  text`; on a terminal long text is broken and indented below itself."""
    head, body = f"  {name:<10}", plain(text)
    if sys.stdout.isatty():
        columns = max(40, shutil.get_terminal_size().columns)
        body = textwrap.fill(
            body,
            columns - len(head),
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("\n", "\n" + " " * len(head))
    return styled(head, style or "dim") + body


def terminal_of_stderr() -> TextIO | Literal[False]:
    """Open the terminal behind stderr a second time, for progress that no filter holds back.

    False where stderr is no terminal.
    """
    try:
        if not sys.stderr.isatty():
            return False
        return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):
        return False


def encodable(*streams: TextIO) -> None:
    """Let streams print what their encoding lacks as escapes, where they would raise."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            reconfigure(errors="backslashreplace")

"""RESULTS.md: one section per benchmark, each rewritten by its own."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["write_section"]

_FILE = Path(__file__).with_name("RESULTS.md")
_HEAD = (
    "# Results\n\nWritten by the benchmarks of this folder. Ratios carry over, seconds do not.\n"
)


def write_section(title: str, text: str) -> None:
    """Put a section in its place, or at the end if there is none of that title yet."""
    before = _FILE.read_text() if _FILE.exists() else _HEAD
    head, *sections = re.split(r"^(?=## )", before, flags=re.MULTILINE)
    by_title = {section.partition("\n")[0][3:]: section.strip() for section in sections}
    by_title[title] = f"## {title}\n\n{text.strip()}"
    _FILE.write_text("\n\n".join([head.strip(), *by_title.values()]) + "\n")

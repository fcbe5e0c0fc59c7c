"""The errors a user can cause, each with words that say what to do next.

Everything derives from `PellucidError`, so one `except` catches all of them and the command
line prints their message and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ImageError",
    "InputError",
    "LayerError",
    "LoadError",
    "MethodError",
    "PellucidError",
    "TargetError",
    "UnsupportedError",
    "first_line",
    "nearest",
]


class PellucidError(Exception):
    """Something the user can mend; the message says what is wrong and what to do."""


class LoadError(PellucidError):
    """A model could not be opened."""


class ImageError(PellucidError):
    """An image could not be read, or is no image."""


class InputError(PellucidError):
    """A batch does not fit the model's input."""


class LayerError(PellucidError):
    """A layer name is unknown, or the layer cannot be used for what was asked."""


class TargetError(PellucidError):
    """A target names no output of the model."""


class MethodError(PellucidError):
    """A method or one of its options is unknown or out of range."""


class UnsupportedError(PellucidError):
    """The model or this adapter cannot do what was asked."""


def first_line(error: BaseException) -> str:
    """Return what another library said, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def nearest(name: str, known: Iterable[str], count: int = 4) -> str:
    """Return a sentence that offers the known names most like `name`.

    Substring matches come first ("conv2" finds "layer4.1.conv2"), then spelling neighbours.
    """
    names = list(dict.fromkeys(known))
    if not names:
        return "There are none."
    lower = name.lower()
    inside = [n for n in names if lower and (lower in n.lower() or n.lower() in lower)]
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.4)
    found = list(dict.fromkeys([*close, *inside]))[:count]
    if found:
        return "Did you mean " + " or ".join(repr(n) for n in found) + "?"
    shown = ", ".join(repr(n) for n in names[:count])
    return f"Known are {shown}" + (
        f" and {len(names) - count} more." if len(names) > count else "."
    )

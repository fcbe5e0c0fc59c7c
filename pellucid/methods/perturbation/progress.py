"""How far a long run has come, shown on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar", "no_bar", "progress_bar"]

Bar = Callable[[int], None]
_PATIENCE = 1.0  # seconds after which a bar appears


def no_bar(done: int) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(show: bool | TextIO | None, title: str, total: int | None = None) -> Iterator[Bar]:
    """Show a bar with the time left, once a second has passed.

    Parameters
    ----------
    show : True and False; None for a bar if stderr is a terminal; a stream that is one.
    title : what is going on.
    total : steps to come, or None.

    Yields
    ------
    Function that takes the number of steps just done.
    """
    stream = sys.stderr if show is None or isinstance(show, bool) else show
    if show is False or (show is not True and not stream.isatty()):
        yield no_bar
        return
    began, done = time.monotonic(), 0
    shown: tuple[Progress, TaskID] | None = None

    def advance(steps: int) -> None:
        nonlocal shown, done
        done += steps
        if shown is None and time.monotonic() - began > _PATIENCE:
            shown = _started(stream, title, total, done)
        elif shown is not None:
            shown[0].advance(shown[1], steps)

    try:
        yield advance
    finally:
        if shown is not None:
            shown[0].stop()


def _started(stream: TextIO, title: str, total: int | None, done: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("Ctrl-C keeps what is done", style="dim"),
        console=Console(file=stream),
        transient=True,
    )
    progress.start()
    return progress, progress.add_task(title, total=total, completed=done)

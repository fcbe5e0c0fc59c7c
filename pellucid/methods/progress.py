"""How far a long run has come, shown on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from pellucid.methods.batching import watched

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar", "no_bar", "progress_bar", "showing_passes"]

_PATIENCE = 1.0  # seconds after which a bar appears


class Bar(Protocol):
    """Takes the number of steps just done, and how many there are if that has changed."""

    def __call__(self, steps: int, /, total: int | None = None) -> None:
        """Move on."""


def no_bar(steps: int, /, total: int | None = None) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(
    show: bool | TextIO | None, title: str, total: int | None = None, *, advice: str = ""
) -> Iterator[Bar]:
    """Show a bar with the time left, once a second has passed.

    Parameters
    ----------
    show : True and False; None for a bar if stderr is a terminal; a stream that is one.
    title : what is going on.
    total : steps to come, or None.
    advice : what stands behind the bar.

    Yields
    ------
    Function that takes the number of steps just done, and their total if it was not known.
    """
    stream = sys.stderr if show is None or isinstance(show, bool) else show
    if show is False or (show is not True and not stream.isatty()):
        yield no_bar
        return
    began, done, whole = time.monotonic(), 0, total
    shown: tuple[Progress, TaskID] | None = None

    def advance(steps: int, /, total: int | None = None) -> None:
        nonlocal shown, done, whole
        done, whole = done + steps, total or whole
        if shown is None and time.monotonic() - began > _PATIENCE:
            shown = _started(stream, title, advice)
        if shown is not None:
            shown[0].update(shown[1], completed=done, total=whole)

    try:
        yield advance
    finally:
        if shown is not None:
            shown[0].stop()


@contextmanager
def showing_passes(show: bool | TextIO, title: str) -> Iterator[None]:
    """Show how far the passes through a network are that `pellucid.methods.batching` counts."""
    before = 0
    with progress_bar(show, title) as bar:

        def watcher(done: int, total: int) -> None:
            nonlocal before
            bar(done - before, total)
            before = done

        with watched(watcher):
            yield


def _started(stream: TextIO, title: str, advice: str) -> tuple[Progress, TaskID]:
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
        TextColumn(advice, style="dim"),
        console=Console(file=stream),
        transient=True,
    )
    progress.start()
    return progress, progress.add_task(title, total=None)

"""A progress bar for long methods: on a terminal, and only if they take a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

__all__ = ["showing_progress"]

_PATIENCE = 2.0  # seconds without a bar


@contextmanager
def showing_progress(terminal: TextIO | Literal[False]) -> Iterator[None]:
    """Show how far the passes through the network are, with the time left."""
    if not terminal:
        yield
        return
    from rich.console import Console
    from rich.progress import Progress

    from pellucid.methods.batching import watched

    bar = Progress(console=Console(file=terminal), transient=True)
    began, task = time.monotonic(), bar.add_task("explaining", total=None)
    shown: list[Any] = []

    def watcher(done: int, total: int) -> None:
        if not shown and time.monotonic() - began > _PATIENCE:
            bar.start()
            shown.append(True)
        bar.update(task, completed=done, total=total)

    try:
        with watched(watcher):
            yield
    finally:
        if shown:
            bar.stop()

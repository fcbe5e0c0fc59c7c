"""Checkpointed parts of a network, run once like any others.

What is checkpointed is computed a second time on the way back, when the observers of a call are
gone: PyTorch then finds other tensors than it saw the first time, or refuses gradients by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint

__all__ = ["run_once"]

_lock = threading.Lock()
_found: dict[str, Any] = {}  # what stands under these names outside of calls
_calls = 0


class _Direct:
    """In place of the function that recomputes with a backward pass of its own."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _bare(*_arguments: Any, **_settings: Any) -> Iterator[None]:
    """In place of what is done before and after a part whose tensors are to be dropped."""
    yield


_SUBSTITUTES = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _bare}


@contextmanager
def run_once() -> Iterator[None]:
    """Let checkpointed parts keep their tensors. Calls may overlap in several threads."""
    global _calls
    names: dict[str, Any] = vars(checkpoint)
    with _lock:
        if not _calls:
            _found.update({name: names[name] for name in _SUBSTITUTES if name in names})
            names.update({name: _SUBSTITUTES[name] for name in _found})
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                names.update(_found)

"""One thread for small linear algebra.

Systems of a few hundred unknowns are solved faster by one thread, above all beside onnxruntime's,
which go on spinning for a while after a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let NumPy and SciPy compute with one thread."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()

"""Importing the libraries that Pellucid is compared with.

pytorch-grad-cam imports torchvision and OpenCV, tf-keras-vis imports deprecated, of which their
Grad-CAM needs next to nothing. In `stand_ins` there are modules with just the names that are
imported, so that tests and benchmarks need none of these packages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["stand_ins"]

_FOLDER = Path(__file__).parent / "stand_ins"


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let imports find the stand-ins, and nobody else afterwards."""
    names = {path.stem for path in _FOLDER.iterdir()}
    before = {name for name in sys.modules if name.split(".")[0] in names}
    sys.path.insert(0, str(_FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(_FOLDER))
        for name in [name for name in sys.modules if name.split(".")[0] in names]:
            if name not in before:
                del sys.modules[name]

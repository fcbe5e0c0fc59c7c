"""Reads an HDF5 file in a process of its own first.

The HDF5 library can be crashed by a file whose bytes are damaged in the right places, and a crash
takes the whole program along. What another process has read to the end is safe to read here.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from pellucid.adapters.legacy.files import Contents, read_h5
from pellucid.adapters.legacy.model import fault

__all__ = ["read_safely"]

_SECONDS, _BYTES_PER_SECOND = 60, 10 << 20
_CHILD = """
import io, sys
from pathlib import Path
from pellucid.adapters.legacy.files import read_h5
from pellucid.errors import PellucidError
name, size = sys.argv[1:]
source = io.BytesIO(sys.stdin.buffer.read()) if name == "-" else Path(name)
try:
    read_h5(source, name, int(size))
except PellucidError:
    pass
"""


def read_safely(source: Path | io.BytesIO, path: str, size: int) -> Contents:
    """Read an HDF5 file, from disk or memory, that may crash its library.

    Raises
    ------
    LoadError : it is damaged, or reading it crashes or never ends.
    """
    if sys.executable:
        _try(source, path, size)
    return read_h5(source, path, size)


def _try(source: Path | io.BytesIO, path: str, size: int) -> None:
    name = "-" if isinstance(source, io.BytesIO) else str(source.resolve())
    folders = [folder or str(Path.cwd()) for folder in sys.path]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, name, str(size)],
            input=source.getvalue() if isinstance(source, io.BytesIO) else b"",
            capture_output=True,
            timeout=_SECONDS + size / _BYTES_PER_SECOND,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise fault(path, "HDF5", "reading it never ends; the file is damaged.") from None
    if done.returncode < 0 or done.returncode > 128:
        raise fault(
            path, "HDF5", "reading it crashes the HDF5 library; the file is damaged. Copy or "
            "download it again."
        )  # fmt: skip

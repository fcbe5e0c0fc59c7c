"""What a file is, by its first bytes.

Suffixes lie: a download that failed is an HTML page named `model.onnx`, a pickle is named `.pt`.
Every loader looks at the content first, so that the message can say what the file really is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pellucid.errors import LoadError

__all__ = ["DESCRIBED", "Content", "content_of", "existing"]

Content = Literal["empty", "hdf5", "zip", "gzip", "pickle", "text", "image", "binary"]

_SIGNATURES: tuple[tuple[bytes, Content], ...] = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
)
_PICKLE = re.compile(rb"^\x80[\x02-\x05]")

DESCRIBED: dict[Content, str] = {
    "empty": "empty",
    "text": "a text file",
    "hdf5": "an HDF5 file (Keras .h5?)",
    "zip": "a zip archive (PyTorch .pt, Keras .keras?)",
    "gzip": "a compressed archive; unpack it first",
    "image": "an image",
    "pickle": "a Python pickle (PyTorch .pt?)",
    "binary": "of no kind that Pellucid knows",
}


def content_of(path: Path) -> Content:
    """Say what a file holds, by its first bytes.

    Parameters
    ----------
    path : an existing file.

    Raises
    ------
    LoadError : the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        return "empty"
    for signature, content in _SIGNATURES:
        if head.startswith(signature):
            return content
    if _PICKLE.match(head):
        return "pickle"
    # A protobuf has control bytes from its first byte on, however much text it holds.
    plain = all(byte in b"\t\n\r\f" or byte >= 32 for byte in head)
    return "text" if plain else "binary"


def existing(path: Path) -> Path:
    """Return the path if something is there, with `~` expanded.

    Raises
    ------
    LoadError : there is nothing at that path.
    """
    path = path.expanduser()
    try:
        found = path.exists()
    except OSError:
        found = False
    if not found:
        folder = path.parent if path.parent.is_dir() else None
        known = (
            sorted(p.name for p in folder.iterdir() if p.suffix == path.suffix) if folder else []
        )
        hint = f" In that folder are {', '.join(known[:3])}." if path.suffix and known else ""
        raise LoadError(f"There is no file {path}.{hint}")
    return path

"""ONNX forms on disk, so that a network is exported once.

An entry's name is the SHA-256 of everything that it follows from: architecture and weights, the
shapes it was exported for, the versions of all libraries that took part. Its content carries its
own SHA-256, so a file that is cut short or was tampered with is seen and made anew. Entries are
written beside their place and moved there, so readers and concurrent writers never meet a
half-written one. Short notes on an export, such as whether it agrees with its network, are kept
in the same way.

The environment variable `PELLUCID_CACHE` names another folder; `PELLUCID_CACHE=off` keeps
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.graph.form import OnnxForm

__all__ = ["Entry", "cached_form", "cached_note", "clear", "entries", "folder", "is_at_hand"]

_VERSION = "1"  # of what is kept and how; entries of other versions are never found
_MAGIC = b"pellucid onnx form\n"
_SUFFIX, _NOTE = ".form", ".note"
_MOST_BYTES = 8 << 30  # the entries unused for longest make room
_PROTOBUF = 1 << 31


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept form: its file, size in bytes, and when it was last used, in epoch seconds."""

    path: Path
    bytes: int
    used: float


def folder() -> Path | None:
    """Return the cache's folder, or None if nothing is to be kept."""
    given = os.environ.get("PELLUCID_CACHE")
    if given is not None:
        return None if given in ("", "off") else Path(given).expanduser() / "forms"
    import platformdirs

    return platformdirs.user_cache_path("pellucid", appauthor=False) / "forms"


def cached_form(key: Sequence[str], make: Callable[[], OnnxForm]) -> OnnxForm:
    """Return the form kept under a key, or make and keep it.

    Parameters
    ----------
    key : all that the form follows from.
    make : exports the network.
    """
    path = _path(key, _SUFFIX)
    if path is None:
        return make()
    form = _read(path)
    if form is None:
        form = make()
        if form.model.ByteSize() < _PROTOBUF:
            _write(path, form.to_bytes())
            _make_room()
    return form


def is_at_hand(key: Sequence[str]) -> bool:
    """Whether a form is kept under a key."""
    path = _path(key, _SUFFIX)
    return path is not None and path.is_file()


def cached_note(key: Sequence[str], make: Callable[[], str]) -> str:
    """Return the short text kept under a key, or make and keep it."""
    path = _path(key, _NOTE)
    payload = _payload(path) if path is not None else None
    if payload is not None:
        return payload.decode()
    note = make()
    if path is not None:
        _write(path, note.encode())
    return note


def _path(key: Sequence[str], suffix: str) -> Path | None:
    place = folder()
    digest = hashlib.sha256("\0".join([_VERSION, *key]).encode()).hexdigest()
    return None if place is None else place / (digest + suffix)


def entries(suffix: str = _SUFFIX) -> list[Entry]:
    """List the forms that are kept, the most recently used first."""
    place = folder()
    found = []
    for path in place.glob("*" + suffix) if place is not None else ():
        with contextlib.suppress(OSError):  # another process may just have removed it
            status = path.stat()
            found.append(Entry(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove all entries and return how many bytes that freed."""
    freed = 0
    for entry in (*entries(), *entries(_NOTE)):
        with contextlib.suppress(OSError):
            entry.path.unlink()
            freed += entry.bytes
    return freed


def _payload(path: Path) -> bytes | None:
    """Return what was kept, or None if it is not there or not as it was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + hashlib.sha256().digest_size
    payload = memoryview(data)[start:]
    if data[:start] != _MAGIC + hashlib.sha256(payload).digest():
        return None
    return bytes(payload)


def _read(path: Path) -> OnnxForm | None:
    payload = _payload(path)
    try:
        form = None if payload is None else OnnxForm.from_bytes(payload)
    except ValueError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return form


def _write(path: Path, payload: bytes) -> None:
    """Keep something; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="writing-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(payload).digest())
            file.write(payload)
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()


def _make_room() -> None:
    total = 0
    for entry in entries():
        total += entry.bytes
        if total > _MOST_BYTES:
            with contextlib.suppress(OSError):
                entry.path.unlink()

"""ONNX forms on disk, so that a network is exported once.

An entry's name is the SHA-256 of everything that it follows from: architecture and weights, the
shapes it was exported for, the versions of all libraries that took part. Small notes, such as the
shape of a network's input, lie beside the forms. Their content carries its
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
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.graph.form import OnnxForm

__all__ = ["Entry", "cached_form", "cached_note", "clear", "entries", "folder", "is_at_hand"]

_VERSION = "6"  # of what is kept and how; entries of other versions are never found
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
    form = _kept_form(key)
    if form is None:
        form, path = make(), _path(key, _SUFFIX)
        if path is not None and form.model.ByteSize() < _PROTOBUF:
            _write(path, form.to_bytes())
            _make_room()
    return form


def _kept_form(key: Sequence[str]) -> OnnxForm | None:
    """Return the form kept under a key, if there is one."""
    path = _path(key, _SUFFIX)
    payload = None if path is None else _read(path)
    with contextlib.suppress(ValueError):
        return None if payload is None else OnnxForm.from_bytes(payload)
    return None


def cached_note(key: Sequence[str], make: Callable[[], Any]) -> Any:
    """Return the JSON value kept under a key, or make and keep it.

    Parameters
    ----------
    key : all that the value follows from.
    make : finds the value out.
    """
    path = _path(key, _NOTE)
    if path is None:
        return make()
    with contextlib.suppress(ValueError):
        if (payload := _read(path)) is not None:
            return json.loads(payload)
    value = make()
    _write(path, json.dumps(value).encode())
    return value


def _path(key: Sequence[str], suffix: str) -> Path | None:
    place = folder()
    if place is None:
        return None
    return place / (hashlib.sha256("\0".join([_VERSION, *key]).encode()).hexdigest() + suffix)


def is_at_hand(key: Sequence[str]) -> bool:
    """Whether a form is kept under a key."""
    path = _path(key, _SUFFIX)
    return path is not None and path.is_file()


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
    """Remove everything that is kept and return how many bytes that freed."""
    freed = 0
    for entry in (*entries(), *entries(_NOTE)):
        with contextlib.suppress(OSError):
            entry.path.unlink()
            freed += entry.bytes
    return freed


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + hashlib.sha256().digest_size
    payload = memoryview(data)[start:]
    if data[:start] != _MAGIC + hashlib.sha256(payload).digest():
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return bytes(payload)


def _write(path: Path, payload: bytes) -> None:
    """Keep a block of bytes; a cache that cannot be written is done without."""
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

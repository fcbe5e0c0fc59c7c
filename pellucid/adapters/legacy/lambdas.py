"""Decides whether the bytecode of a stored Lambda can run here, and makes a function of it.

Bytecode is machine code of one Python version; another version may crash on it. Marshalled code
carries no version, so its layout and instructions are compared with this Python's before it is
accepted. All of this happens only where the caller has said `allow_code=True`.
"""

from __future__ import annotations

import base64
import dis
import marshal
import struct
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from pellucid.adapters.legacy.model import Need

__all__ = ["BytecodeError", "foreign", "function_of"]

_RESUME = {151: "Python 3.11 or 3.12", 149: "Python 3.13", 128: "Python 3.14"}
_CODE = 0xE3  # a code object, remembered for references


class BytecodeError(ValueError):
    """The bytecode is unreadable or of another Python; the message says which."""


def function_of(need: Need, names: Mapping[str, Any]) -> Callable[..., Any]:
    """Make a function of a lambda's bytecode. This runs code from the file when it is called.

    Parameters
    ----------
    need : the lambda as the reader found it.
    names : global names that the code may use.

    Raises
    ------
    BytecodeError : it was written by another version of Python, or is damaged.
    """
    stored, defaults, closure = _parts(need.code)
    data = _bytes(stored)
    if reason := _foreign(data):
        raise BytecodeError(reason)
    try:
        code = marshal.loads(data)
    except (ValueError, EOFError, TypeError) as error:
        raise BytecodeError(f"its bytecode is damaged ({error})") from error
    if not isinstance(code, types.CodeType):
        raise BytecodeError("it holds no function")
    if not _well_formed(code):
        raise BytecodeError(_other(_here()))
    cells = tuple(types.CellType(value) for value in closure or ())
    if len(cells) != len(code.co_freevars):
        raise BytecodeError("it uses variables of the program around it, which were not saved")
    values = tuple(defaults) if isinstance(defaults, (list, tuple)) else None
    return types.FunctionType(code, dict(names), code.co_name, values, cells)


def foreign(need: Need) -> str | None:
    """Say why a lambda's bytecode cannot run here, by its header alone; None where it may."""
    try:
        return _foreign(_bytes(_parts(need.code)[0]))
    except BytecodeError as error:
        return str(error)


def _parts(code: Any) -> tuple[Any, Any, Any]:
    if isinstance(code, dict):
        return code.get("code"), code.get("defaults"), code.get("closure")
    if isinstance(code, list) and code:
        return (*code, None, None)[:3]
    return code, None, None


def _bytes(stored: Any) -> bytes:
    """Keras 2 and later write base64, Keras 1 one character per byte."""
    if not isinstance(stored, str):
        raise BytecodeError("there is no bytecode in the file")
    try:
        data = base64.b64decode("".join(stored.split()), validate=True)
        if data[:1] in (b"\xe3", b"c"):
            return data
    except ValueError:
        pass
    try:
        return stored.encode("latin-1")
    except UnicodeEncodeError:
        raise BytecodeError("its bytecode is damaged") from None


def _foreign(data: bytes) -> str | None:
    """Say whether the header has another Python's layout.

    The numbers before the instructions are 4 in Python 2, 5 in 3.0 to 3.7, 6 in 3.8 to 3.10 and 5
    again from 3.11; the length of the instructions follows them.
    """
    if len(data) < 40:
        return "its bytecode is damaged"
    if data[0] == ord("c"):
        return _other("Python 2")
    if data[0] != _CODE:
        return "its bytecode is damaged"
    for count, name in ((6, "Python 3.8, 3.9 or 3.10"), (5, None)):
        place = 1 + 4 * count
        if data[place] in (ord("s"), ord("s") | 0x80):
            (length,) = struct.unpack_from("<I", data, place + 1)
            if not 0 < length <= len(data) - place:
                return "its bytecode is damaged"
            if name:
                return _other(name)
            first = data[place + 5]
            starts = {dis.opmap["RESUME"], dis.opmap["COPY_FREE_VARS"], dis.opmap["MAKE_CELL"]}
            return None if first in starts else _other(_RESUME.get(first, "Python 3.7 or older"))
    return _other("another Python")


def _here() -> str:
    return f"a Python other than {sys.version_info[0]}.{sys.version_info[1]}"


def _other(writer: str) -> str:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"its bytecode was written by {writer} and cannot run on Python {here}"


def _well_formed(code: types.CodeType) -> bool:
    """Whether every instruction exists here and has the cache entries it has here."""
    caches = getattr(dis, "_inline_cache_entries", None)
    raw, index = code.co_code, 0
    if caches is None or len(raw) % 2:
        return len(raw) % 2 == 0
    while index < len(raw):
        opcode = raw[index]
        name = dis.opname[opcode]
        if name.startswith("<"):
            return False
        entries = caches.get(name, 0) if isinstance(caches, dict) else caches[opcode]
        if any(raw[index + 2 : index + 2 + 2 * entries : 2]):
            return False
        index += 2 + 2 * entries
        if index < len(raw) and raw[index] == 0:  # a cache entry where none belongs
            return False
    nested = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return index == len(raw) and all(_well_formed(c) for c in nested)

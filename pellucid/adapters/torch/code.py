"""What a module's Python does when it is called, as a hash: another program is another network.

An export is kept under it. Written down are the functions of the modules' classes and what these
refer to: values and functions that they close over, helpers and constants of their own package.
Of other packages the name is enough, since versions are part of the key too.
"""

from __future__ import annotations

import hashlib
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["code_digest", "is_plain"]


def code_digest(module: nn.Module) -> str:
    """Hash the Python of a module and of all its parts."""
    writer = _Writer()
    for part in module.modules():
        writer.write(type(part))
        for name, value in sorted(vars(part).items()):
            if callable(value) and not isinstance(value, nn.Module):
                writer.write(name)
                writer.write(value)
    return writer.digest.hexdigest()


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a sequence of such."""
    if isinstance(value, tuple | list):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | bytes)


class _Writer:
    """Writes values into a hash, each function and class once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: set[int] = set()

    def write(self, value: Any) -> None:
        """Write what a value does, or which it is; never where it lies in memory."""
        if is_plain(value):
            self._note(repr(value))
        elif isinstance(value, Tensor | np.ndarray):
            array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
            self._note(f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}")
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._write_parts(value)

    def _write_parts(self, value: Any) -> None:
        if isinstance(value, MethodType):
            owner = value.__self__
            self.write(owner if isinstance(owner, type) else type(owner))
            self.write(value.__func__)
        elif isinstance(value, FunctionType):
            self._write_function(value)
        elif isinstance(value, CodeType):
            self._note(f"{value.co_code.hex()}{value.co_names}")
            for constant in value.co_consts:
                self.write(constant)
        elif isinstance(value, partial):
            for part in (value.func, *value.args, *sorted(value.keywords.items())):
                self.write(part)
        elif isinstance(value, tuple | list):
            for part in value:
                self.write(part)
        elif isinstance(value, nn.Module):  # that a function closes over
            self._note(str(value))
            for part in (type(value), *value.state_dict().values()):
                self.write(part)
        elif isinstance(value, type) and _package(value) not in ("torch", "builtins"):
            self._note(value.__qualname__)
            for name, member in sorted(vars(value).items()):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(function, FunctionType) or (is_plain(member) and name[:2] != "__"):
                    self._note(name)
                    self.write(function)
            for base in value.__bases__:
                self.write(base)
        else:
            self._note(getattr(value, "__qualname__", type(value).__qualname__))

    def _write_function(self, function: FunctionType) -> None:
        if _package(function) == "torch":
            self._note(f"{function.__module__}.{function.__qualname__}")
            return
        self.write(function.__code__)
        for cell in function.__closure__ or ():
            try:
                self.write(cell.cell_contents)
            except ValueError:  # it is not filled yet
                continue
        for value in (function.__defaults__, *sorted((function.__kwdefaults__ or {}).items())):
            self.write(value)
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if is_plain(value) or _package(value) == _package(function):
                self.write(value)

    def _note(self, text: str) -> None:
        self.digest.update(f"{text}\0".encode())


def _names(code: CodeType) -> list[str]:
    """Return the names that a function and the functions within it look up."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [*code.co_names, *(name for one in inner for name in _names(one))]


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "").partition(".")[0]

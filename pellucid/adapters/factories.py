"""Models named by the code that builds them: `file.py:factory`, `package.module:factory`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid.errors import LoadError, first_line, nearest

__all__ = ["FACTORY", "made_by", "made_if_named", "named"]

FACTORY = re.compile(r"^(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.]*$")
_MODELS = (("torch.nn", "Module"), ("keras", "Model"), ("tf_keras", "Model"))


def named(specification: str) -> Any:
    """Import "package.module:name" or "file.py:name" and return what has that name.

    Raises
    ------
    LoadError : the module cannot be imported, or has no such name.
    """
    place, _, attribute = specification.rpartition(":")
    try:
        with _beside(place):
            found: Any = _run(Path(place)) if _is_file(place) else importlib.import_module(place)
    except Exception as error:  # importing runs the user's own code, which may fail in any way
        said = f"{place!r} cannot be imported: {first_line(error)}."
        if not _is_file(place):
            said += " Check the name, and that its folder is on the Python path."
        raise LoadError(said) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise LoadError(f"{place!r} has no {attribute!r}. {nearest(name, known)}")
        found = getattr(found, name)
    return found


def made_by(specification: str) -> Any:
    """Import "package.module:factory" or "file.py:factory" and return what it makes.

    A class or a function is called without arguments; anything else is taken as it is.
    """
    found = named(specification)
    if not callable(found) or _is_model(found):
        return found
    try:
        with _beside(specification.rpartition(":")[0]):
            return found()
    except Exception as error:
        raise LoadError(
            f"{specification} fails: {type(error).__name__}: {first_line(error)}. It is called "
            "without arguments; write a function that gives it those it needs."
        ) from error


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _run(path: Path) -> ModuleType:
    """Run a file as a module, once; no module of the same name stands in its way."""
    name = f"pellucid:{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _beside(place: str) -> Iterator[None]:
    """Let a file import what lies beside it, as when Python runs it."""
    if not _is_file(place):
        yield
        return
    folder = str(Path(place).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def made_if_named(architecture: Any) -> Any:
    """Return what such a name of code makes, and anything else as it is."""
    named = isinstance(architecture, str) and FACTORY.match(architecture)
    return made_by(architecture) if named else architecture


def _is_model(found: Any) -> bool:
    """Say whether something is a live model, which can be called too; imports nothing."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in _MODELS)
    return any(isinstance(kind, type) and isinstance(found, kind) for kind in kinds)

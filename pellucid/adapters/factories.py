"""Models that are named by the code that builds them, `package.module:factory`."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from pellucid.errors import LoadError, first_line, nearest

__all__ = ["FACTORY", "made_by", "made_if_named", "named"]

FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_MODELS = (("torch.nn", "Module"), ("keras", "Model"), ("tf_keras", "Model"))


def named(specification: str) -> Any:
    """Import "package.module:name" and return what has that name.

    Raises
    ------
    LoadError : the module cannot be imported, or has no such name.
    """
    module_name, _, attribute = specification.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's own code, which may fail in any way
        raise LoadError(
            f"{module_name!r} cannot be imported: {first_line(error)}. Check the name, and that "
            "its folder is on the Python path."
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise LoadError(f"{module_name!r} has no {attribute!r}. {nearest(name, known)}")
        found = getattr(found, name)
    return found


def made_by(specification: str) -> Any:
    """Import "package.module:factory" and return what it makes.

    A class or a function is called without arguments; anything else is taken as it is.
    """
    found = named(specification)
    if not callable(found) or _is_model(found):
        return found
    try:
        return found()
    except Exception as error:
        raise LoadError(
            f"{specification} fails: {type(error).__name__}: {first_line(error)}. It is called "
            "without arguments; write a function that gives it those it needs."
        ) from error


def made_if_named(architecture: Any) -> Any:
    """Return what "package.module:factory" makes, and anything else as it is."""
    named = isinstance(architecture, str) and FACTORY.match(architecture)
    return made_by(architecture) if named else architecture


def _is_model(found: Any) -> bool:
    """Say whether something is a live model, which can be called too; imports nothing."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in _MODELS)
    return any(isinstance(kind, type) and isinstance(found, kind) for kind in kinds)

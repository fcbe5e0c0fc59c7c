"""Class names: reading lists of them, and finding a class by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pellucid.errors import LoadError, TargetError, nearest

__all__ = ["find_label", "load_labels"]


def load_labels(spec: Any) -> tuple[str, ...] | None:
    """Read class names, in the order of the network's outputs.

    Parameters
    ----------
    spec : None; a sequence of names; "imagenet" for the 1000 names of ImageNet-1k; a mapping or
        the path of a `.json` file, which holds a list of names, `{"0": "name"}`,
        `{"0": ["n01440764", "name"]}` or `{"name": 0}`; or the path of a text file with one
        name per line.

    Returns
    -------
    labels : the names, or None if `spec` is None. Names may repeat.

    Raises
    ------
    LoadError : the file is missing or damaged, or what it holds is no list of names.

    Examples
    --------
    >>> load_labels("imagenet")[281]
    'tabby'
    """
    if spec is None:
        return None
    if isinstance(spec, str) and spec == "imagenet":
        text = files("pellucid").joinpath("data/imagenet_classes.txt").read_text("utf-8")
        return tuple(text.splitlines())
    if isinstance(spec, str | os.PathLike):
        return _from_file(Path(spec))
    return _checked(spec, "labels=")


def find_label(name: str, labels: Sequence[str]) -> int:
    """Return the index of the class with a name.

    The exact name comes first, then the name in any case and with `_` for spaces, then one of
    the synonyms in "tabby, tabby cat".

    Raises
    ------
    TargetError : no class has the name, or several have.

    Examples
    --------
    >>> find_label("Tabby Cat", ["dog", "tabby, tabby cat"])
    1
    """
    wanted = _plain(name)
    for found in (
        [i for i, label in enumerate(labels) if label == name],
        [i for i, label in enumerate(labels) if _plain(label) == wanted],
        [i for i, label in enumerate(labels) if wanted in map(_plain, label.split(","))],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(f"{i} {labels[i]!r}" for i in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise TargetError(f"{name!r} names several classes: {shown}{more}. Give the index.")
    raise TargetError(f"No class is called {name!r}. {nearest(_plain(name), labels)}")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise LoadError(
            f"There is no file of labels {path}. Give a .txt or .json file, or 'imagenet'."
        ) from error
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is no text: expected labels in UTF-8, one per line.") from error
    except OSError as error:
        raise LoadError(f"The labels {path} cannot be read: {error.strerror}.") from error
    if path.suffix.lower() != ".json":
        lines = text.rstrip().split("\n") if text.strip() else []
        return _checked([line.strip() for line in lines], str(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoadError(f"{path} is no valid JSON: {error}.") from error
    return _checked(content, str(path))


def _checked(content: Any, source: str) -> tuple[str, ...]:
    """Turn any accepted form into a tuple of names."""
    if isinstance(content, Mapping):
        content = _ordered(content, source)
    if not isinstance(content, Iterable) or isinstance(content, bytes | str):
        raise LoadError(
            f"{source} is no list of class names but {type(content).__name__}: expected a list, "
            '{"0": "name"} or {"name": 0}.'
        )
    names = [_name(entry) for entry in content]
    for index, name in enumerate(names):
        if name is None:
            raise LoadError(f"{source}: the label of class {index} is no text.")
    if not names:
        raise LoadError(f"{source} holds no labels.")
    return tuple(name for name in names if name is not None)


def _name(entry: Any) -> str | None:
    """Take the name of "name" or ["n01440764", "name"]."""
    if isinstance(entry, list | tuple) and len(entry) == 2:
        entry = entry[1]
    return str(entry) if isinstance(entry, str) else None


def _ordered(content: Mapping[Any, Any], source: str) -> list[Any]:
    """Put a mapping from index to name, or from name to index, in the order of the indices."""
    if content and all(type(value) is int for value in content.values()):
        content = {index: name for name, index in content.items()}
    try:
        by_index = {int(key): value for key, value in content.items()}
    except (TypeError, ValueError):
        raise LoadError(
            f'{source} is no mapping of class names: expected {{"0": "name"}} or {{"name": 0}}.'
        ) from None
    for index in range(len(content)):
        if index not in by_index:
            raise LoadError(f"{source} has no label for class {index}: expected 0 to the last.")
    return [by_index[index] for index in sorted(by_index)]

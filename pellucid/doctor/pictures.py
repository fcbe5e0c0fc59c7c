"""The pictures that the doctor is given: those in a folder, and their classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from pellucid.errors import InputError

__all__ = ["pictures_in", "read_truth"]

_MOST_FILES = 20_000


def pictures_in(
    folder: Path, truth: Mapping[str, str] | None = None
) -> tuple[list[Path], list[str] | None]:
    """Return the pictures of a folder, and their classes if it has a subfolder for each.

    Parameters
    ----------
    folder : pictures, or subfolders of pictures that are named after their class.
    truth : classes by file name, for pictures that lie together; those not in it are left out.

    Raises
    ------
    InputError : it is no folder, or holds no pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one that holds a few pictures.")
    known = tuple(Image.registered_extensions())
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in known]
    files = [path for path in files[:_MOST_FILES] if path.is_file()]
    if truth is not None:
        found = [(path, _named(truth, path, folder)) for path in files]
        kept = [(path, label) for path, label in found if label is not None]
        if not kept:
            raise InputError(f"None of the pictures in {folder} is named in the list of classes.")
        return [path for path, _ in kept], [label for _, label in kept]
    inside = [path for path in files if path.parent != folder]
    if inside and len({path.relative_to(folder).parts[0] for path in inside}) > 1:
        return inside, [path.relative_to(folder).parts[0] for path in inside]
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(known[:4])} and the like).")
    return files, None


def _named(truth: Mapping[str, str], path: Path, folder: Path) -> str | None:
    names = (path.relative_to(folder).as_posix(), path.name, path.stem)
    return next((truth[name] for name in names if name in truth), None)


def read_truth(path: Path) -> dict[str, str]:
    """Read a list of classes: a line for each picture, its file name and its class.

    Commas, semicolons or tabs part the two.

    Raises
    ------
    InputError : it cannot be read, or a line has no two parts.
    """
    try:
        lines = path.expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"The list of classes {path} cannot be read: {reason}.") from error
    lines = [line for line in lines if line.strip()]
    mark = next((m for m in "\t;," if lines and m in lines[0]), ",")
    rows = [[part.strip() for part in row] for row in csv.reader(lines, delimiter=mark)]
    if bad := [index for index, row in enumerate(rows, 1) if len(row) < 2]:
        raise InputError(
            f"{path}, line {bad[0]}: expected the file name of a picture, a comma, and its class."
        )
    return {row[0]: row[1] for row in rows}

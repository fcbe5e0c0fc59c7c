"""Where the files of a command go, settled before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import PellucidError
from pellucid.explanation import SUFFIXES

__all__ = ["Outputs", "planned"]

_PICTURES = (".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Outputs:
    """The files to write.

    Attributes
    ----------
    files : one per image.
    grid : for all images together, or None where there is only one.
    """

    files: tuple[Path, ...]
    grid: Path | None

    def make_folder(self) -> None:
        """Make the folder they go to.

        Raises
        ------
        PellucidError : it cannot be made.
        """
        folder = self.files[0].parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PellucidError(
                f"The folder {folder} cannot be made: {error.strerror or error}."
            ) from error


def planned(
    images: Sequence[Path], method: str, out: str | None, inputs: Iterable[Path] = ()
) -> Outputs:
    """Choose the files, and check that they can be written, without touching anything.

    Earlier results are replaced. A file that the command reads never is: a free name is taken
    instead, or `--out` refused.

    Parameters
    ----------
    images : the pictures that are explained.
    method : goes into the names, `cat-grad-cam.png`.
    out : a folder, or for one image a file; None is the current folder.
    inputs : other files that the command reads.

    Raises
    ------
    PellucidError : `out` is no place for these files.
    """
    read = {_key(path) for path in (*images, *inputs)}
    if out is None:
        return _in_folder(Path(), images, method, read)
    path = Path(out).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir() or out.endswith(("/", os.sep)):
        return _in_folder(path, images, method, read)
    if suffix in SUFFIXES:
        if len(images) > 1:
            raise PellucidError(
                f"--out {out} is one file, and there are {len(images)} images: give a folder."
            )
        if _key(path) in read:
            raise PellucidError(f"--out {out} would overwrite a file that this command reads.")
        _check_folder(path.parent)
        return Outputs((path,), None)
    if suffix in _PICTURES or path.exists():
        raise PellucidError(
            f"--out {out}: give a folder, or a file that ends in {', '.join(SUFFIXES)}."
        )
    return _in_folder(path, images, method, read)


def _in_folder(folder: Path, images: Sequence[Path], method: str, read: set[str]) -> Outputs:
    _check_folder(folder)
    taken = set(read)
    names = [image.stem for image in images] + (["grid"] if len(images) > 1 else [])
    files = []
    for name in names:
        path, number = folder / f"{name}-{method}.png", 1
        while _key(path) in taken:
            number += 1
            path = folder / f"{name}-{number}-{method}.png"
        if path.is_dir():
            raise PellucidError(f"{path} is a folder: move it, or name another folder with --out.")
        taken.add(_key(path))
        files.append(path)
    grid = files.pop() if len(images) > 1 else None
    return Outputs(tuple(files), grid)


def _key(path: Path) -> str:
    """Return what two paths of the same file share, also where case does not count."""
    return os.path.realpath(path.expanduser()).casefold()


def _check_folder(folder: Path) -> None:
    """Check that files can be made in a folder, or the folder itself."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise PellucidError(f"Nothing can be written to {folder}: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PellucidError(f"Nothing can be written to {folder}: no permission.")

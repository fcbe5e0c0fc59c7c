"""Opens model files and takes plain data out of them, trusting nothing they say.

HDF5, zip, JSON and YAML libraries raise whatever they like on damaged bytes and allocate what a
header declares. Everything goes through `guarded` and a `Budget`, so that a bad file ends in one
`LoadError` and in bounded memory. Links to other files are never followed, nothing is unpacked to
disk, no object is unpickled.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from pellucid.adapters.legacy.model import Stored, fault
from pellucid.errors import PellucidError

__all__ = [
    "Archive", "Budget", "Contents", "Kind", "guarded", "kind_of", "open_keras_zip", "read_h5",
    "read_text",
]  # fmt: skip

Kind = Literal["hdf5", "zip", "json", "yaml"]

_TEXT_LIMIT = 64 << 20  # bytes of architecture; the largest known networks need one
_SLACK = 64 << 20  # bytes that any file may declare
_RATIO = 64  # bytes declared per byte of file beyond that
_NODES = 2_000_000  # objects in an architecture after aliases are expanded
_DEPTH = 200


class Budget:
    """How many bytes a file may still claim, in proportion to its size."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.left = _SLACK + _RATIO * size

    def spend(self, count: int, place: str) -> None:
        """Claim bytes before they are allocated."""
        self.left -= count
        if count < 0 or self.left < 0:
            raise fault(
                self.path,
                place,
                f"it declares {count:,} bytes, out of proportion to the file. The file is damaged "
                "or was made to exhaust memory.",
            )


@contextmanager
def guarded(path: str, place: str) -> Iterator[None]:
    """Turn whatever a parser raises into one `LoadError`."""
    try:
        yield
    except PellucidError:
        raise
    except RecursionError as error:
        raise fault(path, place, "it is nested too deeply to be a model.") from error
    except Exception as error:  # parsers of foreign bytes raise anything
        text = " ".join(str(error).split())[:300]
        raise fault(path, place, f"unreadable: {text or type(error).__name__}.") from error


def kind_of(path: Path) -> Kind:
    """Say what a file is from its first bytes.

    Raises
    ------
    LoadError : it is missing, empty, a folder, or nothing known.
    """
    name = str(path)
    if not path.exists():
        raise fault(name, "", "there is no such file.")
    if path.is_dir():
        raise fault(name, "", "this is a folder; a Keras file is expected.")
    with guarded(name, "file"), path.open("rb") as file:
        head = file.read(2048)
    if not head:
        raise fault(name, "", "the file is empty; copy or download it again.")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK"):
        return "zip"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        raise fault(
            name,
            "",
            "this is an HTML or XML page, not a model: the download has failed. Download it again.",
        )
    if text[:1] in b'{"[':
        return "json"
    if b"\0" not in head and (b"class_name" in head or path.suffix in (".yaml", ".yml")):
        return "yaml"
    raise fault(
        name,
        "",
        "neither HDF5, nor a .keras archive, nor a JSON or YAML architecture: "
        f"it begins with {head[:8]!r}.",
    )


def read_text(path: Path, kind: Kind) -> dict[str, Any]:
    """Read an architecture from JSON or YAML."""
    name = str(path)
    with guarded(name, "architecture"):
        if path.stat().st_size > _TEXT_LIMIT:
            raise fault(name, "", f"an architecture of {path.stat().st_size:,} bytes is refused.")
        text = path.read_text(encoding="utf-8-sig")
        return _tree(name, json.loads(text) if kind == "json" else _yaml(text))


def _yaml(text: str) -> Any:
    """Read YAML as plain data; the few Python objects that Keras wrote are read as such too."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def sequence(loader: Any, node: Any) -> Any:
        return loader.construct_sequence(node, deep=True)

    def wrapped(loader: Any, node: Any) -> Any:
        return sequence(loader, node)[0]

    def dtype(loader: Any, node: Any) -> str:
        return str(loader.construct_mapping(node, deep=True)["args"][0])

    def scalar(loader: Any, node: Any) -> Any:
        kind, data = sequence(loader, node)
        if not re.fullmatch(r"[iuf][1248]", kind):
            raise ValueError(f"a number of type {kind[:20]!r}")
        return np.frombuffer(data, f"<{kind}")[0].item()

    python = "tag:yaml.org,2002:python/"
    wrappers = "object/apply:tensorflow.python.training.tracking.data_structures."
    for tag, read in {
        "tuple": sequence,
        "unicode": lambda loader, node: loader.construct_scalar(node),
        "object/apply:numpy.dtype": dtype,
        "object/apply:numpy.core.multiarray.scalar": scalar,
        f"{wrappers}ListWrapper": wrapped,
        f"{wrappers}_DictWrapper": wrapped,
    }.items():
        Loader.add_constructor(python + tag, read)
    return yaml.load(text, Loader)


def _tree(path: str, tree: Any) -> dict[str, Any]:
    """Check that parsed text is an object of bounded size (YAML aliases can multiply)."""
    if isinstance(tree, str):  # Keras 1 and 2 users often saved json.dumps(model.to_json())
        tree = json.loads(tree)
    if not isinstance(tree, dict):
        raise fault(path, "architecture", f"a {type(tree).__name__}, not an object.")
    count, stack = 0, [(tree, 0)]
    while stack:
        item, depth = stack.pop()
        count += 1
        if count > _NODES or depth > _DEPTH:
            raise fault(path, "architecture", "too large or too deeply nested to be a model.")
        inner = item.values() if isinstance(item, dict) else item if type(item) is list else ()
        stack.extend((value, depth + 1) for value in inner)
    return tree


@contextmanager
def open_h5(source: Path | io.BytesIO, path: str) -> Iterator[h5py.File]:
    """Open HDF5, from disk or memory."""
    with guarded(path, "HDF5"):
        try:
            file = h5py.File(source, "r")
        except OSError as error:
            size = len(source.getbuffer()) if isinstance(source, io.BytesIO) else (
                source.stat().st_size
            )  # fmt: skip
            cut = "truncated" in str(error)
            reason = "it is truncated" if cut else "its structure is damaged"
            raise fault(
                path, "", f"this HDF5 file cannot be opened: {reason} ({size:,} bytes are here). "
                "Copy or download it again."
            ) from error  # fmt: skip
        with file:
            yield file


@dataclass
class Contents:
    """What an HDF5 file of Keras holds."""

    config: dict[str, Any] | None = None
    version: str = ""
    backend: str = ""
    whole: bool = False
    groups: list[tuple[str, list[Stored]]] | None = None
    store: dict[str, np.ndarray[Any, Any]] | None = None


def read_h5(source: Path | io.BytesIO, path: str, size: int) -> Contents:
    """Read everything from an HDF5 file: architecture, producer, weights."""
    found, budget = Contents(), Budget(path, size)
    with open_h5(source, path) as file:
        group = file.get("model_weights", file)
        found.config, found.whole = stored_config(file, path), "model_weights" in file
        found.version = attribute(file, "keras_version") or attribute(group, "keras_version")
        found.backend = attribute(file, "backend") or attribute(group, "backend")
        listed = any(key.startswith("layer_names") for key in group.attrs)
        stores = ("layers", "_layer_checkpoint_dependencies", "vars")
        if not listed and found.config is None and any(key in file for key in stores):
            found.store = read_store(file, path, budget)
        else:
            found.groups = read_groups(file, path, budget)
    return found


def stored_config(file: h5py.File, path: str) -> dict[str, Any] | None:
    """Return the architecture in a whole-model file, `None` if it holds none."""
    raw = file.attrs.get("model_config")
    if raw is None:
        return None
    with guarded(path, "attribute model_config"):
        return _tree(path, json.loads(_text(raw)))


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.item() if value.ndim == 0 else "".join(map(str, value.tolist()))
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def attribute(file: h5py.Group, name: str) -> str:
    """Return a text attribute, "" if absent."""
    value = file.attrs.get(name)
    return "" if value is None else _text(value)


def _names(group: h5py.Group, key: str) -> list[str] | None:
    """Return a list attribute; long ones are cut into `key0`, `key1`, ... by Keras."""
    if key in group.attrs:
        return [_text(name) for name in np.atleast_1d(group.attrs[key])]
    parts: list[str] = []
    while f"{key}{(index := len(parts))}" in group.attrs and index < 10_000:
        parts.append(f"{key}{index}")
    if not parts:
        return None
    return [_text(name) for part in parts for name in np.atleast_1d(group.attrs[part])]


def read_groups(file: h5py.File, path: str, budget: Budget) -> list[tuple[str, list[Stored]]]:
    """Read the weights of a Keras 1 or 2 file: one group per layer, arrays in order."""
    group = _child(file, "model_weights", path) if "model_weights" in file else file
    names = _names(group, "layer_names")
    if names is None:
        raise fault(path, "weights", "the list of layers (layer_names) is missing.")
    found = []
    for name in names:
        inner = _child(group, name, path)
        stored = []
        for weight in _names(inner, "weight_names") or []:
            place = f"layer {name!r}, array {weight!r}"
            stored.append(Stored(weight, _array(inner, weight, path, place, budget)))
        found.append((name, stored))
    return found


def read_store(file: h5py.File, path: str, budget: Budget) -> dict[str, np.ndarray[Any, Any]]:
    """Read a Keras-3 weights store: arrays by path, `layers/conv2d_1/vars/0`."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    stack = [("", file)]
    while stack:
        prefix, group = stack.pop()
        for name in group:
            inside = f"{prefix}{name}"
            if not prefix and name in ("optimizer", "metrics", "optimizer_weights"):
                continue
            if inside.count("/") > _DEPTH:
                raise fault(path, inside[:80], "nested too deeply.")
            item = _child(group, name, path, dataset_too=True)
            if isinstance(item, h5py.Group):
                stack.append((inside + "/", item))
            else:
                found[inside] = _array(group, name, path, inside, budget)
    return found


def _child(group: h5py.Group, name: str, path: str, *, dataset_too: bool = False) -> Any:
    """Return a member, never through a link that leads out of the file."""
    here = group
    for part in name.split("/"):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            raise fault(path, name, "missing in the file.")
        if not isinstance(link, h5py.HardLink):
            raise fault(path, name, "a link instead of data; links are not followed.")
        here = here[part]
    if not dataset_too and not isinstance(here, h5py.Group):
        raise fault(path, name, "an array where a group of arrays is expected.")
    return here


def _array(
    group: h5py.Group, name: str, path: str, place: str, budget: Budget
) -> np.ndarray[Any, Any]:
    data = _child(group, name, path, dataset_too=True)
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise fault(path, place, "not an array stored in this file.")
    budget.spend(int(data.size or 0) * data.dtype.itemsize, place)
    if data.chunks:
        chunk = int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize
        budget.spend(chunk, place)
        budget.left += chunk
    if data.dtype.kind == "V" and attribute(data, "dtype") == "bfloat16":
        bits = data[()].view(np.uint16).astype(np.uint32) << 16
        return np.asarray(bits.view(np.float32))
    if data.dtype.kind not in "fiub":
        raise fault(path, place, f"it holds {data.dtype}, not numbers.")
    return np.asarray(data[()])


class Archive:
    """The members of a `.keras` file that matter, read without unpacking it."""

    def __init__(
        self, config: dict[str, Any], metadata: dict[str, Any], weights: io.BytesIO, odd: list[str]
    ) -> None:
        self.config = config
        self.metadata = metadata
        self.weights = weights
        self.odd = odd


def open_keras_zip(path: Path) -> Archive:
    """Read the configuration, metadata and weights of a `.keras` archive into memory."""
    name = str(path)
    budget = Budget(name, path.stat().st_size)
    with guarded(name, "zip archive"), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        odd = [m for m in members if m.startswith(("/", "\\")) or ".." in Path(m).parts]
        if "config.json" not in members:
            raise fault(
                name, "config.json", "missing in the archive: without it there is no architecture. "
                "Give it as architecture=."
            )  # fmt: skip
        if "model.weights.h5" not in members:
            raise fault(
                name, "model.weights.h5", "missing in the archive: the model has no weights. "
                "Save it again with Keras, or give the weights as a file of their own."
            )  # fmt: skip
        config = _tree(name, json.loads(_member(archive, "config.json", name, budget)))
        raw = _member(archive, "metadata.json", name, budget) if "metadata.json" in members else b""
        metadata = _tree(name, json.loads(raw)) if raw else {}
        weights = io.BytesIO(_member(archive, "model.weights.h5", name, budget))
    return Archive(config, metadata, weights, odd)


def _member(archive: zipfile.ZipFile, member: str, path: str, budget: Budget) -> bytes:
    info = archive.getinfo(member)
    budget.spend(info.file_size, member)
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise fault(path, member, "longer than the archive declares.")
    return data

"""Reads what TensorFlow 2 saves, checkpoints and SavedModels of tf.keras, without TensorFlow.

A checkpoint is a sorted table (`.index`, LevelDB's format) of where each array lies in the data
files, and a graph of objects that says whose it is. A SavedModel is a checkpoint beside a graph of
operations; where tf.keras wrote it, the configuration of its layers is stored as well.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.legacy.config import inner_model
from pellucid.adapters.legacy.model import Config, Notes, Stored, fault
from pellucid.adapters.legacy.variables import variables
from pellucid.adapters.legacy.weights import Found, assemble, complete, takes_weights
from pellucid.errors import UnsupportedError

__all__ = ["Checkpoint", "assign_checkpoint", "open_saved_model", "prefix_of", "saved_with"]

_MAGIC = 0xDB4775248B80FB57
_TYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "bf16",
    17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_LISTS = frozenset({
    "keras_api", "variables", "trainable_variables", "non_trainable_variables", "optimizer",
    "regularization_losses", "signatures", "metrics", "_self_tracked_trackables",
})  # fmt: skip
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number that never ends")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Walk over the fields of a protocol buffer: number and value, bytes or integer."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, place = _varint(data, place)
        if size is None or place + size > len(data):
            raise ValueError("a field that reaches beyond the end")
        yield key >> 3, data[place : place + size]
        place += size


@dataclass
class _Object:
    children: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def prefix_of(path: Path) -> Path | None:
    """Return the common part of a checkpoint's file names if `path` means one."""
    name = re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name)
    prefix = path.with_name(name)
    return prefix if path.with_name(name + ".index").is_file() else None


class Checkpoint:
    """The arrays of a TensorFlow checkpoint, by the objects that own them."""

    def __init__(self, prefix: Path) -> None:
        self.prefix, self.path = prefix, str(prefix)
        index = prefix.with_name(prefix.name + ".index")
        if not index.is_file():
            raise fault(self.path, index.name, "missing: the folder holds no weights. Copy all of "
                        "its files.")  # fmt: skip
        entries = dict(_table(index.read_bytes()))
        self.shards = next((v for n, v in _fields(entries.pop(b"", b"")) if n == 1), 1)
        self.entries = {key.decode(): dict(_entry(value)) for key, value in entries.items()}
        self.objects = self._graph()

    def _graph(self) -> list[_Object]:
        if _GRAPH not in self.entries:
            raise fault(self.path, _GRAPH, "missing: this is a checkpoint of TensorFlow 1, which "
                        "does not say which layer an array belongs to.")  # fmt: skip
        raw = self._bytes(_GRAPH)
        size, place = _varint(raw, 0)
        found = []
        for number, node in _fields(raw[place + 4 : place + 4 + size]):  # a checksum between them
            if number != 1:
                continue
            one = _Object()
            for kind, value in _fields(node):
                parts = dict(_fields(value)) if kind in (1, 2) else {}
                if kind == 1:
                    one.children[parts.get(2, b"").decode()] = int(parts.get(1, 0))
                elif kind == 2:
                    one.keys[parts.get(1, b"").decode()] = parts.get(3, b"").decode()
            found.append(one)
        return found

    def _bytes(self, key: str) -> bytes:
        entry = self.entries[key]
        name = f"{self.prefix.name}.data-{entry.get('shard', 0):05d}-of-{self.shards:05d}"
        file = self.prefix.with_name(name)
        if not file.is_file():
            raise fault(self.path, name, "missing: the weights are incomplete. Copy all files.")
        offset, size = entry.get("offset", 0), entry.get("size", 0)
        if offset + size > file.stat().st_size:
            raise fault(self.path, name, f"truncated: {key!r} should lie beyond its end.")
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def array(self, key: str) -> NDArray[Any]:
        """Read one array."""
        if key not in self.entries:
            raise fault(self.path, key, "the checkpoint lacks this array.")
        entry = self.entries[key]
        kind, shape = _TYPES.get(entry.get("dtype", 0)), tuple(entry.get("shape", ()))
        if kind is None:
            raise fault(self.path, key, f"it holds type number {entry.get('dtype')}, not numbers.")
        raw = self._bytes(key)
        if kind == "bf16":
            bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            return np.asarray(bits.view(np.float32).reshape(shape))
        return np.frombuffer(raw, kind).reshape(shape)

    def weighs(self, node: int) -> bool:
        """Whether an object owns more than the state of a random generator."""
        return any("_generator/" not in f"{path}/" for path in self.owned(node))

    def owned(self, node: int) -> dict[str, str]:
        """Return the variables under an object: attribute path to array key."""
        found: dict[str, str] = {}
        stack, seen = [("", node)], set()
        while stack:
            path, current = stack.pop()
            if current in seen or not 0 <= current < len(self.objects):
                continue
            seen.add(current)
            one = self.objects[current]
            if "VARIABLE_VALUE" in one.keys:
                found[path] = one.keys["VARIABLE_VALUE"]
            for name, child in one.children.items():
                if name not in _LISTS:
                    stack.append((f"{path}/{name}" if path else name, child))
        return found


def _entry(data: bytes) -> Iterator[tuple[str, Any]]:
    for number, value in _fields(data):
        if number == 2:
            sizes = [dict(_fields(dim)).get(1, 0) for kind, dim in _fields(value) if kind == 2]
            yield "shape", sizes
        elif number in (1, 3, 4, 5):
            yield {1: "dtype", 3: "shard", 4: "offset", 5: "size"}[number], value


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Walk over the entries of a LevelDB table."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("it is no checkpoint index, or is truncated")
    place = len(data) - 48
    for _ in range(2):  # the handle of the meta index, which is skipped
        _, place = _varint(data, place)
    offset, place = _varint(data, place)
    size, _ = _varint(data, place)
    for _, handle in _block(data, offset, size):
        start, after = _varint(handle, 0)
        length, _ = _varint(handle, after)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 5 > len(data) or size < 4:
        raise ValueError("a block reaches beyond the end")
    if data[offset + size]:
        raise ValueError("a compressed block, which TensorFlow does not write")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


# ---- SavedModels ---------------------------------------------------------------------------------


def open_saved_model(folder: Path) -> tuple[Config, Checkpoint, str]:
    """Return the Keras configuration, the weights and the TensorFlow version of a SavedModel.

    Raises
    ------
    UnsupportedError : it holds a graph of operations and no Keras layers.
    """
    name = str(folder)
    graph = (folder / "saved_model.pb").read_bytes()
    meta = dict(_fields(next((v for n, v in _fields(graph) if n == 2), b"")))
    version = dict(_fields(meta.get(1, b""))).get(5, b"").decode()
    asset = folder / "assets" / "saved_model.json"  # TensorFlow 1.15's own Keras export
    text = asset.read_text() if asset.is_file() else _metadata(folder, meta)
    checkpoint = folder / "variables" / "variables"
    if not text:
        raise UnsupportedError(
            f"{name}: this SavedModel holds a graph of operations and no Keras layers."
        )
    return json.loads(text), Checkpoint(checkpoint), version


def saved_with(folder: Path) -> str:
    """Return the version of TensorFlow that wrote a SavedModel, or "" where it does not say it."""
    try:
        graph = (folder / "saved_model.pb").read_bytes()
        meta = dict(_fields(next((v for n, v in _fields(graph) if n == 2), b"")))
        return str(dict(_fields(meta.get(1, b""))).get(5, b"").decode())
    except (OSError, ValueError, IndexError, AttributeError, TypeError):
        return ""


def _metadata(folder: Path, meta: dict[int, Any]) -> str:
    """Find what Keras wrote of the root object: in a file of its own since TensorFlow 2.5."""
    file = folder / "keras_metadata.pb"
    if file.is_file():
        for number, node in _fields(file.read_bytes()):
            parts = dict(_fields(node)) if number == 1 else {}
            if parts.get(3) == b"root":
                return str(parts.get(5, b"").decode())
        return ""
    root = next((v for n, v in _fields(meta.get(7, b"")) if n == 1), b"")
    user = dict(_fields(dict(_fields(root)).get(4, b"")))
    return str(user.get(3, b"").decode()) if user.get(1, b"").startswith(b"_tf_keras") else ""


# ---- arrays to layers ----------------------------------------------------------------------------


def assign_checkpoint(checkpoint: Checkpoint, config: Config, notes: Notes) -> Found:
    """Distribute a checkpoint's arrays over the layers of the architecture."""
    found: Found = {}
    root = checkpoint.objects[0].children
    if not any(name.startswith("layer_with_weights") for name in root) and "model" in root:
        _assign(checkpoint, config, root["model"], "", found, notes)
    else:
        _assign(checkpoint, config, 0, "", found, notes)
    return complete(found, config["config"]["layers"], notes)


def _assign(
    checkpoint: Checkpoint, model: Config, node: int, path: str, found: Found, notes: Notes
) -> None:
    children = checkpoint.objects[node].children
    takers = [layer for layer in model["config"]["layers"] if takes_weights(layer)]
    places = {
        int(name.rsplit("-", 1)[1]): node
        for name, node in children.items()
        if name.startswith("layer_with_weights-") and checkpoint.weighs(node)
    }
    count = len(places)
    if count != len(takers):
        raise notes.fault(
            path.strip("/"), f"the checkpoint has weights for {count} layers, the architecture has "
            f"{len(takers)} layers with weights."
        )  # fmt: skip
    for (_, child), layer in zip(sorted(places.items()), takers, strict=True):
        inside = path + layer["name"]
        if inner := inner_model(layer):
            if inner is not layer:
                child = checkpoint.objects[child].children["layer"]
            _assign(checkpoint, inner, child, inside + "/", found, notes)
            continue
        owned = checkpoint.owned(child)
        names = list(variables(layer) or sorted(owned))
        stored = [Stored(n, checkpoint.array(_find(n, owned, inside, notes))) for n in names]
        found[inside] = assemble(layer, stored, notes, inside)


def _find(name: str, owned: dict[str, str], path: str, notes: Notes) -> str:
    """Find a layer's variable among the attributes of the saved object."""
    if name in owned:
        return owned[name]
    part, _, last = name.rpartition(".")
    for attribute, key in owned.items():
        own = attribute.split("/")[-1]
        fits = own in (last, f"adapt_{last}", f"depthwise_{last}")
        if fits and (not part or f"/{attribute}".replace("/_", "/").startswith(f"/{part}_")):
            return key
    raise notes.fault(f"layer {path!r}", f"the checkpoint lacks its {name!r}.")

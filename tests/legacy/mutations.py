"""Damages model files at random, in their bytes and in their structure, and opens what comes out.

Run as a program, in a process of its own with limits on memory and time:

    python mutations.py KIND[+build] SOURCE COUNT SEED [WEIGHTS or ARCHITECTURE]

It prints how many were refused and how many opened, and dies of anything but a `PellucidError`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECONDS = 120  # for one file
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 10**12, -(10**12), 1.5, float("inf"), "", "x", "a/b", "../x",
    "Conv2D", "Lambda", "\0", "é" * 50, [], {}, [None], [[[]]], [1] * 40, {"class_name": "Dense"},
    {"class_name": "__lambda__", "config": {}}, {"module": "os", "class_name": "system"},
)  # fmt: skip


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Overwrite, cut out or insert a few bytes, or cut the end off."""
    changed = bytearray(data)
    if chance.random() < 0.05:
        return bytes(changed[: chance.randrange(len(changed) + 1)])
    for _ in range(chance.choice((1, 1, 1, 4, 32))):
        place, cut = chance.randrange(max(len(changed), 1)), chance.random()
        if cut < 0.8 and changed:
            changed[place] = chance.randrange(256)
        elif cut < 0.9:
            del changed[place : place + chance.randrange(1, 64)]
        else:
            changed[place:place] = chance.randbytes(chance.randrange(1, 64))
    return bytes(changed)


def mutate_tree(tree: Any, chance: random.Random) -> Any:
    """Delete, replace, repeat or rename something in what JSON holds."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(value, dict | list):
                visit(value)

    visit(tree)
    for _ in range(chance.choice((1, 1, 2, 5))):
        node, key = chance.choice(places)
        if isinstance(node, dict) and key not in node:
            continue
        if isinstance(node, list) and key >= len(node):
            continue
        what = chance.random()
        if what < 0.25:
            del node[key]
        elif what < 0.75:
            node[key] = chance.choice(_STRANGE)
        elif what < 0.9 or isinstance(node, dict):
            other, name = chance.choice(places)
            if isinstance(other, dict):
                node[key] = json.loads(json.dumps(other.get(name)))
        else:
            node.insert(key, json.loads(json.dumps(node[key])))
    return tree


def mutate_h5(path: Path, chance: random.Random) -> None:
    """Change the architecture or the arrays of an HDF5 file through the library."""
    import h5py
    import numpy as np

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        config = file.attrs.get("model_config")
        if config is not None and chance.random() < 0.6:
            text = config.decode() if isinstance(config, bytes) else config
            file.attrs["model_config"] = json.dumps(mutate_tree(json.loads(text), chance)).encode()
            return
        name = chance.choice(names)
        item, what = file[name], chance.random()
        if what < 0.3:
            del file[name]
        elif what < 0.6:
            shape = tuple(chance.choice((0, 1, 2, 3, 7)) for _ in range(chance.randrange(5)))
            kind = chance.choice(("f4", "f8", "f2", "i8", "u1", "S4", "c8", "?"))
            del file[name]
            file.create_dataset(name, data=np.zeros(shape, kind))
        elif what < 0.7:
            del file[name]
            file[name] = h5py.SoftLink(chance.choice(names))
        elif what < 0.85 and len(item.attrs):
            key = chance.choice(list(item.attrs))
            item.attrs[key] = chance.choice((b"", b"x", 3, -1.5, [b"a", b"b"], np.zeros((2, 2))))
        else:
            file.move(name, chance.choice(("moved", "layers/x/vars/0", "model_weights/other")))


def mutate_zip(path: Path, chance: random.Random) -> None:
    """Change the members of a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    what, name = chance.random(), chance.choice(list(members))
    if what < 0.6:
        members["config.json"] = json.dumps(
            mutate_tree(json.loads(members["config.json"]), chance)
        ).encode()
    elif what < 0.75:
        members[name] = mutate_bytes(members[name], chance)
    elif what < 0.85:
        del members[name]
    else:
        members[chance.choice(("../x", "/x", "a/" * 40, "config.json/x"))] = members.pop(name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def mutate_graph(path: Path, chance: random.Random) -> None:
    """Change the nodes of a frozen graph."""
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef()
    graph.ParseFromString(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3))):
        node, what = chance.choice(graph.node), chance.random()
        if what < 0.2:
            node.op = chance.choice([n.op for n in graph.node] + ["Bad", "Conv3D", "Where"])
        elif what < 0.4 and node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice(
                [n.name for n in graph.node] + ["none", "^x", ":0"]
            )
        elif what < 0.6 and node.attr:
            del node.attr[chance.choice(list(node.attr))]
        elif what < 0.8 and "value" in node.attr:
            dims = node.attr["value"].tensor.tensor_shape.dim
            dims.add().size = chance.choice((0, 1, 2, -1, 10**9, 2**62))
        elif what < 0.9:
            graph.node.remove(node)
        else:
            node.name = chance.choice(("", "x", graph.node[0].name))
        if not graph.node:
            break
    path.write_bytes(graph.SerializeToString())


def mutate_folder(path: Path, chance: random.Random) -> None:
    """Damage one file of a SavedModel."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    file = chance.choice(files)
    if chance.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(mutate_bytes(file.read_bytes(), chance))


def mutate_text(path: Path, chance: random.Random) -> None:
    """Change an architecture as JSON or YAML."""
    import yaml

    tree = mutate_tree(yaml.safe_load(path.read_text()), chance)
    path.write_text(yaml.safe_dump(tree) if path.suffix != ".json" else json.dumps(tree))


STRUCTURAL: dict[str, Callable[[Path, random.Random], None]] = {
    "h5": mutate_h5, "keras": mutate_zip, "text": mutate_text, "graph": mutate_graph,
    "folder": mutate_folder, "program": mutate_folder, "weights": mutate_h5,
}  # fmt: skip
_CONVERTED = ("graph", "program")


def opener(kind: str, other: str | None, built: bool) -> Callable[[Path], Any]:
    """Return what opens a file of a kind, as `pellucid.load` does, without running the model.

    Parameters
    ----------
    kind : a key of `STRUCTURAL`.
    other : the file of the weights, or for weights that of the architecture.
    built : whether to build the Keras model, not only to read the file.
    """
    if kind in _CONVERTED:
        from pellucid.adapters.tensorflow.conversion import Request, converted

        return lambda path: converted(Request(path))
    from pellucid.adapters.legacy import read

    def opened(path: Path) -> Any:
        if kind == "weights":
            legacy = read(path, architecture=other)
        else:
            legacy = read(path, weights=None if other is None else Path(other))
        if built:
            from pellucid.adapters.legacy.build import build

            build(legacy)

    return opened


def fork_instead() -> None:
    """Let the first reading of HDF5 happen in a fork, which is a hundred times faster to start."""
    from pellucid.adapters.legacy import isolation

    def first_read(source: Any, path: str, size: int) -> None:
        child = os.fork()
        if not child:
            signal.alarm(_SECONDS // 12)
            with contextlib.suppress(BaseException):
                isolation.read_h5(source, path, size)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise isolation.fault(path, "HDF5", "reading it crashes the HDF5 library.")

    isolation._try = first_read  # type: ignore[assignment]


def main(kind: str, source: str, count: str, seed: str, weights: str | None = None) -> None:
    """Damage a file many times and open each."""
    from pellucid.errors import PellucidError

    kind, _, built = kind.partition("+")
    whole, chance = Path(source), random.Random(int(seed))
    open_it = opener(kind, weights, bool(built))
    _limit(8 << 30 if built or kind in _CONVERTED else 2 << 30)
    if not built:  # a fork of a process that runs TensorFlow's threads may hang
        fork_instead()
    told = {"refused": 0, "opened": 0}
    for _ in range(int(count)):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / whole.name
            if whole.is_dir():
                shutil.copytree(whole, target)
            else:
                shutil.copy(whole, target)
            try:
                if whole.is_dir() or chance.random() < 0.5:
                    STRUCTURAL[kind](target, chance)
                else:
                    target.write_bytes(mutate_bytes(target.read_bytes(), chance))
            except Exception:
                continue  # the mutation itself made no sense
            faulthandler.dump_traceback_later(_SECONDS, exit=True)  # says where it hangs
            try:
                open_it(target)
                told["opened"] += 1
            except PellucidError as error:
                if not str(error).strip():
                    raise
                told["refused"] += 1
            except Exception:
                if kind not in _CONVERTED:  # there the process that converts says it
                    keep = Path(tempfile.gettempdir()) / f"pellucid-failed-{whole.name}"
                    if not target.is_dir():
                        shutil.copy(target, keep)
                    raise
                told["refused"] += 1
            finally:
                faulthandler.cancel_dump_traceback_later()
    print(json.dumps(told))


def _limit(memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Reads a Keras file of any generation into a `LegacyModel`, without any framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pellucid.adapters.legacy.config import leaves, normalise
from pellucid.adapters.legacy.files import (
    Contents,
    guarded,
    kind_of,
    open_keras_zip,
    read_text,
)
from pellucid.adapters.legacy.isolation import read_safely
from pellucid.adapters.legacy.model import Config, LegacyModel, Notes, Producer, Stored, fault
from pellucid.adapters.legacy.store import assign_store
from pellucid.adapters.legacy.tensorflow import (
    Checkpoint,
    assign_checkpoint,
    open_saved_model,
    prefix_of,
)
from pellucid.adapters.legacy.weights import assign

__all__ = ["Architecture", "read"]

Architecture = str | Path | Mapping[str, Any] | Callable[[], Any] | Any


def read(
    path: str | Path,
    weights: str | Path | None = None,
    architecture: Architecture | None = None,
    backend: str | None = None,
) -> LegacyModel:
    """Read a Keras file, of Keras 1.0 to 3, into one normal form.

    Parameters
    ----------
    path : a whole model (HDF5, `.keras`, or a SavedModel of tf.keras), an architecture (JSON or
        YAML), or weights (HDF5, Keras 3's or a TensorFlow checkpoint).
    weights : the HDF5 file with the weights, where `path` is an architecture.
    architecture : where `path` holds weights only: a JSON or YAML file, a configuration, a Keras
        model, or a function that returns one.
    backend : "theano" or "tensorflow", where the file does not say; Keras 1 does not record it.
        It is then told from the names of the weights.

    Returns
    -------
    model : configuration, weights, and what was found and translated on the way.

    Raises
    ------
    LoadError : the file is missing, damaged, hostile, or something that cannot be brought over;
        the message names the file, the place in it and the reason.
    UnsupportedError : a SavedModel that holds a graph of operations and no Keras layers.

    Examples
    --------
    >>> model = read("model.json", weights="weights.h5")  # doctest: +SKIP
    >>> model.producer.backend  # doctest: +SKIP
    'theano'
    """
    path = Path(path)
    name = str(path)
    with guarded(name, "file"):
        if (path / "saved_model.pb").is_file():
            return _normal(name, _from_saved_model(path), backend)
        if prefix := prefix_of(path):
            source = _Source("TensorFlow checkpoint", name)
            source.version, source.checkpoint = "2.2.4-tf", Checkpoint(prefix)
            if architecture is None:
                raise fault(name, "", "this checkpoint holds weights only; give architecture=.")
            return _normal(name, _with_architecture(source, architecture), backend)
        kind = kind_of(path)
        if kind == "hdf5":
            source = _from_h5(path, architecture)
        elif kind == "zip":
            source = _from_zip(path, architecture)
        else:
            if weights is None:
                raise fault(name, "", "this is an architecture without weights; give the file that "
                            "holds them as weights=.")  # fmt: skip
            raw = read_text(path, kind)
            source = _weights_of(Path(weights), f"{kind} + hdf5")
            source = replace_raw(source, raw)
        return _normal(name, source, backend)


class _Source:
    """What was taken out of the files before anything was understood."""

    def __init__(self, format_: str, path: str) -> None:
        self.format = format_
        self.path = path
        self.raw: Config | None = None
        self.groups: list[tuple[str, list[Stored]]] | None = None
        self.store: dict[str, Any] | None = None
        self.checkpoint: Checkpoint | None = None
        self.architecture_version: str | None = None
        self.version = self.backend = ""
        self.date: str | None = None
        self.objects: dict[str, Any] = {}
        self.warnings: list[str] = []


def replace_raw(source: _Source, raw: Config) -> _Source:
    """Give a source of weights its architecture, and what the latter says of its producer."""
    source.raw = raw.get("model_config") if isinstance(raw.get("model_config"), dict) else raw
    source.version = str(raw.get("keras_version") or source.version or "")
    source.backend = str(raw.get("backend") or source.backend or "")
    return source


def _take(source: _Source, contents: Contents) -> _Source:
    source.groups, source.store = contents.groups, contents.store
    source.version, source.backend = contents.version, contents.backend
    source.raw = contents.config
    return source


def _weights_of(path: Path, format_: str) -> _Source:
    name = str(path)
    if kind_of(path) != "hdf5":
        raise fault(name, "", "the weights should be an HDF5 file.")
    return _take(_Source(format_, name), read_safely(path, name, path.stat().st_size))


def _from_h5(path: Path, architecture: Architecture | None) -> _Source:
    name = str(path)
    contents = read_safely(path, name, path.stat().st_size)
    whole = contents.config is not None
    if not whole and architecture is None:
        what = "looks like a whole model, but its" if contents.whole else "holds weights only; the"
        raise fault(
            name, "model_config", f"this file {what} architecture is missing. Give it as "
            "architecture=: a JSON or YAML file, a configuration, a Keras model, or a function "
            "that returns one."
        )  # fmt: skip
    source = _take(_Source("hdf5" if whole else "weights hdf5", name), contents)
    return source if architecture is None else _with_architecture(source, architecture)


def _from_zip(path: Path, architecture: Architecture | None) -> _Source:
    name = str(path)
    archive = open_keras_zip(path)
    size = len(archive.weights.getbuffer())
    source = _take(_Source("keras zip", name), read_safely(archive.weights, name, size))
    source.version = str(archive.metadata.get("keras_version") or "")
    source.date = archive.metadata.get("date_saved")
    source.raw = archive.config
    if archive.odd:
        source.warnings.append(
            f"the archive has a member {archive.odd[0]!r} that points out of it; it was ignored"
        )
    return source if architecture is None else _with_architecture(source, architecture)


def _from_saved_model(path: Path) -> _Source:
    source = _Source("SavedModel", str(path))
    source.raw, source.checkpoint, version = open_saved_model(path)
    number = Producer("", version, "", "", "").number
    own = source.raw.get("keras_version")
    source.version = str(own or ("2.2.4-tf" if number < (2, 1) else f"{version}-tf"))
    return source


def _with_architecture(source: _Source, architecture: Architecture) -> _Source:
    if isinstance(architecture, (str, Path)):
        path = Path(architecture)
        kind = kind_of(path)
        if kind not in ("json", "yaml"):
            raise fault(str(path), "", "an architecture should be a JSON or YAML file.")
        return replace_raw(source, read_text(path, kind))
    if isinstance(architecture, Mapping):
        return replace_raw(source, dict(architecture))
    model = architecture if hasattr(architecture, "get_config") else architecture()
    if not hasattr(model, "get_config") or not getattr(model, "built", True):
        raise fault(source.path, "architecture", "it is no built Keras model and no function that "
                    "returns one.")  # fmt: skip
    raw = {"class_name": type(model).__name__, "config": model.get_config()}
    source.raw = raw
    source.architecture_version = (
        "2.15.0" if type(model).__module__.startswith("tf_keras") else "3.0.0"
    )
    source.objects = {
        type(layer).__name__: type(layer)
        for layer in _flat(model)
        if not type(layer).__module__.startswith(("keras.", "tf_keras.", "tensorflow."))
    }
    return source


def _flat(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from _flat(layer)


def _normal(name: str, source: _Source, backend: str | None) -> LegacyModel:
    raw = source.raw or {}
    if "class_name" not in raw and "layers" in raw:  # what `get_config` returns
        kind = "Functional" if "input_layers" in raw else "Sequential"
        raw = {"class_name": kind, "config": raw}
    producer = _producer(source, raw, backend)
    notes = Notes(name, producer)
    for sentence in source.warnings:
        notes.warn(sentence)
    own = source.architecture_version
    # Present-day code describes an old file: its spelling is new, its numbers are old.
    notes.producer = replace(producer, version=own, software="keras 3") if own else producer
    config = normalise(raw, notes)
    notes.producer = producer
    notes.path = source.path
    if source.checkpoint is not None:
        found = assign_checkpoint(source.checkpoint, config, notes)
    elif source.store is not None:
        found = assign_store(source.store, config, notes)
    else:
        found = assign(source.groups or [], config, notes)
    _open_inputs(config, found, notes)
    if producer.generation == 1 and backend is None:
        notes.warn(
            f"Keras 1 does not record its backend; the names of the weights say "
            f"{producer.backend} (backend= overrules)"
        )
    return LegacyModel(
        path=name, config=config, weights=found, producer=producer,
        translated=tuple(notes.translated), needs=tuple(notes.needs.values()),
        warnings=tuple(notes.warnings), renamed=notes.renamed, objects=source.objects,
    )  # fmt: skip


def _open_inputs(config: Config, found: Mapping[str, Mapping[str, Any]], notes: Notes) -> None:
    """Free the batch size of inputs, and find shapes that the file does not state."""
    every = list(leaves(config["config"]["layers"]))
    stateful = any(layer["config"].get("stateful") is True for _, layer in every)
    for path, layer in every:
        if layer["class_name"] != "InputLayer":
            continue
        shape = layer["config"].get("batch_shape")
        if isinstance(shape, list) and shape and shape[0] is not None and not stateful:
            layer["config"]["batch_shape"] = [None, *shape[1:]]
            notes.translate("a fixed batch size is left open")
        if shape is None and config["class_name"] == "Sequential":
            first = next((p for p, _ in every if "kernel" in found.get(p, {})), None)
            if first is None:
                raise notes.fault(f"layer {path!r}", "the file does not say the input's shape.")
            size = found[first]["kernel"].shape
            layer["config"]["batch_shape"] = [*[None] * (len(size) - 1), size[-2]]
            notes.warn("the input's height and width are not in the file; any are accepted")


def _producer(source: _Source, raw: Config, backend: str | None) -> Producer:
    version = source.version
    number = Producer("", version, "", "", "").number
    if not version:
        version = "3.0.0" if source.store is not None else _guess(raw)
        number = Producer("", version, "", "", "").number
    if "-tf" in version or (2, 4) <= number[:2] < (3, 0):
        software = "tf.keras"
    else:
        software = "keras 3" if number[:1] >= (3,) else "keras"
    names = [item.name for _, stored in source.groups or () for item in stored]
    if backend is None:
        backend = source.backend or "tensorflow"
        if number[:1] == (1,) and names and not any(":" in name for name in names):
            backend = "theano"  # TensorFlow's variables are called `dense_1_W:0`
    if backend not in ("tensorflow", "theano", "cntk", "jax", "torch"):
        raise fault(source.path, "", f"backend={backend!r} is unknown: tensorflow or theano.")
    return Producer(
        software, version, backend, source.format, _data_format(raw, number), source.date
    )


def _guess(raw: Config) -> str:
    """Tell the generation of an architecture without a version from its vocabulary."""
    words = set(_words(raw))
    if words & {"nb_filter", "output_dim", "border_mode", "dim_ordering"} and not words & {
        "data_format", "units"
    }:  # fmt: skip
        return "1.2.2"
    return "3.0.0" if words & {"module", "registered_name", "batch_shape"} else "2.2.4"


def _words(tree: Any) -> Iterator[str]:
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from (str(key) for key in item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _data_format(raw: Config, number: tuple[int, ...]) -> str:
    """Return the axis order that most layers state."""
    counts: Counter[str] = Counter()
    stack: list[Any] = [raw]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            order = item.get("data_format", item.get("dim_ordering"))
            if isinstance(order, str):
                counts[
                    "channels_first" if order in ("th", "channels_first") else "channels_last"
                ] += 1
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return counts.most_common(1)[0][0] if counts else "channels_last"

"""Opens TensorFlow graphs that hold no layers, frozen ones and SavedModels, as ONNX.

TensorFlow runs in a process of its own: a damaged graph can crash it or keep it busy for ever,
and the ONNX form needs it no more. The form is kept on disk by the content of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from pellucid.errors import InputError, LoadError, UnsupportedError
from pellucid.graph.cache import cached_form
from pellucid.graph.form import OnnxForm, PortForm

__all__ = ["open_graph"]

_SECONDS, _BYTES_PER_SECOND = 240, 1 << 20
_LARGEST = 1 << 31  # bytes of a protobuf
_MEMORY = 12 << 30
_NOTES = "pellucid.notes"
_CHILD = "from pellucid.adapters.tensorflow.conversion import main; main()"
_VERSION = "1"  # of the conversion; forms of others are not used

Shapes = Mapping[str, Sequence[int | None] | None]


def open_graph(
    path: Path, *, inputs: Any = None, outputs: Any = None, allow_code: bool = False
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Open a frozen graph (`.pb`) or a SavedModel folder.

    Parameters
    ----------
    path : the file or folder.
    inputs : names of the tensors that go in, or a mapping from names to shapes in the graph's own
        layout, for graphs that do not say them. By default the placeholders, or the signature's.
    outputs : names of the tensors that come out. By default those that nothing reads, or the
        signature's.
    allow_code : take graphs that read and write files or run Python, too.

    Returns
    -------
    model, notes : the ONNX form, its tensors under their TensorFlow names, and what was guessed.

    Raises
    ------
    LoadError : it is damaged, not frozen, refused, or its ends cannot be told.
    UnsupportedError : TensorFlow or tf2onnx is missing, or an operation has no ONNX form.
    """
    if find_spec("tensorflow") is None or find_spec("tf2onnx") is None:
        raise UnsupportedError("TensorFlow graphs need TensorFlow: install 'pellucid[tensorflow]'.")
    asked = {
        "path": str(path), "inputs": _shapes(inputs), "outputs": _names(outputs),
        "allow_code": allow_code,
    }  # fmt: skip
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if not path.is_dir() and size >= _LARGEST:
        raise LoadError(f"{path} is larger than the two gigabytes that a graph may have.")
    key = ["tensorflow graph", _VERSION, _digest(files), json.dumps(asked, sort_keys=True)]
    key += [f"{name} {_version(name)}" for name in ("tensorflow", "tf2onnx")]
    form = cached_form(key, lambda: _form(asked, path.name, size))
    notes = next((p.value for p in form.model.metadata_props if p.key == _NOTES), "[]")
    return form.model, tuple(json.loads(notes))


def _shapes(inputs: Any) -> dict[str, Any]:
    """Return `{name: shape or None}`."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        return dict.fromkeys(_names(inputs))
    shapes: dict[str, Any] = {}
    for name, shape in inputs.items():
        sizes = None if shape is None else [None if s in (None, -1) else int(s) for s in shape]
        if sizes is not None and any(s is not None and s < 1 for s in sizes):
            raise InputError(f"inputs= gives {name!r} the shape {tuple(shape)}: sizes are above 0.")
        shapes[str(name)] = sizes
    return shapes


def _names(names: Any) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _form(asked: Mapping[str, Any], name: str, size: int) -> OnnxForm:
    with tempfile.TemporaryDirectory() as folder:
        target, answer = Path(folder) / "model.onnx", Path(folder) / "answer.json"
        _run({**asked, "target": str(target), "answer": str(answer)}, size)
        if not answer.is_file():
            raise LoadError(
                f"{asked['path']}: TensorFlow crashes on this graph; it is damaged, or made for "
                "another version. Copy or export it again."
            )
        told = json.loads(answer.read_text())
        if "error" in told:
            kind = UnsupportedError if told.get("unsupported") else LoadError
            raise kind(told["error"])
        model = onnx.load_from_string(target.read_bytes())
    model.metadata_props.add(key=_NOTES, value=json.dumps(told["notes"]))
    inputs = tuple(PortForm(value.name, value.name) for value in model.graph.input)
    outputs = tuple(PortForm(value.name, value.name) for value in model.graph.output)
    return OnnxForm(model, inputs, outputs, name=name)


def _run(asked: Mapping[str, Any], size: int) -> None:
    folders = [folder or str(Path.cwd()) for folder in sys.path]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(folders), "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }  # fmt: skip
    try:
        subprocess.run(
            [sys.executable, "-c", _limited(size) + _CHILD],
            input=json.dumps(asked).encode(), capture_output=True, env=environment, check=False,
            timeout=_SECONDS + size / _BYTES_PER_SECOND,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LoadError(
            f"{asked['path']}: converting this graph never ends; it is damaged, or too large."
        ) from None


def _limited(size: int) -> str:
    """Return Python that bounds the memory of its process, where the system can."""
    limit = _MEMORY + 30 * size
    return (
        "try:\n import resource\n"
        f" resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "except (ImportError, ValueError, OSError): pass\n"
    )

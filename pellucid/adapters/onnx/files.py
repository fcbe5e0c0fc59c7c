"""Opening ONNX files, and saying in one line what is wrong with those that do not open.

A file may keep its weights in other files beside it. These must lie in its own folder: a model
that names `../../secret` is refused. They are read into memory, unless all together exceed what
one protobuf may hold; then they stay where they are and onnxruntime reads them from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, external_data_helper

from pellucid.adapters.files import DESCRIBED, content_of, existing
from pellucid.errors import LoadError, first_line
from pellucid.graph.protobuf import inputs_of, with_own_domains

__all__ = ["checked", "fingerprint_of", "read_onnx"]

_IN_MEMORY = 1 << 30  # bytes of external data that are read; protobuf stops at two gigabytes
_SMALL = 1 << 14  # bytes; shapes, axes and the like are needed to understand the graph


def read_onnx(path: Path) -> tuple[ModelProto, Path | None]:
    """Open an ONNX file.

    Returns
    -------
    model, folder : the folder is None unless the model's weights stay in files there.

    Raises
    ------
    LoadError : it is no ONNX file, or not a valid one, or its external data is missing or lies
        outside its folder.
    """
    path = existing(path)
    if path.is_dir():
        raise LoadError(f"{path} is a folder; give the .onnx file inside it.")
    if (content := content_of(path)) != "binary":
        raise LoadError(
            f"{path} is no ONNX file: it is {DESCRIBED[content]}. Download or export it again."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise LoadError(
            f"{path} is no ONNX file, or it is damaged or cut short ({first_line(error)}). "
            "Download or export it again."
        ) from error
    sizes = [(tensor, _located(tensor, path)) for tensor in _external(model)]
    folder = path.parent if sum(size for _, size in sizes) > _IN_MEMORY else None
    for tensor, size in sizes:
        if folder is None or size <= _SMALL:
            _read_external(tensor, path)
    return checked(model, str(path), None if folder is None else path), folder


def _read_external(tensor: TensorProto, path: Path) -> None:
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as error:
        raise LoadError(
            f"The external data of {path} cannot be read: {first_line(error)}."
        ) from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def checked(model: ModelProto, source: str, path: Path | None = None) -> ModelProto:
    """Return the model if it is a valid one.

    Parameters
    ----------
    model : the model.
    source : its name in messages.
    path : where it lies, if it is too large to be checked in memory.
    """
    if not model.graph.node or not model.graph.output:
        raise LoadError(f"{source} holds no network: its ONNX graph is empty. Export it again.")
    if missing := _missing(model.graph):
        shown = ", ".join(repr(name) for name in missing[:3])
        raise LoadError(
            f"{source} is not a valid ONNX model: nothing gives the tensor {shown}, which a node "
            "reads (a missing initializer?). Export it again."
        )
    try:
        onnx.checker.check_model(with_own_domains(model) if path is None else str(path))
    except ValueError:
        return model  # above two gigabytes in memory: onnxruntime checks it
    except Exception as error:
        raise LoadError(
            f"{source} is not a valid ONNX model: {first_line(error)}. Export it again."
        ) from error
    return model


def _missing(graph: GraphProto) -> list[str]:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(sparse.values.name for sparse in graph.sparse_initializer)
    known.update(name for node in graph.node for name in node.output)
    read = (name for node in graph.node for name in inputs_of(node))
    return [name for name in dict.fromkeys(read) if name not in known]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    yield from _tensors(inner)


def _external(model: ModelProto) -> Iterator[TensorProto]:
    return (t for t in _tensors(model.graph) if t.data_location == TensorProto.EXTERNAL)


def _located(tensor: TensorProto, path: Path) -> int:
    """Return the size of a tensor's external data after checking where it lies."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise LoadError(
            f"{path} keeps the weight {tensor.name!r} in {location!r}, outside its own folder; "
            "that is refused. Put the data file beside the model and export it again."
        )
    if not target.is_file():
        raise LoadError(
            f"{path} keeps its weights in {location!r}, which is missing. Put that file beside it."
        )
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", 0)) or target.stat().st_size - offset
    except ValueError:
        offset, length = 0, -1
    if offset < 0 or length < 0 or offset + length > target.stat().st_size:
        raise LoadError(
            f"{path} keeps the weight {tensor.name!r} in {location!r}, which is too short. "
            "Copy that file again."
        )
    return length


def fingerprint_of(model: ModelProto, folder: Path | None = None) -> str:
    """Return the SHA-256 of a model, its external data included.

    The parts are hashed one by one, so that models above two gigabytes have a fingerprint too.
    """
    digest = hashlib.sha256()
    graph = model.graph
    parts = (
        *model.opset_import, *model.functions, *graph.input, *graph.output, *graph.node,
        *graph.initializer, *graph.sparse_initializer,
    )  # fmt: skip
    for part in parts:
        data = part.SerializeToString(deterministic=True)
        digest.update(f"{type(part).__name__}:{len(data)}:".encode())
        digest.update(data)
    for tensor in _external(model) if folder is not None else ():
        entries = {entry.key: entry.value for entry in tensor.external_data}
        with (Path(folder or ".") / entries["location"]).open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            remaining = int(entries.get("length", 0)) or -1
            digest.update(file.read(remaining))
    return digest.hexdigest()

"""What turns a file or a folder into a Keras model, without running code that it holds.

A `Lambda` layer is a marshalled Python function, and older formats and `tf_keras` unmarshal it
without asking; a SavedModel is a TensorFlow program, which may read and write files. Both are
looked for before anything is opened.
"""

from __future__ import annotations

import importlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pellucid.adapters.files import DESCRIBED, content_of
from pellucid.errors import LoadError, PellucidError, UnsupportedError, first_line

__all__ = ["open_keras", "open_saved_model"]

_NEEDS = "Keras files need TensorFlow and Keras: install 'pellucid[tensorflow]'."
_CODE_CLASSES = ("Lambda", "__lambda__", "TFSMLayer")
_FILE_OPERATORS = frozenset(
    (
        "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc",
        "SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints", "TextLineReader", "DebugIdentityV3",
        "WholeFileReader", "WholeFileReaderV2", "TextLineReaderV2", "PrintV2", "SaveDataset",
        "SaveDatasetV2", "LoadDataset", "TextLineDataset", "TFRecordDataset",
        "TFRecordDatasetV2", "FixedLengthRecordDatasetV2", "DatasetToTFRecord", "RpcCall",
        "WriteSummary", "CreateSummaryFileWriter", "WriteGraphSummary", "WriteImageSummary",
        "LoadLibrary", "CacheDataset", "CacheDatasetV2", "SnapshotDatasetV2",
    )
)  # fmt: skip
_CHECKPOINT = re.compile(r"^__inference__traced_(save|restore)_\d+$")
_SAVING = frozenset(("SaveV2", "MergeV2Checkpoints"))


def open_keras(
    path: Path, *, custom_objects: Mapping[str, Any] | None = None, allow_code: bool = False
) -> Any:
    """Open a `.keras`, `.h5` or `.hdf5` file with Keras 3, or with `tf_keras` where that fails.

    Raises
    ------
    LoadError : it is no Keras model, holds code, or cannot be opened.
    UnsupportedError : Keras is not installed.
    """
    content = content_of(path)
    if content not in ("hdf5", "zip"):
        raise LoadError(
            f"{path} is no Keras model: it is {DESCRIBED[content]}. Download or save it again."
        )
    if path.suffix == ".keras" and content == "hdf5":
        raise LoadError(f"{path} is an HDF5 file: rename it to {path.stem}.h5.")
    if path.suffix != ".keras" and content == "zip":
        raise LoadError(f"{path} is a zip archive: rename it to {path.stem}.keras.")
    config = _h5_config(path) if content == "hdf5" else _zip_config(path)
    custom = dict(custom_objects or {})
    if not allow_code and (code := next(_code_in(config, custom), None)):
        raise LoadError(
            f"{path} is refused: its {code} holds Python code that opening it would run. Give "
            "allow_code=True if you trust the file."
        )
    reasons: list[str] = []
    for name in ("keras", "tf_keras"):
        if (package := _imported(name)) is None:
            continue
        if name == "tf_keras" and content == "zip":
            break  # the new format is Keras 3's own
        try:
            return package.models.load_model(
                str(path), custom_objects=custom, compile=False, safe_mode=not allow_code
            )
        except Exception as error:
            reasons.append(f"{name} says: {first_line(error)}")
    if not reasons:
        raise UnsupportedError(_NEEDS)
    raise LoadError(
        f"{path} cannot be opened. {' '.join(reasons)} Custom layers are given with custom_objects."
    )


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ---- code in files --------------------------------------------------------------------------


def _h5_config(path: Path) -> Any:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            is_weights = (
                "layer_names" in file.attrs or "layers" in file or "_layer_checkpoint" in file
            )
    except OSError as error:
        raise LoadError(
            f"{path} is damaged or cut short ({first_line(error)}). Download or save it again."
        ) from error
    if text is None:
        kind = "holds weights and no network" if is_weights else "holds no Keras model"
        raise LoadError(f"{path} {kind}. Save the whole model with model.save(...).")
    try:
        return json.loads(text)
    except ValueError as error:
        raise LoadError(f"{path} holds a damaged model description. Save it again.") from error


def _zip_config(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "config.json" not in names:
                raise LoadError(
                    f"{path} is a zip archive, but no Keras model. (A PyTorch model? Name it .pt.)"
                )
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise LoadError(
            f"{path} is damaged or cut short ({first_line(error)}). Download or save it again."
        ) from error


def _code_in(config: Any, custom: Mapping[str, Any]) -> Iterator[str]:
    """Yield what in a model's description would run as code, by layer name."""
    if isinstance(config, Mapping):
        inner = config.get("config")
        settings = inner if isinstance(inner, Mapping) else {}
        if config.get("class_name") in _CODE_CLASSES:
            function = settings.get("function")
            if not (isinstance(function, str) and function in custom):
                yield f"{config['class_name']} layer {settings.get('name', '')!r}"
        for key, value in config.items():
            if str(key).endswith("_type") and value == "lambda":
                yield f"lambda in {str(key)!r}"
            yield from _code_in(value, custom)
    elif isinstance(config, list):
        for value in config:
            yield from _code_in(value, custom)
    elif isinstance(config, str) and config.startswith("{") and "class_name" in config:
        try:
            yield from _code_in(json.loads(config), custom)
        except ValueError:
            return


# ---- SavedModel folders ---------------------------------------------------------------------


def open_saved_model(
    path: Path, *, custom_objects: Mapping[str, Any] | None = None, allow_code: bool = False
) -> Any:
    """Open a SavedModel folder: as a `tf_keras` model if it is one, else as a single layer.

    A SavedModel that Keras did not write, or that was exported for serving, has no layers left:
    its `serving_default` signature becomes a model of one layer.
    """
    if not allow_code:
        _refuse_unsafe(path)
    metadata = path / "keras_metadata.pb"
    if metadata.is_file() and (package := _imported("tf_keras")) is not None:
        text = metadata.read_bytes()
        has_code = b'"Lambda"' in text or b"__lambda__" in text or b'"lambda"' in text
        if allow_code or not has_code:
            try:
                return package.models.load_model(
                    str(path), custom_objects=dict(custom_objects or {}), compile=False
                )
            except Exception:  # what Keras no longer understands still runs as a program
                return _as_one_layer(path)
    return _as_one_layer(path)


def _refuse_unsafe(path: Path) -> None:
    try:
        from tensorflow.core.protobuf import saved_model_pb2
    except ImportError as error:
        raise UnsupportedError(_NEEDS.replace("Keras files", "SavedModels")) from error
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except Exception as error:
        raise LoadError(
            f"{path} holds a damaged saved_model.pb ({first_line(error)}). Save it again."
        ) from error
    for graph in proto.meta_graphs:
        functions = graph.graph_def.library.function
        saving = {f.signature.name for f in functions if _CHECKPOINT.match(f.signature.name)}
        for function in functions:
            for node in function.node_def:
                own = function.signature.name in saving and node.op in _SAVING
                calls = {a.func.name for a in node.attr.values() if a.HasField("func")} & saving
                if (node.op in _FILE_OPERATORS and not own) or calls:
                    raise LoadError(
                        f"{path} is refused: its program uses the operator {node.op}, which "
                        "reaches outside it. Give allow_code=True if you trust it."
                    )
        for node in graph.graph_def.node:
            if node.op in _FILE_OPERATORS - _SAVING:
                raise LoadError(
                    f"{path} is refused: its program uses the operator {node.op}, which reaches "
                    "outside it. Give allow_code=True if you trust it."
                )


def _as_one_layer(path: Path) -> Any:
    if (keras := _imported("keras")) is None:
        raise UnsupportedError(_NEEDS.replace("Keras files", "SavedModels"))
    try:
        layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")
        _, named = layer.call_endpoint_fn.structured_input_signature
        inputs = [
            keras.Input(
                batch_shape=tuple(spec.shape), dtype=spec.dtype.name, name=name.replace("/", "_")
            )
            for name, spec in named.items()
        ]
        first, *others = inputs
        results = layer(first, **dict(zip(list(named)[1:], others, strict=True)))
        outputs = list(results.values()) if isinstance(results, Mapping) else results
        if isinstance(outputs, list) and len(outputs) == 1:
            outputs = outputs[0]
        return keras.Model(inputs if others else first, outputs)
    except PellucidError:
        raise
    except Exception as error:
        raise LoadError(
            f"{path} cannot be opened as a SavedModel with the signature serving_default: "
            f"{first_line(error)}"
        ) from error

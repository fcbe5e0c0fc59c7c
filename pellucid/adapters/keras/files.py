"""What turns a Keras file of any year, or a SavedModel folder, into a Keras model.

The reader in `legacy` takes files apart and builds them anew, so that none of their code runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.adapters.legacy import LegacyModel, read
from pellucid.adapters.tensorflow.safety import refuse_unsafe
from pellucid.errors import LoadError, PellucidError, UnsupportedError, first_line

__all__ = ["Opened", "check_backend", "open_as_one_layer", "open_keras"]

_NEEDS = "Keras files need TensorFlow and Keras: install 'pellucid[tensorflow]'."


@dataclass(frozen=True)
class Opened:
    """A Keras model from a file.

    Attributes
    ----------
    model : the Keras 3 model.
    renamed : from its layer names to the file's, where Keras 3 forbids the latter.
    notes : what the reader was not sure of.
    """

    model: Any
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_keras(
    path: Path,
    *,
    weights: Path | None = None,
    architecture: Any = None,
    backend: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> Opened:
    """Open a Keras file of any year, or a SavedModel with layers; parameters as for `load`.

    Raises
    ------
    LoadError : it is damaged, no Keras model, or needs code that was not given.
    UnsupportedError : Keras is not installed, or runs on another backend than TensorFlow.
    """
    try:
        legacy = read(path, weights, architecture, backend)
        return _built(legacy, custom_objects, replace, allow_code)
    except LoadError as error:
        subclassed = path.suffix == ".keras" and "is a subclassed model" in str(error)
        if not custom_objects or not subclassed or replace or architecture is not None:
            raise
        return Opened(_of_its_class(path, custom_objects, allow_code))


def _built(
    legacy: LegacyModel,
    custom_objects: Mapping[str, Any] | None,
    replace: Mapping[str, Any] | None,
    allow_code: bool,
) -> Opened:
    if (keras := _imported("keras")) is None:
        raise UnsupportedError(_NEEDS)
    check_backend(keras)
    from pellucid.adapters.legacy.build import build

    model = build(legacy, custom_objects, replace, allow_code)
    return Opened(model, legacy.renamed, tuple(_sentence(w) for w in legacy.warnings))


def _of_its_class(path: Path, custom_objects: Mapping[str, Any], allow_code: bool) -> Any:
    """Let Keras build a subclassed model, whose layers only its own class knows."""
    keras = _imported("keras")
    check_backend(keras)
    try:
        return keras.models.load_model(
            str(path), custom_objects=dict(custom_objects), compile=False, safe_mode=not allow_code
        )
    except Exception as error:
        raise LoadError(
            f"{path} cannot be opened as the subclassed model it holds: {first_line(error)}"
        ) from error


def check_backend(keras: Any) -> None:
    """Refuse a Keras that runs on anything but TensorFlow.

    Raises
    ------
    UnsupportedError : it does.
    """
    if (backend := keras.backend.backend()) != "tensorflow":
        raise UnsupportedError(
            f"Keras runs on {backend} here; this version explains Keras models on TensorFlow "
            "only. Set the environment variable KERAS_BACKEND=tensorflow before Keras is "
            "imported."
        )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ---- SavedModels without layers --------------------------------------------------------------


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
    refuse_unsafe(path, [meta.graph_def for meta in proto.meta_graphs])


def open_as_one_layer(path: Path, allow_code: bool) -> Any:
    """Make a Keras model of one layer of a SavedModel's signature `serving_default`.

    For programs that have no ONNX form: they still run, and have a gradient at the input.

    Raises
    ------
    LoadError : it is damaged, has no such signature, or reaches outside itself.
    UnsupportedError : TensorFlow or Keras is not installed.
    """
    if not allow_code:
        _refuse_unsafe(path)
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

"""From a path to a diagnosis: the parts are gathered here, and no part may fail for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter
from pellucid.adapters.factories import FACTORY, made_if_named
from pellucid.adapters.files import existing
from pellucid.adapters.legacy import LegacyModel, read
from pellucid.adapters.legacy.config import leaves
from pellucid.adapters.legacy.tensorflow import saved_with
from pellucid.adapters.load import load
from pellucid.doctor import keras_file
from pellucid.doctor.engines import behaviour, second_engine
from pellucid.doctor.findings import Check, Diagnosis, End
from pellucid.doctor.pictures import pictures_in
from pellucid.doctor.preprocessing import PreprocessingGuess, guess_preprocessing
from pellucid.doctor.reread import compare, in_file, in_model
from pellucid.doctor.weights import examine
from pellucid.errors import PellucidError, UnsupportedError

__all__ = ["diagnose"]

_OTHERS = (".onnx", ".pb", ".pt2", ".pt", ".pth", ".ts", ".torchscript", ".bin", ".safetensors")
# Translations that compute new values, so that no checksum can follow them.
_COMPUTED = ("folded into", "CuDNN", "left out")


def diagnose(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    architecture: Any = None,
    backend: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
    inputs: Any = None,
    outputs: Sequence[str] | None = None,
    allow_code: bool = False,
    labels: Any = None,
    images: str | Path | Sequence[Any] | None = None,
    truth: Sequence[int | str] | None = None,
) -> Diagnosis:
    """Examine a model file, also one that does not open, or a "package.module:factory".

    Parameters
    ----------
    path, weights, architecture, backend, custom_objects, replace, inputs, outputs, allow_code,
    labels : as for `pellucid.load`.
    images : a few pictures, or a folder of them, to find the lost preprocessing by; see
        `guess_preprocessing`. Subfolders are taken for classes.
    truth : the classes of the images.

    Returns
    -------
    Diagnosis
        What the file is, what it needs, and whether what was opened agrees with it.

    Raises
    ------
    LoadError : there is no such file.
    InputError : the images, or their classes, are none for this model.

    Examples
    --------
    >>> found = diagnose("old_model.h5")  # doctest: +SKIP
    >>> found.producer["version"], found.opens  # doctest: +SKIP
    ('1.2.2', True)
    """
    factory = isinstance(path, str) and FACTORY.match(path)
    specification, path = str(path), Path(path).expanduser()
    checkpoint = path.with_name(path.name + ".index").is_file()
    path = path if checkpoint or factory else existing(path)
    architecture = made_if_named(architecture)
    given = {
        "weights": weights, "architecture": architecture, "backend": backend,
        "custom_objects": custom_objects, "replace": replace, "allow_code": allow_code,
        "inputs": inputs, "outputs": outputs, "labels": labels,
    }  # fmt: skip
    shown = _Shown(images, truth)
    if factory:
        return _opened(Diagnosis(specification, 0), given, None, shown)
    if path.suffix.lower() in _OTHERS:
        return _opened(Diagnosis(str(path), _size(path)), given, None, shown)
    found = Diagnosis(str(path), _size(path), framework="keras")
    try:
        legacy = read(path, weights, architecture, backend)
    except UnsupportedError as error:
        producer = {
            "library": "tensorflow", "version": saved_with(path),
            "format": "SavedModel without layers",
        }  # fmt: skip
        found = _opened(Diagnosis(str(path), found.size, "keras", producer), given, None, shown)
        return found if found.opens else _with(found, problems=(str(error), *found.problems))
    except PellucidError as error:
        return _damaged(found, path, str(error))
    return _opened(_described(found, legacy), given, legacy, shown)


@dataclass(frozen=True)
class _Shown:
    """The pictures to find the preprocessing by, and their classes."""

    images: str | Path | Sequence[Any] | None
    truth: Sequence[int | str] | None

    def guess(self, adapter: Adapter) -> PreprocessingGuess | None:
        """Find the preprocessing, if there are pictures."""
        images, truth = self.images, self.truth
        if images is None:
            return None
        if isinstance(images, str | Path):
            images, named = pictures_in(Path(images).expanduser())
            truth = truth or named
        return guess_preprocessing(adapter, images, truth)


def _with(found: Diagnosis, **changes: Any) -> Diagnosis:
    return replace(found, **changes)


def _size(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _damaged(found: Diagnosis, path: Path, problem: str) -> Diagnosis:
    """Say what can still be seen of a file that cannot be read."""
    told, arrays, classes = keras_file.remains(path)
    state, reason, findings = examine(arrays)
    return _with(
        found,
        framework="keras" if told.get("format") in ("hdf5", "keras zip") else "",
        producer=told,
        problems=(problem,),
        layers=len(classes),
        parameters=sum(int(np.size(a)) for own in arrays.values() for a in own.values()),
        state=state,
        state_reason=reason,
        findings=findings,
    )


def _described(found: Diagnosis, legacy: LegacyModel) -> Diagnosis:
    inputs, outputs = keras_file.ends(legacy)
    state, reason, findings = examine(
        {legacy.renamed.get(layer, layer): own for layer, own in legacy.weights.items()}
    )
    return _with(
        found,
        producer=keras_file.facts(legacy),
        inputs=inputs,
        outputs=outputs,
        layers=len(list(leaves(legacy.config["config"]["layers"]))),
        parameters=legacy.parameters,
        scaling=keras_file.scaling(legacy),
        translated=legacy.translated,
        warnings=legacy.warnings,
        custom=keras_file.customs(legacy),
        state=state,
        state_reason=reason,
        findings=findings,
    )


def _opened(
    found: Diagnosis, given: Mapping[str, Any], legacy: LegacyModel | None, shown: _Shown
) -> Diagnosis:
    """Open the model, and describe and check what comes of it."""
    try:
        adapter = load(found.path, **given)
        inputs = tuple(End(p.own_name or p.name, p.own_shape) for p in adapter.inputs)
        outputs = tuple(
            End(p.own_name or p.name, p.own_shape, _kind(p.own_shape, p.activation))
            for p in adapter.outputs
        )
        layers = [layer for layer in adapter.layers if not layer.container]
    except PellucidError as error:
        return _with(found, problems=(*found.problems, str(error)))
    found = _with(
        found, opens=True, framework=adapter.framework, inputs=inputs, outputs=outputs,
        warnings=tuple(dict.fromkeys((*found.warnings, *adapter.notes))) if legacy is None
        else found.warnings,
        layers=found.layers or len(layers),
    )  # fmt: skip
    if legacy is None:
        found = _from_adapter(found, adapter)
    checks = [behaviour(adapter)]
    if adapter.framework == "keras":
        checks.append(second_engine(adapter))
    if legacy is not None:
        checks.insert(0, _read_twice(found, given, adapter, legacy))
    return _with(found, checks=tuple(checks), preprocessing=shown.guess(adapter))


def _kind(shape: tuple[int | None, ...], activation: str | None) -> str:
    grid = len(shape) > 2
    text = keras_file.described(shape[-1] if len(shape) > 1 else None, activation)
    return f"{text}, at every position" if grid else text


def _read_twice(
    found: Diagnosis, given: Mapping[str, Any], adapter: Adapter, legacy: LegacyModel
) -> Check:
    arrays = in_file(Path(given["weights"] or found.path))
    if arrays is None:
        return Check("every array of the file is used once", None, "no second reader for this form")
    changed = [t for t in legacy.translated if any(word in t for word in _COMPUTED)]
    changed += ["layers were replaced"] if given["replace"] else []
    return compare(arrays, in_model(vars(adapter)["model"]), changed)


# ---- other frameworks ------------------------------------------------------------------------


def _from_adapter(found: Diagnosis, adapter: Adapter) -> Diagnosis:
    """Describe a model of another framework by what its adapter holds."""
    producer = dict(found.producer)
    arrays: dict[str, dict[str, Any]] = {}
    own = vars(adapter)
    if adapter.framework == "onnx":
        proto = own["model"]
        if Path(found.path).suffix.lower() == ".pb":
            producer |= {"library": "tensorflow", "format": "frozen graph"}
        elif not producer:
            producer |= _onnx_facts(proto)
        for name, array in _initializers(proto):
            layer, _, last = name.rpartition("." if "." in name else "/")
            arrays.setdefault(layer, {})[last] = array
    elif adapter.framework == "torch":
        producer |= {"library": "torch", "format": Path(found.path).suffix.lstrip(".")}
        state: Mapping[str, Any] = own["module"].state_dict()
        for name, value in state.items():
            layer, _, last = name.rpartition(".")
            arrays.setdefault(layer, {})[last] = value.detach().cpu().numpy()
    state_, reason, findings = examine(arrays)
    return _with(
        found, producer=producer, state=state_, state_reason=reason, findings=findings,
        parameters=sum(int(np.size(a)) for o in arrays.values() for a in o.values()),
        scaling=("it begins with layers that scale or normalise",) if adapter.scales_input else (),
    )  # fmt: skip


def _onnx_facts(proto: Any) -> dict[str, str]:
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    told = {
        "library": proto.producer_name, "version": proto.producer_version, "format": "onnx",
        "opset": str(opset), "ir_version": str(proto.ir_version),
    }  # fmt: skip
    return {key: value for key, value in told.items() if value}


def _initializers(proto: Any) -> list[tuple[str, Any]]:
    from onnx import TensorProto, numpy_helper

    inside = [t for t in proto.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    return [(t.name, numpy_helper.to_array(t)) for t in inside]

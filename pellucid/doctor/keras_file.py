"""What a Keras file says of itself: from the reader's normal form, or from what is left of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.adapters.legacy import LegacyModel, Need
from pellucid.adapters.legacy.config import leaves
from pellucid.adapters.legacy.files import Contents, kind_of, open_keras_zip
from pellucid.adapters.legacy.isolation import read_safely
from pellucid.adapters.legacy.lambdas import foreign
from pellucid.adapters.legacy.model import Config
from pellucid.doctor.findings import Custom, End
from pellucid.errors import PellucidError

__all__ = ["customs", "ends", "facts", "remains", "scaling"]

_SCALERS = {
    "Rescaling": ("scale", "offset"),
    "Normalization": ("mean", "variance"),
    "Lambda": ("arguments",),
    "Operation": ("function", "arguments"),
    "BatchNormalization": (),
}
_WEIGHTED = ("Conv", "Dense", "Depthwise", "Separable", "Theano", "ChannelsFirst")
_KINDS = {"softmax": "classes", "sigmoid": "independent classes"}


def facts(model: LegacyModel) -> dict[str, str]:
    """Return what wrote the file, by name; what it does not say is left out."""
    told = asdict(model.producer)
    told = {"library": told.pop("software"), **told}
    return {key: str(value) for key, value in told.items() if value}


def ends(model: LegacyModel) -> tuple[tuple[End, ...], tuple[End, ...]]:
    """Return inputs and outputs as far as the configuration tells them."""
    config = model.config["config"]
    layers = {layer["name"]: layer for layer in config["layers"]}
    names = [layer["name"] for layer in config["layers"]]
    first, last = names[:1], names[-1:]
    if "input_layers" in config:
        first = [reference[0] for reference in config["input_layers"]]
        last = [reference[0] for reference in config["output_layers"]]
    old = model.renamed
    inputs = tuple(
        End(old.get(name, name), tuple(layers[name]["config"].get("batch_shape") or ()))
        for name in first
        if name in layers
    )
    outputs = tuple(
        End(old.get(name, name), (), _output(config["layers"][: names.index(name) + 1]))
        for name in last
        if name in layers
    )
    return inputs, outputs


def _output(layers: Sequence[Config]) -> str:
    """Describe the last of some layers; an activation has the units of the layer before it."""
    layer = layers[-1]
    config = layer["config"]
    sized = layers[-2] if layer["class_name"] in ("Activation", "Softmax") and layers[1:] else layer
    units = sized["config"].get("units") or sized["config"].get("filters")
    activation = config.get("activation")
    if layer["class_name"] == "Softmax":
        activation = "softmax"
    return described(units, activation if isinstance(activation, str) else None)


def described(units: Any, activation: str | None) -> str:
    """Say in words what an output is."""
    if units == 1 and activation == "sigmoid":
        return "two classes by one sigmoid"
    kind = _KINDS.get(activation or "", "values")
    count = "" if units is None else f"{units} "
    how = activation if activation not in (None, "linear") else "no final activation"
    return f"{count}{kind}, {how}"


def scaling(model: LegacyModel) -> tuple[str, ...]:
    """Name the layers that scale the input before the first weighted layer."""
    found = []
    for path, layer in leaves(model.config["config"]["layers"]):
        kind = layer["class_name"]
        if kind.startswith(_WEIGHTED):
            break
        if kind not in _SCALERS:
            continue
        values = {**layer["config"], **model.weights.get(path, {})}
        shown = ", ".join(
            f"{key}={_short(values[key])}" for key in _SCALERS[kind] if values.get(key) is not None
        )
        found.append(f"{model.renamed.get(path, path)} ({kind}{': ' if shown else ''}{shown})")
    return tuple(found)


def _short(value: Any) -> str:
    if isinstance(value, (np.ndarray, list)) and np.size(value) and np.ndim(value):
        flat = np.asarray(value, object).ravel()
        parts = [f"{v:.6g}" if isinstance(v, (int, float)) else str(v) for v in flat[:4]]
        return f"[{', '.join(parts)}{', ...' if len(flat) > 4 else ''}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]


# ---- custom code -----------------------------------------------------------------------------


def customs(model: LegacyModel) -> tuple[Custom, ...]:
    """Describe each piece of code that the model needs, with a template to fill in."""
    entries = dict(leaves(model.config["config"]["layers"]))
    found: dict[tuple[str, str], Custom] = {}
    for need in model.needs:
        entry = entries.get(need.layer, {})
        key = (need.kind, need.name or need.layer)
        if key not in found:
            found[key] = _custom(need, entry, model.weights.get(need.layer, {}))
    return tuple(found.values())


def _custom(need: Need, entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> Custom:
    config = {k: v for k, v in entry.get("config", {}).items() if k not in ("name", "trainable")}
    if need.kind == "layer":
        told = [f"{k}={v!r}" for k, v in config.items()]
        told += [f"{_last(name)} {tuple(np.shape(a))}" for name, a in arrays.items()]
        text = f"arguments and weights in the file: {', '.join(told) or 'none'}"
        return Custom(need.layer, "layer", need.name, text, _class(need.name, config, arrays))
    if need.kind == "function":
        template = f"def {_identifier(need.name)}(x):\n    return x  # what it computes"
        return Custom(need.layer, "function", need.name, f"used by {need.class_name}", template)
    arguments = config.get("arguments") or {}
    shape = config.get("output_shape")
    reason = foreign(need)
    text = (
        f"a Python function stored as bytecode; arguments {arguments or 'none'}, output shape "
        + (f"{shape}" if isinstance(shape, (list, tuple)) else "not stored")
    )
    text += f"; {reason}" if reason else "; it was written by this version of Python"
    signature = ", ".join(["x", *(f"{_identifier(k)}={v!r}" for k, v in arguments.items())])
    name = _identifier(need.layer.split("/")[-1])
    template = f"def {name}({signature}):\n    return x  # what the layer computes"
    return Custom(need.layer, "lambda", need.layer, text, template)


def _class(name: str, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    own = [(_identifier(key), value) for key, value in config.items()]
    arguments = "".join(f", {key}={value!r}" for key, value in own)
    lines = [
        f"class {_identifier(name)}(keras.layers.Layer):",
        f"    def __init__(self{arguments}, **kwargs):",
        "        super().__init__(**kwargs)",
        *(f"        self.{key} = {key}" for key, _ in own),
    ]
    if arrays:
        lines += ["", "    def build(self, input_shape):"]
        for stored, array in arrays.items():
            last = _identifier(_last(stored))
            shape = tuple(np.shape(array))
            lines.append(f"        self.{last} = self.add_weight(name={last!r}, shape={shape})")
    return "\n".join([*lines, "", "    def call(self, x):", "        return x  # what it computes"])


def _last(name: str) -> str:
    parts = name.split("/")
    last = parts[-1].split(":")[0]
    return f"weight_{last}" if last.isdigit() else last


def _identifier(name: str) -> str:
    clean = re.sub(r"\W", "_", name.split(">")[-1])
    return clean if clean.isidentifier() and not iskeyword(clean) else f"_{clean}"


# ---- damaged files ---------------------------------------------------------------------------


def remains(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]], list[str]]:
    """Return what can still be taken from a file that the reader refuses.

    Returns
    -------
    facts, weights, layers : what wrote it, its arrays by layer, the classes of its layers.
    """
    try:
        kind = kind_of(path)
        if kind == "zip":
            archive = open_keras_zip(path)
            told = {
                "format": "keras zip",
                "version": str(archive.metadata.get("keras_version") or ""),
                "date": str(archive.metadata.get("date_saved") or ""),
            }
            contents = read_safely(archive.weights, str(path), len(archive.weights.getbuffer()))
            contents.config = archive.config
        elif kind == "hdf5":
            contents = read_safely(path, str(path), path.stat().st_size)
            told = {"format": "hdf5", "version": contents.version, "backend": contents.backend}
        else:
            return {"format": kind}, {}, []
    except PellucidError:
        return {}, {}, []
    told = {key: value for key, value in told.items() if value}
    return told, _grouped(contents), list(_classes(contents.config))


def _grouped(contents: Contents) -> dict[str, dict[str, Any]]:
    if contents.groups is not None:
        return {name: {s.name: s.array for s in stored} for name, stored in contents.groups}
    found: dict[str, dict[str, Any]] = {}
    for place, array in (contents.store or {}).items():
        layer, _, name = place.partition("/vars/")
        found.setdefault(layer, {})[name] = array
    return found


def _classes(config: Any) -> Iterator[str]:
    layers = (config or {}).get("config")
    layers = layers.get("layers") if isinstance(layers, dict) else layers
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and isinstance(layer.get("class_name"), str):
            yield layer["class_name"]
            yield from _classes(layer)

"""Builds the Keras 3 model that a `LegacyModel` describes."""

from __future__ import annotations

import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from pellucid.adapters.legacy import channels_first, theano
from pellucid.adapters.legacy import layers as lost
from pellucid.adapters.legacy.calls import Graph, Named
from pellucid.adapters.legacy.config import leaves
from pellucid.adapters.legacy.files import guarded
from pellucid.adapters.legacy.lambdas import BytecodeError, function_of
from pellucid.adapters.legacy.model import Config, LegacyModel, Need, fault
from pellucid.adapters.legacy.spelling import ACTIVATIONS, MODELS
from pellucid.adapters.legacy.store import snake
from pellucid.adapters.legacy.variables import Shape, fits, variables
from pellucid.errors import LoadError, PellucidError

__all__ = ["build"]

_OWN = lost.LAYERS | theano.LAYERS | channels_first.LAYERS
for _name, _function in (lost.ACTIVATIONS | _OWN).items():
    keras.saving.register_keras_serializable(package="pellucid", name=_name)(_function)

# Values of arguments that an installed Keras without the argument acts on anyhow.
_HARMLESS: tuple[Any, ...] = (None, False, "", [], {}, 0, 1, "channels_last", "nearest")


def build(
    model: LegacyModel,
    custom_objects: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> Any:
    """Build the model in Keras 3 and give it the file's weights.

    Parameters
    ----------
    model : what `read` returned.
    custom_objects : classes and functions that the file only names, by that name.
    replace : functions or layers to use in place of layers, by layer name or path; a function
        takes the layer's input, a list where it has several.
    allow_code : whether Lambda bytecode of the file may run; it is code by whoever made the file.

    Returns
    -------
    model : a `keras.Model` whose layers have the file's names.

    Raises
    ------
    LoadError : something is missing, or does not fit; the message names the layer.
    """
    objects = {**model.objects, **(custom_objects or {})}
    objects |= {name.split(">")[-1]: value for name, value in objects.items()}
    with guarded(model.path, "model"), keras.saving.CustomObjectScope(objects):
        builder = _Builder(model, objects, dict(replace or {}), allow_code)
        built = builder.model(model.config, "")
        builder.assign()
    return built


class _Builder:
    def __init__(
        self, model: LegacyModel, objects: dict[str, Any], replace: dict[str, Any], allow: bool
    ) -> None:
        self.source, self.objects, self.replace = model, objects, replace
        self.made: dict[str, Any] = {}  # layers without layers of their own, by path
        self.replaced: set[str] = set()
        self.functions: dict[str, Callable[..., Any]] = {}
        missing = [need for need in model.needs if not self._given(need, allow)]
        if missing:
            raise LoadError(_plea(model, missing))

    # ---- what the caller has to give -----------------------------------------------------------

    def _given(self, need: Need, allow: bool) -> bool:
        if need.layer in self.replace or need.layer.split("/")[-1] in self.replace:
            return True
        if need.name and need.name in self.objects:
            return True
        if need.kind == "lambda" and allow and need.class_name == "Lambda":
            try:
                self.functions[need.layer] = function_of(need, _names())
            except BytecodeError as error:
                raise self.fault(
                    need.layer, f"this Lambda cannot be run: {error}. Write the function anew and "
                    f"pass replace={{{need.layer!r}: function}}."
                ) from error  # fmt: skip
            return True
        return False

    def fault(self, path: str, reason: str) -> LoadError:
        """Build the error for a layer."""
        return fault(self.source.path, f"layer {path!r}", reason)

    # ---- layers ----------------------------------------------------------------------------------

    def layer(self, entry: Config, path: str) -> Any:
        """Make one layer, unbuilt."""
        kind, config, name = entry["class_name"], dict(entry["config"]), entry["name"]
        for key in (path, name):
            if key in self.replace:
                self.replaced.add(path)
                given = self.replace[key]
                return given if isinstance(given, keras.layers.Layer) else (
                    keras.layers.Lambda(given, name=name)
                )  # fmt: skip
        try:
            if entry.get("custom"):
                made = self._around_cells(config) if kind == "RNN" else self._custom(kind, config)
            elif kind == "Lambda":
                made = self._lambda(config, path, name)
            else:
                made = self._known(kind, config, path)
        except PellucidError:
            raise
        except Exception as error:  # layers check their arguments with whatever they raise
            text = " ".join(str(error).split())[:300]
            raise self.fault(path, f"{kind} cannot be made with these arguments: {text}") from error
        self.made[path] = made
        self._guard(made, entry, path)
        return made

    def _custom(self, kind: str, config: Config) -> Any:
        given = self.objects[kind]
        if inspect.isclass(given) and hasattr(given, "from_config"):
            return given.from_config(config)
        return given(**{k: v for k, v in config.items() if k not in ("dtype", "trainable")})

    def _around_cells(self, config: Config) -> Any:
        """Make an RNN of several cells, or of one that the caller gives."""

        def made(entry: Any) -> Any:
            kind, inner = entry["class_name"].split(">")[-1], dict(entry.get("config") or {})
            if kind == "StackedRNNCells":
                return [made(cell) for cell in inner["cells"]]
            if kind in self.objects:
                return self._custom(kind, inner)
            known = _arguments(getattr(keras.layers, kind))
            return getattr(keras.layers, kind)(**{k: v for k, v in inner.items() if k in known})

        known = _arguments(keras.layers.RNN)
        kept = {k: v for k, v in config.items() if k in known and k not in ("cell", "dtype")}
        return keras.layers.RNN(made(config["cell"]), **kept)

    def _lambda(self, config: Config, path: str, name: str) -> Any:
        needs = [n for n in self.source.needs if n.layer == path]
        function = self.functions.get(path) or self.objects[needs[0].name]
        shape = config.get("output_shape")
        return keras.layers.Lambda(
            function,
            output_shape=tuple(shape) if isinstance(shape, list) and shape else None,
            arguments=config.get("arguments") or {},
            name=name,
        )

    def _known(self, kind: str, config: Config, path: str) -> Any:
        first = config.get("data_format") == "channels_first"
        if first and self.source.producer.software != "keras 3":
            kind = f"ChannelsFirst{kind}" if f"ChannelsFirst{kind}" in _OWN else kind
        cls = _OWN.get(kind) or getattr(keras.layers, kind, None)
        if cls is None:
            raise self.fault(
                path, f"Keras {keras.__version__} has no layer {kind}. Update Keras, or give the "
                "layer with replace=."
            )  # fmt: skip
        for key in ("activation", "recurrent_activation"):
            if key in config:
                config[key] = self._activation(config[key], path)
        for key in ("layer", "backward_layer", "cell"):
            if isinstance(config.get(key), dict):
                config[key] = self._inner(config[key], path)
        known = _arguments(cls)  # type: ignore[arg-type]
        # Every variable gets its array from the file; random ones first would only cost time.
        config |= {key: "zeros" for key in known if key.endswith("_initializer")}
        for key in [key for key in config if key not in known]:
            value = config.pop(key)
            if key != "trainable" and not any(
                value is item or (value == item and item) for item in _HARMLESS
            ):
                raise self.fault(
                    path, f"Keras {keras.__version__} does not know the argument {key}={value!r} "
                    f"of {kind}. Update Keras, or give the layer with replace=."
                )  # fmt: skip
        return cls(**config)

    def _inner(self, entry: Config, path: str) -> Any:
        if entry["class_name"] in MODELS:
            return self.model(entry, path + "/")
        inner = f"{path}/{entry['name']}"
        made = self.layer(entry, inner)
        self.made.pop(inner, None)  # the wrapper holds its variables
        return made

    def _activation(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return self._known(value["class_name"], dict(value["config"]), path)
        if value in lost.ACTIVATIONS:
            return lost.ACTIVATIONS[value]
        if value in ACTIVATIONS:
            return value
        return self.objects[str(value).split(">")[-1]]

    def _guard(self, layer: Any, entry: Config, path: str) -> None:
        """Check the file's arrays against the shapes wanted, before those are allocated."""
        arrays = self.source.weights.get(path)
        if arrays is None or variables(entry) is None:
            return
        original = layer.build

        @functools.wraps(original)
        def checked(*args: Any, **kwargs: Any) -> Any:
            shape = next(iter([*args, *kwargs.values()]), None)
            layer.build = original
            if shape is not None and _is_shape(shape):
                self._check(entry, arrays, tuple(shape), path)
            return original(*args, **kwargs)

        layer.build = checked

    def _check(
        self, entry: Config, arrays: Mapping[str, np.ndarray[Any, Any]], shape: Shape, path: str
    ) -> None:
        for name, expected in (variables(entry, shape) or {}).items():
            if not fits(expected, arrays[name].shape):
                wanted = ", ".join("?" if n is None else str(n) for n in expected)
                raise self.fault(
                    path, f"its {name} should have the shape ({wanted}) for the input {shape}; in "
                    f"the file it has {arrays[name].shape}."
                )  # fmt: skip

    # ---- models ----------------------------------------------------------------------------------

    def model(self, entry: Config, prefix: str) -> Any:
        """Build a model, nested ones inside it first."""
        config, name = entry["config"], entry["name"]
        if entry["class_name"] == "Sequential":
            made = [self.member(layer, prefix) for layer in config["layers"]]
            with self.named(prefix.rstrip("/") or name):
                return keras.Sequential(made, name=name)
        return Graph(self, config, name, prefix).build()

    def member(self, entry: Config, prefix: str) -> Any:
        """Make one layer or model of a model."""
        path = prefix + entry["name"]
        if entry["class_name"] in MODELS:
            return self.model(entry, path + "/")
        if entry["class_name"] == "InputLayer":
            return self.input(entry, path, wrap=False)
        return self.layer(entry, path)

    def input(self, entry: Config, path: str, *, wrap: bool) -> Any:
        """Make an input layer, or its tensor."""
        shape = entry["config"].get("batch_shape")
        if not _is_shape(shape):
            raise self.fault(path, f"the file does not say the shape of the input: {shape!r}.")
        with self.named(path):
            made = keras.layers.InputLayer(
                batch_shape=tuple(shape), dtype=entry["config"].get("dtype"), name=entry["name"]
            )
        return made.output if wrap else made

    def named(self, path: str) -> Named:
        """Let errors of the block name the layer."""
        return Named(self.fault, path)

    # ---- weights ---------------------------------------------------------------------------------

    def assign(self) -> None:
        """Give every array to its variable; none is left over and none is without."""
        for path, entry in leaves(self.source.config["config"]["layers"]):
            if path not in self.made or path in self.replaced:
                continue
            layer, arrays = self.made[path], self.source.weights.get(path, {})
            targets = _targets(layer, arrays, variables(entry) is not None)
            if len(targets) != len(arrays):
                raise self.fault(
                    path, f"a {type(layer).__name__} layer with these arguments has {len(targets)} "
                    f"variables, the file holds {len(arrays)} arrays for it."
                )  # fmt: skip
            for variable, (name, array) in zip(targets, arrays.items(), strict=True):
                if tuple(variable.shape) != array.shape:
                    raise self.fault(
                        path, f"its {name} should have the shape {tuple(variable.shape)}, in the "
                        f"file it has {array.shape}."
                    )  # fmt: skip
                variable.assign(array)
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()


def _harmless(value: Any) -> bool:
    return any(value is item or (item and value == item) for item in _HARMLESS)


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(
        n is None or (isinstance(n, int) and n > 0) for n in value
    )  # fmt: skip


@functools.cache
def _arguments(cls: type) -> frozenset[str]:
    """Names of the arguments that a layer's classes take."""
    if issubclass(cls, lost._Lost):
        return frozenset({*cls.defaults, "name", "dtype", "trainable"})
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            names |= set(own)
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    return frozenset(names - {"self", "args", "kwargs"})


def _targets(layer: Any, arrays: Mapping[str, Any], known: bool) -> list[Any]:
    """Return a layer's variables in the order of its arrays."""
    found = [_by_attributes(layer, name.split("/")) for name in arrays]
    if found and {id(v) for v in found} == {id(v) for v in layer.weights}:
        return found
    own = layer.weights if known else layer.trainable_weights + layer.non_trainable_weights
    return [v for v in own if not (v.name == "count" and hasattr(layer, "finalize_state"))]


def _by_attributes(layer: Any, parts: list[str]) -> Any:
    """Find the variable that a file names by attributes: `dense/vars/0` or `cell/kernel`."""
    numbered = len(parts) > 1 and parts[-2] == "vars" and parts[-1].isdigit()
    for part in parts[:-2] if numbered else parts:
        several = isinstance(layer, list | tuple)
        layer = _items(layer).get(part) if several else getattr(layer, part, None)
    if not numbered:
        return layer if isinstance(layer, keras.Variable) else None
    own = getattr(layer, "_trainable_variables", [])
    own = own + getattr(layer, "_non_trainable_variables", [])
    return own[int(parts[-1])] if int(parts[-1]) < len(own) else None


def _items(layers: Any) -> dict[str, Any]:
    """Name the layers of a list as Keras 3 does: `lstm_cell`, `gru_cell`, `lstm_cell_1`."""
    found: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for layer in layers:
        name = snake(type(layer).__name__)
        found[f"{name}_{counts[name]}" if counts[name] else name] = layer
        counts[name] += 1
    return found


def _names() -> dict[str, Any]:
    import math

    import tensorflow as tf

    return {"keras": keras, "K": keras.backend, "ops": keras.ops, "np": np, "math": math, "tf": tf}


def _plea(model: LegacyModel, missing: list[Need]) -> str:
    lines = [f"{model.path}: the model needs code that its file does not hold."]
    for need in missing[:12]:
        if need.kind == "lambda":
            code = ", or allow_code=True to run the file's own bytecode" if need.code else ""
            lines.append(
                f"  layer {need.layer!r} ({need.class_name}) holds a function as bytecode, which "
                f"is not run. Pass replace={{{need.layer!r}: lambda x: ...}}{code}."
            )
        else:
            what = "custom layer" if need.kind == "layer" else "custom function"
            value = "TheClass" if need.kind == "layer" else "the_function"
            lines.append(
                f"  layer {need.layer!r} ({need.class_name}) needs the {what} {need.name!r}. Pass "
                f"custom_objects={json.dumps({need.name: value})}".replace(f'"{value}"', value)
                + f" or replace={{{need.layer!r}: lambda x: ...}}."
            )
    if len(missing) > 12:
        lines.append(f"  and {len(missing) - 12} more.")
    return "\n".join(lines)

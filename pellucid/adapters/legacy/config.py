"""Brings an architecture of any generation to one form: a Keras-3 configuration.

In it every model is a `Sequential` with an `InputLayer` first, or a `Functional` whose nodes are
`{"args": ..., "kwargs": ...}` with `__keras_tensor__` leaves, as Keras 3 writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pellucid.adapters.legacy.known import KERAS_LAYERS
from pellucid.adapters.legacy.model import Config, Need, Notes
from pellucid.adapters.legacy.operations import OPERATIONS, operation_of
from pellucid.adapters.legacy.spelling import MODELS, RECURRENT, familiar, respell

__all__ = ["children", "history", "inner_model", "is_model", "leaves", "normalise", "tensors"]

_ALLOWED = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\>-]*")
_CONSTANT = "_CONSTANT_VALUE"


def is_model(layer: Any) -> bool:
    """Whether a layer's configuration is that of a model with layers of its own."""
    if not isinstance(layer, dict):
        return False
    config = layer.get("config")
    if isinstance(config, list):
        return layer.get("class_name") == "Sequential"
    return isinstance(config, dict) and isinstance(config.get("layers"), list) and (
        layer.get("class_name") in MODELS or "input_layers" in config
    )  # fmt: skip


def inner_model(layer: Config) -> Config | None:
    """Return the model that a normalised layer is or wraps, `None` for other layers."""
    if layer["class_name"] in MODELS:
        return layer
    wrapped = layer["config"].get("layer") if layer["class_name"] == "TimeDistributed" else None
    return wrapped if isinstance(wrapped, dict) and wrapped["class_name"] in MODELS else None


def children(layer: Config) -> list[Config]:
    """Return the layers inside a normalised model or wrapped model, `[]` for other layers."""
    model = inner_model(layer)
    return list(model["config"]["layers"]) if model else []


def leaves(layers: list[Config], prefix: str = "") -> Iterator[tuple[str, Config]]:
    """Walk over all layers that are not models, with their paths, in order."""
    for layer in layers:
        path = f"{prefix}{layer['name']}"
        if inner_model(layer):
            yield from leaves(children(layer), path + "/")
        else:
            yield path, layer


def tensors(value: Any) -> Iterator[Config]:
    """Walk over the `__keras_tensor__` leaves of a node's arguments."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value
        else:
            for inner in value.values():
                yield from tensors(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from tensors(inner)


def history(tensor: Config) -> tuple[str, int, int]:
    """Return layer, call and output that a `__keras_tensor__` stands for."""
    name, call, index = tensor["config"]["keras_history"]
    return str(name), int(call), int(index)


def normalise(raw: Config, notes: Notes) -> Config:
    """Bring a whole architecture to the normal form.

    Raises
    ------
    LoadError : it is no architecture, or one that cannot be brought over.
    """
    if not is_model(raw):
        name = raw.get("class_name")
        raise notes.fault(
            "architecture",
            f"{name!r} is a subclassed model, whose layers are in its program only. Give its "
            "class by custom_objects=, or load it there and give the model itself."
            if name and name not in MODELS
            else "there is no list of layers; this is not the architecture of a Keras model.",
        )
    return _Reader(notes).model(_untupled(raw), "model", "")


def _untupled(value: Any) -> Any:
    """Turn tuples, which tf.keras saves as dictionaries, into lists."""
    if isinstance(value, dict):
        if value.get("class_name") == "__tuple__":
            return [_untupled(item) for item in value.get("items", [])]
        return {key: _untupled(item) for key, item in value.items()}
    return [_untupled(item) for item in value] if isinstance(value, list) else value


class _Reader:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.unnamed = 0

    def model(self, raw: Config, name: str, path: str) -> Config:
        config = raw["config"]
        if isinstance(config, list):
            config = {"layers": config}
        if not raw.get("name") and not config.get("name") and path:
            self.unnamed += 1  # Keras 1 does not save the names of Sequentials; it counts them
            name = f"sequential_{self.unnamed}"
        name = self.legal(str(config.get("name") or raw.get("name") or name), {})
        inside = f"{path}{name}/" if path else ""
        if path == "" and raw.get("class_name") not in MODELS:
            self.notes.translate(f"{raw.get('class_name')} is read as a functional model")
        if "input_layers" in config:
            return self.functional(config, name, inside or "/")
        return self.sequential(config, name, inside or "/")

    def legal(self, name: str, taken: dict[str, Any]) -> str:
        """Give a name that Keras 3 forbids another one, and remember both."""
        new = name
        if not _ALLOWED.fullmatch(name):
            new = re.sub(r"[^A-Za-z0-9_.\\>-]", "_", name) or "layer"
            new = new if _ALLOWED.fullmatch(new) else f"layer{new}"
            while new in taken or new in self.notes.renamed:
                new += "_"
            self.notes.renamed[new] = name
            self.notes.translate(f"layer {name!r} is called {new!r}: Keras 3 forbids the name")
        return new

    # ---- layers ------------------------------------------------------------------------------

    def layer(self, raw: Any, inside: str, taken: dict[str, Any]) -> Config:
        """Normalise one layer, without its nodes."""
        if not isinstance(raw, dict) or not isinstance(raw.get("class_name"), str):
            raise self.notes.fault(inside.strip("/"), "an entry of the layer list is no layer.")
        if is_model(raw):
            return self.model(raw, str(raw.get("name") or "model"), inside)
        kind = raw["class_name"].split(">")[-1]
        config = raw.get("config")
        if not isinstance(config, dict):
            raise self.notes.fault(inside.strip("/"), f"a {kind} layer without a configuration.")
        old = str(raw.get("name") or config.get("name") or kind.lower())
        path = (inside + old).lstrip("/")
        name = self.legal(old, taken)
        if operation := operation_of(raw):
            if operation["function"] not in OPERATIONS:
                self.notes.need(Need(path, kind, "function", operation["function"]))
            self.notes.translate(f"operations of TensorFlow in the graph ({kind}) are built as "
                                 "Keras operations")  # fmt: skip
            return {"class_name": "Operation", "name": name, "config": {"name": name, **operation}}
        if kind == "Lambda":
            return {"class_name": kind, "name": name, "config": self.lambda_(config, name, path)}
        if kind == "RNN" and isinstance(config.get("cell"), dict):
            return self.around_cells(config, name, path)
        registered = ">" in raw["class_name"] + str(raw.get("registered_name"))
        if known := familiar(kind, config):
            self.notes.translate(f"{kind} is taken for that of Keras's applications")
            return {"class_name": known, "name": name, "config": {"name": name} if (
                known == "Identity") else {"name": name, "dtype": "float32",
                "projection_dim": config["projection_dim"]}}  # fmt: skip
        if registered or kind not in KERAS_LAYERS:
            self.notes.need(Need(path, kind, "layer", kind))
            config = {k: v for k, v in config.items() if k not in _INPUT_KEYS}
            config = {**config, "name": name}
            return {"class_name": kind, "name": name, "custom": True, "config": config}
        kind, new = respell(kind, config, self.notes, path)
        for key in ("layer", "backward_layer", "cell"):
            if isinstance(new.get(key), dict):
                new[key] = self.layer(new[key], path + "/", {})
        new["name"] = name
        return {"class_name": kind, "name": name, "config": new}

    def around_cells(self, config: Config, name: str, path: str) -> Config:
        """Keep an RNN around one or several cells for the builder; a cell may be code."""
        cell = config["cell"]
        cells = (cell.get("config") or {}).get("cells")
        for one in cells if isinstance(cells, list) else [cell]:
            kind = str(one.get("class_name") if isinstance(one, dict) else one).split(">")[-1]
            if kind not in _CELLS:
                self.notes.need(Need(path, kind, "layer", kind))
        kept = {k: v for k, v in config.items() if k not in _INPUT_KEYS}
        return {"class_name": "RNN", "name": name, "custom": True, "config": {**kept, "name": name}}

    def lambda_(self, config: Config, name: str, path: str) -> Config:
        function, kind = config.get("function"), config.get("function_type")
        named = function if isinstance(function, str) and kind != "lambda" else ""
        if isinstance(function, dict) and function.get("class_name") == "function":
            named = str(function.get("config"))
        code: Any = None
        if not named:
            code = function.get("config") if isinstance(function, dict) else function
        self.notes.need(Need(path, "Lambda", "function" if named else "lambda", named, code))
        kept = {key: config.get(key) for key in ("output_shape", "arguments")}
        return {"name": name, **kept}

    # ---- models ------------------------------------------------------------------------------

    def sequential(self, config: Config, name: str, inside: str) -> Config:
        raws = config["layers"]
        if raws and isinstance(raws[0], dict) and raws[0].get("class_name") == "Merge":
            return self.branches(raws, name, inside)
        layers: dict[str, Config] = {}
        for raw in raws:
            layer = self.layer(raw, inside, layers)
            if layer["name"] in layers:
                raise self.notes.fault(inside + layer["name"], "two layers have this name.")
            layers[layer["name"]] = layer
        found = list(layers.values())
        if found and found[0]["class_name"] != "InputLayer":
            shape = _input_shape(raws[0]) or config.get("build_input_shape")
            if shape is None and isinstance(config.get("build_config"), dict):
                shape = config["build_config"].get("input_shape")
            dtype = (raws[0].get("config") or {}) if isinstance(raws[0], dict) else {}
            kind = dtype.get("input_dtype") if isinstance(dtype, dict) else None
            found.insert(0, _input_layer(f"{found[0]['name']}_input", shape, kind))
        return {"class_name": "Sequential", "name": name, "config": {"name": name,
                "layers": found}}  # fmt: skip

    def branches(self, raws: list[Any], name: str, inside: str) -> Config:
        """Turn Keras 1's Sequential that begins by merging other models into a functional one."""
        merge = raws[0]
        layers: list[Config] = []
        refs = []
        for index, raw in enumerate(merge["config"].get("layers", [])):
            branch = self.layer(raw, inside, {})
            inputs = [part for part in children(branch) if part["class_name"] == "InputLayer"]
            shape = inputs[0]["config"]["batch_shape"] if inputs else _input_shape(raw)
            entry = _input_layer(f"{branch['name']}_input_{index}", shape, None)
            entry["inbound_nodes"] = []
            branch["inbound_nodes"] = [_node([_tensor(entry, 0)])]
            layers += [entry, branch]
            refs.append(_tensor(branch, 0))
        ends = [_entry(layer, 0) for layer in layers if layer["class_name"] == "InputLayer"]
        merged = self.layer(merge, inside, {})
        merged["inbound_nodes"] = [_node([refs])]
        layers.append(merged)
        for raw in raws[1:]:
            layer = self.layer(raw, inside, {})
            layer["inbound_nodes"] = [_node([_tensor(layers[-1], 0)])]
            layers.append(layer)
        self.notes.translate("a Sequential that begins with Merge is built as a functional model")
        return {"class_name": "Functional", "name": name, "config": {"name": name,
                "layers": layers, "input_layers": ends,
                "output_layers": [_entry(layers[-1], 0)]}}  # fmt: skip

    def functional(self, config: Config, name: str, inside: str) -> Config:
        layers: dict[str, Config] = {}  # by the name in the file
        nodes: dict[str, list[Any]] = {}
        for raw in config["layers"]:
            old = _own_name(raw)
            if old in layers:
                raise self.notes.fault(inside + old, "two layers have this name.")
            layers[old] = self.layer(raw, inside, {n["name"]: n for n in layers.values()})
            calls = raw.get("inbound_nodes") or []
            nodes[old] = calls if isinstance(calls, list) else []
        wiring = _Wiring(layers, nodes, self.notes, inside)
        ends = [wiring.ends(config.get(key)) for key in ("input_layers", "output_layers")]
        for old, layer in layers.items():
            layer["inbound_nodes"] = [wiring.node(node, old) for node in nodes[old]]
        return {"class_name": "Functional", "name": name, "config": {"name": name,
                "layers": list(layers.values()), "input_layers": ends[0],
                "output_layers": ends[1]}}  # fmt: skip


_CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")
_INPUT_KEYS = ("batch_input_shape", "input_dtype", "dtype", "batch_size")


def _own_name(raw: Any) -> str:
    config = raw.get("config") if isinstance(raw, dict) else None
    own = config.get("name") if isinstance(config, dict) else None
    return str((raw.get("name") if isinstance(raw, dict) else None) or own or "")


def _input_shape(raw: Any) -> Any:
    """Find the input shape that the first layer of an old Sequential states."""
    if not isinstance(raw, dict):
        return None
    config = raw.get("config")
    if isinstance(config, dict) and (config.get("batch_input_shape") or config.get("batch_shape")):
        return config.get("batch_input_shape") or config["batch_shape"]
    if is_model(raw):
        layers = config if isinstance(config, list) else (config or {})["layers"]
        return _input_shape(layers[0]) if layers else None
    return None


def _input_layer(name: str, shape: Any, dtype: Any) -> Config:
    kind = dtype if isinstance(dtype, str) and dtype.startswith(("int", "uint")) else "float32"
    config = {"name": name, "batch_shape": shape, "dtype": kind}
    return {"class_name": "InputLayer", "name": name, "config": config}


def _offset(layer: Config) -> int:
    return int(layer["class_name"] == "Functional")  # its own node comes first in Keras 3


def _tensor(layer: Config, call: int, index: int = 0) -> Config:
    place = [layer["name"], call + _offset(layer), index]
    return {"class_name": "__keras_tensor__", "config": {"keras_history": place}}


def _entry(layer: Config, call: int, index: int = 0) -> list[Any]:
    return [layer["name"], call + _offset(layer), index]


def _node(args: list[Any], kwargs: Config | None = None) -> Config:
    return {"args": args, "kwargs": kwargs or {}}


class _Wiring:
    """Reads the nodes of one functional model, in the spelling of any generation.

    Where a layer is itself a model, old files count its calls from 1 (0 being the making of the
    model), except where they do not: the base is what the references in the file allow.
    """

    def __init__(
        self, layers: dict[str, Config], nodes: dict[str, list[Any]], notes: Notes, inside: str
    ) -> None:
        self.layers, self.nodes, self.notes, self.inside = layers, nodes, notes, inside
        self.seen: dict[str, set[int]] = {}

    def ends(self, value: Any) -> list[list[Any]]:
        """Read `input_layers` or `output_layers`."""
        self._survey()
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list) and value and isinstance(value[0], str):
            value = [value]
        if not isinstance(value, list) or not value:
            raise self.notes.fault(self.inside.strip("/"), "the model names no inputs or outputs.")
        found = [self._reference(item) for item in value]
        return [list(history(tensor)) for tensor in found]

    def node(self, node: Any, name: str) -> Config:
        """Read one call of a layer."""
        place = (self.inside + name).lstrip("/")
        if isinstance(node, dict) and "args" in node:
            args, kwargs = self._convert(node["args"]), self._convert(node.get("kwargs") or {})
        elif isinstance(node, list) and node and isinstance(node[0], str):
            args, kwargs = [self._convert(node)], self._keywords(node)
        elif isinstance(node, list) and node and all(isinstance(part, list) for part in node):
            parts = [self._convert(part) for part in node]
            operation = self.layers[name]["class_name"] == "Operation"
            spread = len(parts) == 1 or (operation and self._raw(name))
            args = parts if spread else [parts]
            kwargs = self._keywords(node[0])
        else:
            raise self.notes.fault(f"layer {place!r}", f"its inputs are unreadable: {node!r:.80}.")
        for key in ("name", "mask"):
            if not list(tensors(kwargs.get(key))):
                kwargs.pop(key, None)
        if self.layers[name]["class_name"] in RECURRENT | {"Bidirectional"}:
            args, kwargs = _states(args, kwargs)
        return _node(args, kwargs)

    def _raw(self, name: str) -> bool:
        return str(self.layers[name]["config"].get("function", "")).startswith("raw:")

    def _keywords(self, reference: list[Any]) -> Config:
        kwargs = reference[3] if len(reference) > 3 else {}
        return {k: self._convert(v) for k, v in kwargs.items()} if isinstance(kwargs, dict) else {}

    def _convert(self, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
                if value[0] == _CONSTANT:
                    if any(tensors(value[2])):
                        raise self.notes.fault(self.inside.strip("/"), "a constant is a tensor.")
                    return value[2]
                if value[0] in self.layers and isinstance(value[2], int):
                    return self._reference(value)
            return [self._convert(item) for item in value]
        if isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                return self._reference(value["config"]["keras_history"])
            return {key: self._convert(item) for key, item in value.items()}
        return value

    def _reference(self, value: Any) -> Config:
        if not isinstance(value, list) or len(value) < 3 or value[0] not in self.layers:
            raise self.notes.fault(
                self.inside.strip("/"), f"a connection leads to a layer that is not there: "
                f"{value!r:.80}."
            )  # fmt: skip
        name, call = value[0], int(value[1]) - self._base(value[0])
        calls = max(1, len(self.nodes[name]))
        if not 0 <= call < calls:
            raise self.notes.fault(
                f"layer {self.inside.lstrip('/') + name!r}",
                f"a connection asks for its call number {value[1]}; it is called {calls} times.",
            )
        return _tensor(self.layers[name], call, int(value[2]))

    def _survey(self) -> None:
        """Note every call number that the file mentions, by layer."""
        stack: list[Any] = list(self.nodes.values())
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                stack.extend(item.values())
            elif isinstance(item, list):
                known = len(item) >= 3 and isinstance(item[0], str) and item[0] in self.layers
                if known and isinstance(item[1], int):
                    self.seen.setdefault(item[0], set()).add(item[1])
                stack.extend(item)

    def _base(self, name: str) -> int:
        model = self.layers[name]["class_name"] in MODELS
        seen, calls = self.seen.get(name, set()), len(self.nodes[name])
        if not seen:
            return int(model and self.layers[name]["class_name"] == "Functional")
        base = max(seen) - calls + 1 if max(seen) >= calls + int(model) else int(model)
        return min(base, min(seen)) if model else 0


def _states(args: list[Any], kwargs: Config) -> tuple[list[Any], Config]:
    """Keras 2 hands a recurrent layer its initial states in one list with the input."""
    if len(args) == 1 and isinstance(args[0], list) and len(args[0]) > 1:
        return [args[0][0]], {**kwargs, "initial_state": args[0][1:]}
    return args, kwargs

"""Calls the layers of a functional model, in an order in which their inputs exist."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import keras

from pellucid.adapters.legacy.config import history, tensors
from pellucid.adapters.legacy.layers import Operation
from pellucid.adapters.legacy.model import Config
from pellucid.adapters.legacy.operations import OPERATIONS
from pellucid.errors import LoadError, PellucidError

__all__ = ["Builder", "Graph", "Named"]


class Named:
    """Turn what Keras raises while it builds a layer into an error that names the layer."""

    def __init__(self, fault: Callable[[str, str], LoadError], path: str) -> None:
        self.fault, self.path = fault, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        cause = error
        while cause is not None and not isinstance(cause, PellucidError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, PellucidError):
            if cause is not error:
                raise cause from None
            return
        if isinstance(error, Exception):
            text = " ".join(str(error).split())[:400]
            raise self.fault(self.path, f"it cannot be built: {text}") from error


class Builder(Protocol):
    """What a graph asks of the builder it belongs to."""

    objects: dict[str, Any]
    replace: dict[str, Any]

    def fault(self, path: str, reason: str) -> LoadError:
        """Build the error for a layer."""

    def input(self, entry: Config, path: str, *, wrap: bool) -> Any:
        """Make an input layer, or its tensor."""

    def member(self, entry: Config, prefix: str) -> Any:
        """Make one layer or model of a model."""

    def named(self, path: str) -> Named:
        """Let errors of the block name the layer."""


class Graph:
    """Calls the layers of one functional model in an order in which their inputs exist."""

    def __init__(self, builder: Builder, config: Config, name: str, prefix: str) -> None:
        self.builder, self.config, self.name, self.prefix = builder, config, name, prefix
        self.entries = {entry["name"]: entry for entry in config["layers"]}
        self.values: dict[tuple[str, int], list[Any]] = {}
        self.layers: dict[str, Any] = {}

    def build(self) -> Any:
        """Build the model."""
        waiting: list[tuple[str, int, Config]] = []
        for name, entry in self.entries.items():
            nodes = entry.get("inbound_nodes") or []
            if entry["class_name"] == "InputLayer":
                path = self.prefix + name
                self.values[name, 0] = [self.builder.input(entry, path, wrap=True)]
            waiting += [(name, call, node) for call, node in enumerate(nodes)]
        while waiting:
            later = [item for item in waiting if not self._try(*item)]
            if len(later) == len(waiting):
                raise self.builder.fault(
                    self.prefix + later[0][0], "its inputs never come to exist: the connections of "
                    "the model run in a circle or lead nowhere."
                )  # fmt: skip
            waiting = later
        inputs = [self._end(ref) for ref in self.config["input_layers"]]
        outputs = [self._end(ref) for ref in self.config["output_layers"]]
        single = len(inputs) == 1, len(outputs) == 1
        with self.builder.named(self.prefix.rstrip("/") or self.name):
            return keras.Model(
                inputs[0] if single[0] else inputs, outputs[0] if single[1] else outputs,
                name=self.name,
            )  # fmt: skip

    def _end(self, reference: list[Any]) -> Any:
        return self._value({"config": {"keras_history": reference}})

    def _value(self, tensor: Config) -> Any:
        name, call, index = history(tensor)
        call -= int(self.entries[name]["class_name"] == "Functional")
        found = self.values.get((name, call))
        if found is None or not 0 <= index < len(found):
            raise self.builder.fault(self.prefix + name, f"it has no output number {index}.")
        return found[index]

    def _ready(self, tensor: Config) -> bool:
        name, call, _ = history(tensor)
        return (name, call - int(self.entries[name]["class_name"] == "Functional")) in self.values

    def _try(self, name: str, call: int, node: Config) -> bool:
        if not all(self._ready(tensor) for tensor in tensors([node["args"], node["kwargs"]])):
            return False
        entry, path = self.entries[name], self.prefix + name
        if entry["class_name"] == "Operation" and path not in self.builder.replace:
            result = self._operate(entry, node, path, call)
        else:
            if name not in self.layers:
                self.layers[name] = self.builder.member(entry, self.prefix)
            layer = self.layers[name]
            args, kwargs = self._filled(node["args"]), self._filled(node["kwargs"])
            accepted = inspect.signature(layer.call).parameters
            free = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
            kwargs = {k: v for k, v in kwargs.items() if free or k in accepted}
            with self.builder.named(path):
                result = layer(*args, **kwargs)
        self.values[name, call] = keras.tree.flatten(result)
        return True

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                return self._value(value)
            return {key: self._filled(item) for key, item in value.items()}
        return [self._filled(item) for item in value] if isinstance(value, list) else value

    def _operate(self, entry: Config, node: Config, path: str, call: int) -> Any:
        """Make the layer of an operation: its constants are arguments, its tensors inputs."""
        found: list[Any] = []

        def template(value: Any) -> Any:
            if isinstance(value, dict):
                if value.get("class_name") == "__keras_tensor__":
                    found.append(self._value(value))
                    return {"tensor": len(found) - 1}
                return {key: template(item) for key, item in value.items()}
            return [template(item) for item in value] if isinstance(value, list) else value

        args, keywords = template(node["args"]), template(node["kwargs"])
        function, constants = entry["config"]["function"], entry["config"]["arguments"]
        if function.startswith("raw:"):
            given = {int(k): v for k, v in constants["constants"].items()}
            queue = iter(args)
            args = [given[i] if i in given else next(queue) for i in range(len(args) + len(given))]
            keywords = {"attributes": constants["attributes"]}
        else:
            keywords = {**constants, **keywords}
        if function not in OPERATIONS:  # a function the caller gave
            made = keras.layers.Lambda(
                lambda xs: self.builder.objects[function](*_spread(xs)), name=entry["name"]
            )
        else:
            name = entry["name"] + (f"_{call}" if call else "")
            made = Operation(function=function, template=args, keywords=keywords, name=name)
        with self.builder.named(path):
            return made(found[0] if len(found) == 1 else found)


def _spread(xs: Any) -> list[Any]:
    return list(xs) if isinstance(xs, (list, tuple)) else [xs]

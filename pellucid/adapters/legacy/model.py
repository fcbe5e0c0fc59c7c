"""What a model file says, in one form for all generations of Keras.

`LegacyModel` is plain data: reading a file needs no framework, and the doctor and the tests look
at the same thing that `build` turns into a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import LoadError

__all__ = ["Config", "LegacyModel", "Need", "Notes", "Producer", "Stored", "Weights", "fault"]

Config = dict[str, Any]
Weights = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Producer:
    """The software that wrote a file, as far as the file tells.

    Attributes
    ----------
    software : "keras" (multi-backend, to 2.3), "tf.keras" or "keras 3".
    version : as written in the file, "" where it says nothing.
    backend : "tensorflow", "theano", "cntk", "jax" or "torch".
    format : "hdf5", "json + hdf5", "yaml + hdf5", "keras zip", "weights hdf5", ...
    data_format : "channels_last" or "channels_first", as most layers have it.
    date : when the file was saved, where it says so.
    """

    software: str
    version: str
    backend: str
    format: str
    data_format: str
    date: str | None = None

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers, `(2, 2, 4)` for "2.2.4-tf"; `()` if unknown."""
        digits = self.version.split("-")[0].split(".")
        return tuple(int(part) for part in digits if part.isdecimal())

    @property
    def generation(self) -> int:
        """1, 2 or 3: the generation of the configuration format."""
        return min(self.number[0], 3) if self.number else 2


@dataclass(frozen=True, slots=True)
class Need:
    """Something the file only names and the caller has to give.

    Attributes
    ----------
    layer : path of the layer that needs it.
    class_name : its class.
    kind : "layer", "function" or "lambda".
    name : the key under which `custom_objects` must hold it; "" for a lambda without a name.
    code : the stored bytecode of a lambda, base64 or latin-1 text; never run unless asked.
    """

    layer: str
    class_name: str
    kind: str
    name: str
    code: Any = None


@dataclass(frozen=True, slots=True)
class Stored:
    """One array under the name the file gives it."""

    name: str
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class LegacyModel:
    """A model file in normal form.

    Attributes
    ----------
    path : the file.
    config : `{"class_name": "Functional" | "Sequential", "config": ...}`, spelt as Keras 3 does.
    weights : by layer path (`outer/inner`), then by variable name, in the layer's own order.
    producer : who wrote the file.
    translated : one sentence for everything that was brought over from an older form.
    needs : custom objects that the model cannot be built without.
    warnings : what the reader was not sure of, or what looks wrong.
    renamed : new layer name to the file's, where Keras 3 forbids the latter.
    objects : classes that came with an architecture given as a model or a function.
    """

    path: str
    config: Config
    weights: Weights
    producer: Producer
    translated: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    warnings: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    objects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(int(np.size(a)) for layer in self.weights.values() for a in layer.values())


class Notes:
    """Collects, while a file is read, what was translated, needed and doubtful."""

    def __init__(self, path: str, producer: Producer) -> None:
        self.path = path
        self.producer = producer
        self.translated: dict[str, None] = {}
        self.warnings: dict[str, None] = {}
        self.needs: dict[tuple[str, str], Need] = {}
        self.renamed: dict[str, str] = {}

    def translate(self, sentence: str) -> None:
        """Record a translation once."""
        self.translated[sentence] = None

    def warn(self, sentence: str) -> None:
        """Record a doubt once."""
        self.warnings[sentence] = None

    def need(self, need: Need) -> None:
        """Record a custom object once per layer."""
        self.needs[need.layer, need.name] = need

    def fault(self, place: str, reason: str) -> LoadError:
        """Build the error for this file."""
        return fault(self.path, place, reason)


def fault(path: str, place: str, reason: str) -> LoadError:
    """Build the one kind of error that reading raises: file, place, reason."""
    return LoadError(f"{path}: {place + ': ' if place else ''}{reason}")

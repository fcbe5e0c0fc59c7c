"""What the doctor found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pellucid.doctor.preprocessing import PreprocessingGuess

__all__ = ["Check", "Custom", "Diagnosis", "End", "Finding", "State"]

State = Literal["trained", "partly untouched", "untouched", "damaged", "dead", "unknown"]


@dataclass(frozen=True)
class End:
    """An input or an output.

    Attributes
    ----------
    name : the file's name for it, or the adapter's.
    shape : in the model's own layout with the batch first, None where any size fits; () if the
        file does not say it.
    kind : for outputs what they are, such as "5 classes, softmax".
    """

    name: str
    shape: tuple[int | None, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Custom:
    """Code that the model needs and its file does not hold.

    Attributes
    ----------
    layer : the first layer that needs it.
    kind : "layer", "function" or "lambda".
    name : the key of `custom_objects`, or for a lambda that of `replace`.
    described : what the file says of it.
    template : Python code to fill in.
    """

    layer: str
    kind: str
    name: str
    described: str
    template: str


@dataclass(frozen=True)
class Finding:
    """Something about the weights of one layer."""

    layer: str
    array: str
    text: str


@dataclass(frozen=True)
class Check:
    """One comparison of the opened model with its file; `passed` is None where it had no means."""

    name: str
    passed: bool | None
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of a model file.

    Attributes
    ----------
    path, size : the file, and its bytes.
    framework : "keras", "torch", "onnx", or "" where it is none of these.
    producer : what wrote it: library, version, backend, format, data_format, date.
    opens : whether `pellucid.load` opens it with what was given.
    problems : why it does not.
    inputs, outputs : what the network takes and gives.
    layers, parameters : how many.
    scaling : the layers inside it that scale the input, in words.
    translated : what was brought over from an older form.
    warnings : what the reader was not sure of.
    custom : the code that it needs.
    state, state_reason : what its weights look like, and why.
    findings : arrays with something to say of them.
    checks : comparisons of the opened model with the file.
    preprocessing : what it was most likely trained with, if pictures were given.
    """

    path: str
    size: int
    framework: str = ""
    producer: Mapping[str, str] = field(default_factory=dict)
    opens: bool = False
    problems: tuple[str, ...] = ()
    inputs: tuple[End, ...] = ()
    outputs: tuple[End, ...] = ()
    layers: int = 0
    parameters: int = 0
    scaling: tuple[str, ...] = ()
    translated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    custom: tuple[Custom, ...] = ()
    state: State = "unknown"
    state_reason: str = ""
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = ()
    preprocessing: PreprocessingGuess | None = None

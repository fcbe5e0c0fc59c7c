"""Which engine computes: the model's own framework, or onnxruntime on its ONNX form.

The framework is the reference. The ONNX form is a translation of the network, and the gradient of
a translation is as good as the translation; so `auto` takes it only where one is at hand and has
been seen to agree. One noise image, drawn once per export, goes through both engines; compared
are the logits, and the gradients at the inputs by the exact and by the guided rule, which between
them pass every layer and every rectifier. The outcome is kept beside the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from pellucid.adapters.base import Adapter, Array, Rectifier
from pellucid.errors import InputError, PellucidError
from pellucid.graph.cache import cached_note

__all__ = ["Agreement", "Engine", "agreement", "engine_for", "overlooked_rectifiers"]

Engine = Literal["native", "onnx", "auto"]
VALUES = 1e-4
GRADIENTS = 1e-2


@dataclass(frozen=True)
class Agreement:
    """How far onnxruntime's answer is from the framework's, for one noise image.

    Attributes
    ----------
    values : greatest difference of the logits, in units of the greatest logit.
    exact, guided : length of the difference of the gradients at the inputs, in units of the
        gradient's length, by these rectifier rules.
    """

    values: float
    exact: float
    guided: float

    @property
    def holds(self) -> bool:
        """Whether the logits agree to 1e-4 and the gradients to 1e-2.

        Rounding moves a few activations of a deep network across the kinks of rectifiers, which
        costs its gradient about 1e-3; a wrong layer costs it 0.1 and more.
        """
        return self.values <= VALUES and max(self.exact, self.guided) <= GRADIENTS

    def __str__(self) -> str:
        """Say it in words."""
        furthest = max(self.exact, self.guided)
        return f"logits differ by {self.values:.1e}, gradients by {furthest:.1e}"


def engine_for(model: Adapter, engine: Engine = "native") -> tuple[Adapter, str]:
    """Choose what computes a model.

    Parameters
    ----------
    model : the model's own adapter.
    engine : `"native"`, the model's framework; `"onnx"`, onnxruntime on the model's ONNX form,
        which is exported if need be; `"auto"`, onnxruntime if an export is at hand and agrees,
        else the framework.

    Returns
    -------
    adapter, reason : the reason is empty unless `"auto"` chose.

    Raises
    ------
    InputError : there is no such engine.
    UnsupportedError : `"onnx"`, and the model has no ONNX form.
    """
    if engine not in ("native", "onnx", "auto"):
        raise InputError(f"engine={engine!r} is unknown: 'native', 'onnx' or 'auto'.")
    if engine == "native" or model.engine == "onnx":
        return model, "the model is an ONNX file" if engine == "auto" else ""
    from pellucid.adapters.onnx.exported import exported

    if engine == "onnx":
        return exported(model), ""
    if not model.has_form:
        return model, "no ONNX export is at hand; engine='onnx' makes one"
    try:
        found = agreement(model)
        other = exported(model)
    except PellucidError as error:
        return model, f"the ONNX export does not run: {error}"
    if found.holds:
        return other, f"the ONNX export agrees: {found}"
    return model, f"the ONNX export disagrees: {found}"


def overlooked_rectifiers(model: Adapter) -> str:
    """Say that the framework's engine does not know a rectifier that the ONNX engine knows.

    Returns
    -------
    note : empty if none is known, which takes an ONNX export that is at hand.
    """
    if model.engine == "onnx" or not model.has_form:
        return ""
    try:
        found = agreement(model)
    except PellucidError:
        return ""
    if not found.exact <= GRADIENTS < found.guided:
        return ""
    return (
        "The network has a rectifier in a spelling that its framework's engine does not recognise, "
        "and through which this map follows the plain gradient: explain it with engine='onnx'."
    )


def agreement(model: Adapter) -> Agreement:
    """Compare the model's engine with onnxruntime; done once per export and onnxruntime.

    Raises
    ------
    UnsupportedError : the model has no ONNX form.
    """
    from pellucid.adapters.onnx.exported import exported

    key = ("agreement", *exported(model).versions.values(), *model.form_key)
    return Agreement(**cached_note(key, lambda: asdict(_compared(model))))


def _compared(model: Adapter) -> Agreement:
    from pellucid.adapters.onnx.exported import exported

    other = exported(model)
    rng, count = np.random.default_rng(0), model.fixed_batch or 1
    shapes = [(count, *(size or 1 for size in port.shape[1:])) for port in other.inputs]
    x = tuple(rng.standard_normal(shape, np.float32) for shape in shapes)
    inputs = [port.name for port in model.inputs if port.dtype.startswith("float")]
    logits = [port.logits for port in model.outputs]
    given = dict(zip(logits, rng.integers(1 << 31, size=len(logits)), strict=True))

    def seed(values: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: np.random.default_rng(given[name]).standard_normal(values[name].shape, np.float32)
            for name in logits
        }

    def differences(relu: Rectifier) -> tuple[float, float]:
        (ours, own), (theirs, others) = (
            engine.pullback(x, seed, inputs, logits, relu) for engine in (model, other)
        )
        return (
            max(_greatest(theirs[n] - ours[n]) / (_greatest(ours[n]) or 1) for n in logits),
            max((_length(others[n] - own[n]) / (_length(own[n]) or 1) for n in inputs), default=0),
        )

    values, exact = differences("exact")
    return Agreement(values, exact, differences("guided")[1])


def _greatest(array: Array) -> float:
    return float(np.abs(array).max())


def _length(array: Array) -> float:
    return float(np.linalg.norm(array))

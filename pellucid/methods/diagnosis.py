"""Why a map shows nothing: which tensor, for what reason, and what to try.

Only where a map is blank, constant or not finite, the network is run once more on that image, with
the values and gradients of all its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Layer
from pellucid.errors import PellucidError
from pellucid.methods.objective import Objective

__all__ = ["Diagnosis", "diagnose", "shortfall", "symptom"]

_MOST = 4  # images of a batch that are looked into
_SQUASHING = ("Softmax", "Sigmoid", "Tanh", "HardSigmoid")


@dataclass(frozen=True)
class Diagnosis:
    """What ails a map.

    Attributes
    ----------
    kind : `"not-finite"`, `"against"`, `"saturated"`, `"dead"`, `"not-reached"`, `"constant"`,
        `"integration"`, `"completeness"`, or `"blank"` where no reason was found.
    words : for the user: what, where, why, what to try.
    """

    kind: str
    words: str


def symptom(attribution: Array, drawn: Array) -> str | None:
    """Tell whether a map shows nothing: `"not-finite"`, `"blank"`, `"constant"` or None.

    Parameters
    ----------
    attribution : of one image, as the method gave it.
    drawn : what is drawn of it, before it is resized.
    """
    if not np.isfinite(attribution).all():
        return "not-finite"
    if not drawn.any():
        return "blank"
    if drawn.size > 1 and np.ptp(drawn) <= 1e-4 * np.abs(drawn).max():
        return "constant"
    return None


def shortfall(details: Mapping[str, Any], score: float) -> Diagnosis | None:
    """Tell where what a method gives should sum to the score, or to a difference, and does not.

    Parameters
    ----------
    details : of one image, with `"convergence_delta"` and `"baseline_score"` where a path was
        walked, `"completeness_delta"` where terms add up.
    score : what was explained.
    """
    if "convergence_delta" in details:
        delta, difference = float(details["convergence_delta"]), score - details["baseline_score"]
        if abs(delta) > max(0.05 * abs(difference), 1e-4):
            return Diagnosis(
                "integration",
                f"The attributions sum to {difference + delta:.4g}, the scores differ by "
                f"{difference:.4g}: the path was walked too coarsely. Take more steps or samples.",
            )
    delta = float(details.get("completeness_delta", 0))
    if abs(delta) > max(0.05 * abs(score), 1e-4):
        return Diagnosis(
            "completeness",
            f"Input and biases miss the score of {score:.4g} by {abs(delta):.4g}: the network has "
            "non-linear functions of which what they add is not known, and in no term.",
        )
    return None


def diagnose(
    model: Adapter,
    x: Batch,
    objective: Objective,
    symptoms: Sequence[str | None],
    attribution: Array,
    layers: Sequence[str],
) -> list[Diagnosis | None]:
    """Find out why maps show nothing.

    Parameters
    ----------
    model, x, objective, layers : as the method had them.
    symptoms : see `symptom`, one per image.
    attribution : as the method gave it, `(N, ...)`.

    Returns
    -------
    diagnoses : one per image, None where nothing is wrong.
    """
    found: list[Diagnosis | None] = []
    inputs = [x] if isinstance(x, np.ndarray) else list(x)
    looked = 0
    for index, ailing in enumerate(symptoms):
        if ailing is None:
            found.append(None)
            continue
        where = " and ".join(layers) or "the input"
        if ailing == "blank" and attribution[index].any():
            found.append(_against(where))
            continue
        looked += 1
        if looked > _MOST:
            found.append(Diagnosis(ailing, f"The map at {where} shows nothing either."))
            continue
        image = [np.asarray(array)[index : index + 1] for array in inputs]
        try:
            case = _Case(model, image, objective, index, where, layers)
            found.append(case.examined(ailing))
        except PellucidError:  # a layer that has no gradient, say: then it stays unexplained
            found.append(Diagnosis(ailing, _unexplained(where, ailing)))
    return found


def _against(where: str) -> Diagnosis:
    return Diagnosis(
        "against",
        f"The map at {where} is empty: the evidence speaks against the target everywhere. Try "
        "another target or an earlier layer, or look at what speaks against it with relu=False.",
    )


def _unexplained(where: str, ailing: str) -> str:
    shown = {"blank": "is zero", "constant": "is the same everywhere"}.get(ailing, "is not finite")
    return f"The map at {where} {shown}. Try another target or an earlier layer."


class _Case:
    """One image, with the values and gradients of all layers."""

    def __init__(
        self,
        model: Adapter,
        image: Sequence[Array],
        objective: Objective,
        index: int,
        where: str,
        layers: Sequence[str],
    ) -> None:
        self.model, self.image, self.objective = model, image, objective
        self.index, self.where, self.layers = index, where, layers
        self.leaves = [layer for layer in model.layers if not layer.container]
        self.cotangents: Mapping[str, Array] = {}
        names = tuple(dict.fromkeys([*(layer.name for layer in self.leaves), *layers]))

        def seed(values: Mapping[str, Array]) -> Mapping[str, Array]:
            self.cotangents = objective.score(values, index)[1]
            return self.cotangents

        self.values, self.gradients = model.pullback(
            tuple(image), seed, ("input", *names), fetch=(*objective.fetch, *names, "input")
        )

    def examined(self, ailing: str) -> Diagnosis:
        """Return the first reason that holds."""
        if ailing == "not-finite" or not self._finite(self.values):
            return self._not_finite()
        if ailing == "constant":
            return self._constant()
        return self._saturated() or self._dead_layer() or self._blocked() or self._blank()

    # ---- reasons -----------------------------------------------------------------------------

    def _not_finite(self) -> Diagnosis:
        if not np.isfinite(self.image[0]).all():
            return Diagnosis(
                "not-finite",
                "The input itself holds NaN or infinity: look at the image and its preprocessing.",
            )
        for layer in self.leaves:
            if not np.isfinite(self.values[layer.name]).all():
                return Diagnosis(
                    "not-finite",
                    "The map is not finite: NaN or infinity appears first at "
                    f"{self._named(layer)}. Its weights hold NaN, or its values overflow. "
                    f"{self._range()}",
                )
        for layer in reversed(self.leaves):
            if not np.isfinite(self.gradients[layer.name]).all():
                return Diagnosis(
                    "not-finite",
                    "The network's values are finite, but on the way back the gradient becomes NaN "
                    f"or infinite at {self._named(layer)}: a root or a quotient near zero, say. "
                    "Try a later layer.",
                )
        return Diagnosis("not-finite", _unexplained(self.where, "not-finite"))

    def _saturated(self) -> Diagnosis | None:
        """Whether no cotangent leaves the output: a softmax or sigmoid at its end."""
        peak = max(float(np.abs(c).max()) for c in self.cotangents.values())
        if peak > 1e-6:
            port = self.objective.port
            output = self.values[port.logits]
            sure = port.activation is None and _certain(output, port.class_axis)
            if sure and not self.gradients["input"].any():
                return Diagnosis(
                    "saturated",
                    f"The map at {self.where} is zero: the output is a distribution that is sure "
                    "of one class, so a softmax inside the network is saturated and lets no "
                    "gradient through. Explain the network without it.",
                )
            return None
        return Diagnosis(
            "saturated",
            f"The map at {self.where} is zero: the probability of the target is "
            f"{float(self.objective.scores[self.index]):.6g}, where softmax and sigmoid are flat, "
            "so no gradient leaves them. Explain the score before: space='logit'.",
        )

    def _dead_layer(self) -> Diagnosis | None:
        for name in self.layers:
            values = self.values.get(name)
            if values is not None and not values.any():
                return Diagnosis(
                    "dead",
                    f"The map at {name} is zero: all of its {values[0].size} values are zero for "
                    f"this image. {self._first_dark()}{self._range()}",
                )
        return None

    def _blocked(self) -> Diagnosis | None:
        """Find the layer past which, seen from the output, no gradient comes."""
        flows = [bool(self.gradients[layer.name].any()) for layer in self.leaves]
        if self.gradients["input"].any():
            return None
        first = flows.index(True) if any(flows) else len(flows)
        if first == len(flows):
            return Diagnosis(
                "not-reached",
                f"The map at {self.where} is zero: the score of the target depends on no layer. "
                "Name another target, or look for a detach or an argmax before the output.",
            )
        layer = self.leaves[first]
        if not self.values[layer.name].any():
            return Diagnosis(
                "dead",
                f"The map at {self.where} is zero: no gradient passes {self._named(layer)}, where "
                f"every unit is off for this image. Take a later layer. {self._range()}",
            )
        if layer.kind in _SQUASHING:
            return Diagnosis(
                "saturated",
                f"The map at {self.where} is zero: {self._named(layer)} is saturated, so no "
                f"gradient passes it. Take that layer or a later one. {self._range()}",
            )
        return Diagnosis(
            "not-reached",
            f"The map at {self.where} is zero: no gradient comes from the score past "
            f"{self._named(layer)}. Something there has no gradient (a detach, an argmax, a "
            "rounding), or the layer does not lead to the target. Take that layer or a later one.",
        )

    def _constant(self) -> Diagnosis:
        if all(np.ptp(array) == 0 for array in self.image):
            why = "the input is the same everywhere, so there is nothing to tell apart"
        elif self.layers and all(self._flat(name) for name in self.layers):
            why = f"the values of {self.where} are the same at all positions; try an earlier layer"
        else:
            why = "all positions count alike; try an earlier layer or another method"
        return Diagnosis("constant", f"The map at {self.where} is constant: {why}. {self._range()}")

    def _blank(self) -> Diagnosis:
        if any(self.gradients[n].any() and self.values[n].any() for n in self.layers):
            return _against(self.where)
        if self.layers:
            live = next((one for one in self.leaves if self.gradients[one.name].any()), None)
            hint = f" The first layer that it depends on is {live.name!r}." if live else ""
            return Diagnosis(
                "not-reached",
                f"The map at {self.where} is zero: the score of the target does not depend on it."
                + hint,
            )
        if self.gradients["input"].any():
            return Diagnosis(
                "against",
                "The map is empty although the gradient is not: this method keeps only what speaks "
                "for the target at every rectifier, and nothing is left. Try saliency, or another "
                "target.",
            )
        return Diagnosis("blank", _unexplained(self.where, "blank"))

    # ---- words -------------------------------------------------------------------------------

    def _first_dark(self) -> str:
        dark = next((one for one in self.leaves if not self.values[one.name].any()), None)
        if dark is None or dark.name in self.layers:
            return "Take an earlier layer. "
        return f"Everything is zero from {self._named(dark)} on. "

    def _named(self, layer: Layer) -> str:
        return f"{layer.name!r} ({layer.kind})"

    def _flat(self, name: str) -> bool:
        values = self.values.get(name)
        if values is None or values.ndim < 3:
            return True
        return float(np.ptp(values.reshape(*values.shape[:2], -1), axis=2).max()) == 0.0

    def _range(self) -> str:
        """Describe the network's input, and say what it makes one suspect."""
        first = self.image[0]
        low, high = float(first.min()), float(first.max())
        said = f"The network's input lies between {low:.4g} and {high:.4g} here"
        if high > 32 and not self.model.scales_input:
            said += ", as pixels do before they are scaled: check the preprocessing"
        elif high - low < 0.05:
            said += ", which is almost no contrast: check the preprocessing"
        training = "; it is in training mode, and was explained in evaluation mode"
        return said + (training if self.model.training else "") + "."

    @staticmethod
    def _finite(values: Mapping[str, Array]) -> bool:
        return all(bool(np.isfinite(array).all()) for array in values.values())


def _certain(output: Array, axis: int) -> bool:
    """Whether an output is a distribution that is all but certain of one class."""
    total = output.sum(axis=axis)
    distribution = bool((output >= 0).all() and np.allclose(total, 1, atol=1e-3))
    return distribution and bool((output.max(axis=axis) > 1 - 1e-6).all())

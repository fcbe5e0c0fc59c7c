"""What is explained: a score of the network, and its cotangent.

A target is a class index, a label, None for the top class, or one of `pellucid.methods.targets`
(`Contrast`, `Counterfactual`, `Region`, `Detection`); a list of those, one per image; an array over
the output (a linear functional); a function from the output to `(score, cotangent)`; or a mapping
from output names to any of these, whose scores add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Port
from pellucid.errors import TargetError
from pellucid.labels import find_label
from pellucid.methods.targets import (
    Contrast,
    Counterfactual,
    Detection,
    Name,
    Region,
    Single,
    Wording,
)

__all__ = ["Objective", "Space", "probabilities"]

Space = Literal["logit", "probability"]
_SIGN_OF_NEGATIVE = -1.0
_TARGETS = (Contrast, Counterfactual, Detection, Region)


class Objective:
    """A target made into a seed: called with values, it returns cotangents at the logits.

    The top class is decided by the first call and stays, so that a method which calls it many
    times (integrated gradients, SmoothGrad) explains one class.

    Parameters
    ----------
    model : the network.
    target : see the module.
    space : `"logit"` explains scores before a final softmax or sigmoid, `"probability"` after.

    Attributes
    ----------
    indices : the class of each image at the first call, empty where the target is none.
    wording : for each image a template and the classes whose names it takes, such as
        `("{} rather than {}", (281, 207))`.
    scores : the score of each image at the first call, `(N,)`.
    logits : the values at the first call, by output.
    details : what a method has to say besides the map, by name: one entry per image.
    classifies : whether the output scores classes of the image, not of boxes in it.
    """

    def __init__(self, model: Adapter, target: Any = None, space: Space = "logit") -> None:
        if space not in ("logit", "probability"):
            raise TargetError(f"space={space!r} is unknown: 'logit' or 'probability'.")
        self.model, self.space = model, space
        parts = target if isinstance(target, Mapping) else {model.outputs[0].name: target}
        self.classifies = not any(_has_detection(part) for part in parts.values())
        if self.classifies:
            _check_labels(model)
        ports = {port.name: port for port in model.outputs}
        by_own_name = {port.own_name: port.name for port in model.outputs if port.own_name}
        self._parts: list[tuple[Port, Any]] = []
        for name, part in parts.items():
            key = by_own_name.get(name, name)
            if key not in ports:
                raise TargetError(f"There is no output {name!r}: the model has {', '.join(ports)}.")
            self._parts.append((ports[key], part))
        self.fetch = tuple(port.logits for port, _ in self._parts)
        self.indices: tuple[int, ...] = ()
        self.wording: tuple[Wording, ...] = ()
        self.scores: Array = np.zeros(0, np.float32)
        self.logits: dict[str, Array] = {}
        self.details: dict[str, Any] = {}
        self._fixed: dict[str, Array] = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that the score is made of."""
        return tuple(port.name for port, _ in self._parts)

    @property
    def port(self) -> Port:
        """The output that the labels and the predictions belong to."""
        return self._parts[0][0]

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the cotangent at the logits of every output that the target names.

        Once the objective has seen the N images, it also takes T copies of them, one behind the
        other.
        """
        rows, images = len(values[self.fetch[0]]), len(self.scores)
        if self.logits and rows != images and rows % images == 0:
            copies = [
                self.score({n: values[n][start : start + images] for n in self.fetch})[1]
                for start in range(0, rows, images)
            ]
            return {name: np.concatenate([c[name] for c in copies]) for name in copies[0]}
        scores, cotangents = self.score(values)
        if not self.logits:
            self.logits = {name: values[name] for name in self.fetch}
            self.scores = scores
        return cotangents

    def rows(self, values: Mapping[str, Array]) -> Array:
        """Return the scores of T copies of the N images, one behind the other, `(T * N,)`."""
        rows, images = len(values[self.fetch[0]]), len(self.scores) or 1
        parts = [
            self.score({n: values[n][start : start + images] for n in self.fetch})[0]
            for start in range(0, rows, images)
        ]
        return np.concatenate(parts)

    def settle(self, x: Batch) -> None:
        """Decide on the images themselves what is explained, before a method varies them."""
        if not self.logits:
            self(self.model.run(x, self.fetch))

    def variants(self, values: Mapping[str, Array], image: int) -> Array:
        """Return the scores of variants of one image, `(n,)`: `score` without its cotangents."""
        total: Array = np.zeros(len(values[self.fetch[0]]), np.float32)
        for port, part in self._parts:
            output = self._output(port, values)
            if callable(part):
                total = total + np.asarray(part(port.own_layout(output))[0], np.float32)
            else:
                functional = self._functional(port, part, output)[image]
                total = total + output.reshape(len(output), -1) @ functional.ravel()
        return total

    def score(
        self, values: Mapping[str, Array], image: int | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the score of each row, `(N,)`, and the cotangents at the logits.

        Parameters
        ----------
        values : the logits by name.
        image : number of the image that all rows are variants of; None: row i is image i.
        """
        total: Array = np.zeros(len(values[self.fetch[0]]), np.float32)
        cotangents: dict[str, Array] = {}
        for port, part in self._parts:
            output = self._output(port, values)
            if callable(part):
                score, cotangent = part(port.own_layout(output))
                score = np.asarray(score, np.float32)
                cotangent = port.channels_first(_shaped(cotangent, output))
            else:
                cotangent = self._functional(port, part, output)
                if image is not None:
                    cotangent = np.broadcast_to(cotangent[image], output.shape)
                score = (cotangent * output).sum(axis=tuple(range(1, output.ndim)))
            if self.space == "probability":
                cotangent = _through_activation(cotangent, output, port)
            total = total + score
            shape = values[port.logits].shape
            cotangents[port.logits] = cotangent.astype(np.float32, copy=False).reshape(shape)
        return total, cotangents

    def _output(self, port: Port, values: Mapping[str, Array]) -> Array:
        """Return logits or probabilities, `(N, K, ...)`."""
        logits = values[port.logits]
        logits = logits[:, None] if logits.ndim == 1 else logits  # no class axis
        return logits if self.space == "logit" else probabilities(logits, port)

    def _functional(self, port: Port, part: Any, output: Array) -> Array:
        """Return the linear functional of each image, of the output's shape; settled once."""
        if port.name not in self._fixed:
            if isinstance(part, np.ndarray) and (part.dtype.kind == "f" or part.ndim > 1):
                found = port.channels_first(_broadcast(part, port.own_layout(output)))
            else:
                found = self._of_classes(port, part, output)
            self._fixed[port.name] = found
        functional: Array = self._fixed[port.name]
        return functional

    def _of_classes(self, port: Port, part: Any, output: Array) -> Array:
        """Turn what is named, for each image, into functionals."""
        several = isinstance(part, list | tuple | np.ndarray)
        given: Sequence[Any] = list(part) if several else [part] * len(output)
        if len(given) != len(output):
            raise TargetError(
                f"{len(given)} targets were given for {len(output)} images: give one, or one each."
            )
        functional = np.zeros_like(output)
        scores, written = (np.moveaxis(a, port.class_axis, -1) for a in (output, functional))
        wording = []
        for row, one in enumerate(given):
            target = one if isinstance(one, _TARGETS) else Single(one)
            if isinstance(target, Detection) and target.classes is None and self.model.labels:
                target = replace(target, classes=len(self.model.labels))
            wording.append(target.write(scores[row], written[row], self._class))
        if port is self.port and not self.indices:
            self.indices = tuple(classes[0] for _, classes in wording)
            self.wording = tuple(wording)
        return functional

    def _class(self, one: Any, scores: Array) -> tuple[int, float]:
        """Find a class among scores `(K,)`: its index, and the sign of its evidence."""
        labels, count = self.model.labels, len(scores)
        if one is None:
            return int(scores.argmax()), 1.0
        if isinstance(one, str):
            if labels is None:
                raise TargetError(
                    f"The target {one!r} is a label, but no labels are known: "
                    "give labels=, or the class index."
                )
            index = find_label(one, labels)
            if count == 1 and len(labels) == 2:  # one sigmoid unit: its sign tells the class
                return 0, 1.0 if index == 1 else _SIGN_OF_NEGATIVE
        elif isinstance(one, int | np.integer) and not isinstance(one, bool):
            index = int(one)
        else:
            raise TargetError(
                f"The target {one!r} is neither a class index, a label, an array over the output "
                "nor a function."
            )
        if not -count <= index < count:
            raise TargetError(
                f"The target {index} is out of range: the model has {count} classes, 0 to "
                f"{count - 1}."
            )
        return index % count, 1.0


def _has_detection(part: Any) -> bool:
    return any(isinstance(one, Detection) for one in (part if isinstance(part, list) else [part]))


def _check_labels(model: Adapter) -> None:
    """Refuse labels of another network: they would name every class wrongly."""
    port, labels = model.outputs[0], model.labels
    classes = port.shape[port.class_axis] if len(port.shape) > 1 else None
    if labels is None or classes in (None, len(labels)) or (classes == 1 and len(labels) == 2):
        return
    raise TargetError(
        f"There are {len(labels)} labels, but the model has {classes} "
        f"{'class' if classes == 1 else 'classes'}: give one label for each, in order."
    )


def probabilities(logits: Array, port: Port) -> Array:
    """Apply the output's final activation in float64; softmax where the model has none.

    Values that already are a distribution are returned as they are.
    """
    axis = port.class_axis
    values = logits.astype(np.float64)
    if port.activation == "sigmoid" or (port.activation is None and values.shape[axis] == 1):
        return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)
    if port.activation is None and _is_distribution(logits, axis):
        return logits
    exponents = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=axis, keepdims=True), np.float32)


def _is_distribution(values: Array, axis: int) -> bool:
    """Whether the values are non-negative and sum to one along an axis."""
    return bool((values >= 0).all() and np.allclose(values.sum(axis=axis), 1, atol=1e-3))


def _through_activation(cotangent: Array, output: Array, port: Port) -> Array:
    """Carry a cotangent at the probabilities back to the logits."""
    axis = port.class_axis
    if port.activation == "sigmoid" or (port.activation is None and output.shape[axis] == 1):
        return cotangent * output * (1 - output)
    inner: Array = (cotangent * output).sum(axis=axis, keepdims=True)
    through: Array = output * (cotangent - inner)
    return through


def _broadcast(array: Array, output: Array) -> Array:
    """Broadcast an array over the output to the batch."""
    if array.shape == output.shape:
        return array.astype(np.float32)
    if array.shape == output.shape[1:]:
        return np.broadcast_to(array.astype(np.float32), output.shape)
    raise TargetError(
        f"The target array has shape {array.shape}; an array over the output has "
        f"{output.shape[1:]}, or {output.shape} for this batch."
    )


def _shaped(cotangent: Any, output: Array) -> Array:
    array = np.asarray(cotangent, np.float32)
    if array.size != output.size:
        raise TargetError(
            f"The target function returned a cotangent of shape {array.shape} for an output of "
            f"shape {output.shape}."
        )
    return array


Target = (
    Name
    | Contrast
    | Counterfactual
    | Detection
    | Region
    | Sequence[Name | Contrast | Counterfactual | Detection | Region]
    | Array
    | Callable[[Array], tuple[Any, Any]]
)

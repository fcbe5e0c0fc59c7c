"""What is explained: a score of the network, and its cotangent.

A target is a class index, a label, a list of those (one per image), None for the top class of
each image, an array over the output (a linear functional), a function from the output to
`(score, cotangent)`, or a mapping from output names to any of these, whose scores add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Port
from pellucid.errors import TargetError
from pellucid.labels import find_label

__all__ = ["Objective", "Space", "probabilities"]

Space = Literal["logit", "probability"]
_SIGN_OF_NEGATIVE = -1.0


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
    indices : the class of each image at the first call, None where the target is none.
    scores : the score of each image at the first call, `(N,)`.
    logits : the values at the first call, by output.
    """

    def __init__(self, model: Adapter, target: Any = None, space: Space = "logit") -> None:
        if space not in ("logit", "probability"):
            raise TargetError(f"space={space!r} is unknown: 'logit' or 'probability'.")
        self.model, self.space = model, space
        _check_labels(model)
        ports = {port.name: port for port in model.outputs}
        by_own_name = {port.own_name: port.name for port in model.outputs if port.own_name}
        parts = target if isinstance(target, Mapping) else {model.outputs[0].name: target}
        self._parts: list[tuple[Port, Any]] = []
        for name, part in parts.items():
            key = by_own_name.get(name, name)
            if key not in ports:
                raise TargetError(f"There is no output {name!r}: the model has {', '.join(ports)}.")
            self._parts.append((ports[key], part))
        self.fetch = tuple(port.logits for port, _ in self._parts)
        self.indices: tuple[int | None, ...] = ()
        self.scores: Array = np.zeros(0, np.float32)
        self.logits: dict[str, Array] = {}
        self._fixed: dict[str, Any] = {}

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

    def settle(self, x: Batch) -> None:
        """Decide on the images themselves what is explained, before a method varies them."""
        if not self.logits:
            self(self.model.run(x, self.fetch))

    def score(
        self, values: Mapping[str, Array], image: int | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the score of each row, `(N,)`, and the cotangents at the logits.

        Parameters
        ----------
        values : the logits by name.
        image : number of the image that all rows are variants of; None: row i is image i.
        """
        if image is not None:
            rows = len(values[self.fetch[0]])
            alike = copy(self)
            alike._fixed = {
                name: ([classes[image]] * rows, [signs[image]] * rows)
                for name, (classes, signs) in self._fixed.items()
            }
            return alike.score(values)
        total: Array = np.zeros(len(values[self.fetch[0]]), np.float32)
        cotangents: dict[str, Array] = {}
        for port, part in self._parts:
            logits = values[port.logits]
            logits = logits[:, None] if logits.ndim == 1 else logits  # no class axis
            output = logits if self.space == "logit" else probabilities(logits, port)
            score, cotangent = self._linear(port, part, output)
            if self.space == "probability":
                cotangent = _through_activation(cotangent, output, port)
            total = total + score
            shape = values[port.logits].shape
            cotangents[port.logits] = cotangent.astype(np.float32, copy=False).reshape(shape)
        return total, cotangents

    def _linear(self, port: Port, part: Any, output: Array) -> tuple[Array, Array]:
        """Return score and cotangent over `output`, which is the logits or the probabilities."""
        axes = tuple(range(1, output.ndim))
        if callable(part):
            score, cotangent = part(port.own_layout(output))
            return np.asarray(score, np.float32), port.channels_first(_shaped(cotangent, output))
        if isinstance(part, np.ndarray) and (part.dtype.kind == "f" or part.ndim > 1):
            functional = port.channels_first(_functional(part, port.own_layout(output)))
            score = (functional * output).sum(axis=axes)
            return score, functional
        if port.name not in self._fixed:
            self._fixed[port.name] = self._classes(port, part, output)
        classes, signs = self._fixed[port.name]
        cotangent = np.zeros_like(output)
        view = np.moveaxis(cotangent, port.class_axis, -1)
        places = max(view[0, ..., 0].size, 1)  # (N, ..., K): the mean over positions
        for row, (index, sign) in enumerate(zip(classes, signs, strict=True)):
            view[row, ..., index] = sign / places
        if port is self.port and not self.indices:
            self.indices = tuple(classes)
        return (cotangent * output).sum(axis=axes), cotangent

    def _classes(self, port: Port, part: Any, output: Array) -> tuple[list[int], list[float]]:
        """Resolve indices and labels to one class and one sign per image."""
        count = output.shape[port.class_axis]
        if part is None:
            places = tuple(a for a in range(1, output.ndim) if a != port.class_axis)
            top = output.mean(axis=places).argmax(axis=-1)
            return [int(index) for index in top], [1.0] * len(output)
        several = isinstance(part, list | tuple | np.ndarray)
        given: Sequence[Any] = list(part) if several else [part] * len(output)
        if len(given) != len(output):
            raise TargetError(
                f"{len(given)} targets were given for {len(output)} images: give one, or one each."
            )
        resolved = [self._class(one, count) for one in given]
        return [index for index, _ in resolved], [sign for _, sign in resolved]

    def _class(self, one: Any, count: int) -> tuple[int, float]:
        labels = self.model.labels
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


def _functional(array: Array, output: Array) -> Array:
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


Target = int | str | None | Sequence[int | str] | Array | Callable[[Array], tuple[Any, Any]]

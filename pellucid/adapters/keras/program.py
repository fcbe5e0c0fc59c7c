"""A question to a traced model, compiled: values to fetch, where to seed, where to arrive.

The seed is computed by Python between the forward and the backward half of one TensorFlow
function, so the forward pass runs once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pellucid.adapters.base import Array, Rectifier, Seed, numbered
from pellucid.adapters.keras.rectifiers import bent_rectifiers
from pellucid.adapters.keras.trace import Trace, channels_first

__all__ = ["Program"]

Answer = tuple[dict[str, Array], dict[str, Array], Mapping[str, Array]]


class Program:
    """A compiled question to a traced model. Not for several threads at a time."""

    def __init__(
        self,
        traced: Trace,
        fetch: tuple[str, ...],
        wrt: tuple[str, ...],
        seeded: tuple[str, ...],
        relu: Rectifier,
        replaced: tuple[str, ...] = (),
    ) -> None:
        self._traced, self._fetch, self._wrt, self._seeded = traced, fetch, wrt, seeded
        self._replaced = replaced
        self._seed: Seed | None = None
        self._given: Mapping[str, Array] = {}
        self._error: BaseException | None = None
        self._function = self._compiled(relu)

    def _compiled(self, relu: Rectifier) -> Any:
        """Add what the question needs to the graph, and cut the program out of it."""
        traced = self._traced
        with traced.graph.as_default():
            values = [self._float(name) for name in self._fetch]
            gradients: list[Any] = []
            if self._wrt:
                starts = [traced.named[name][0] for name in self._seeded]
                with bent_rectifiers(traced.graph, relu):
                    gradients = tf.gradients(
                        starts,
                        [traced.named[name][0] for name in self._wrt],
                        grad_ys=self._cotangents(starts, values),
                        unconnected_gradients=tf.UnconnectedGradients.ZERO,
                    )
                gradients = [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in gradients]
        # Without a signature every call would first fail on one, and print its arguments to say so.
        feeds = [*traced.inputs, *(traced.named[name][0] for name in self._replaced)]
        signature = tuple(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in feeds)
        return traced.function.prune(feeds, [*values, *gradients], input_signature=(signature, {}))

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Return the shape of a named tensor, channels first."""
        tensor, order = self._traced.named[name]
        return channels_first(tensor.shape, order)

    def __call__(
        self, x: Sequence[Array], seed: Seed | None, replace: Sequence[Array] = ()
    ) -> Answer:
        """Answer for a batch: values, gradients, and the cotangents that the seed gave.

        `replace` holds the values of the replaced layers.
        """
        self._seed, self._given, self._error = seed, {}, None
        arguments = [
            tf.convert_to_tensor(self._own(numbered("input", i), array), tensor.dtype)
            for i, (array, tensor) in enumerate(zip(x, self._traced.inputs, strict=True))
        ]
        arguments += [
            tf.convert_to_tensor(self._own(name, array), self._traced.named[name][0].dtype)
            for name, array in zip(self._replaced, replace, strict=True)
        ]
        try:
            results = [result.numpy() for result in self._function(*arguments)]
        except tf.errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._seed = None
        count = len(self._fetch)
        values = self._channels_first(self._fetch, results[:count])
        return values, self._channels_first(self._wrt, results[count:]), self._given

    def _float(self, name: str) -> Any:
        return tf.cast(self._traced.named[name][0], tf.float32)

    def _cotangents(self, starts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        made = tf.numpy_function(self._between, values, [tf.float32] * len(starts))
        for cotangent, start in zip(made, starts, strict=True):
            cotangent.set_shape(start.shape)
        return [tf.cast(c, start.dtype) for c, start in zip(made, starts, strict=True)]

    def _between(self, *fetched: Array) -> list[Array]:
        """Call the seed; TensorFlow runs this between the forward and the backward half."""
        try:
            values = self._channels_first(self._fetch, fetched)
            assert self._seed is not None
            self._given = self._seed(values)
            missing = [n for n in self._seeded if n not in self._given]
            zeros = {name: np.zeros_like(values[name]) for name in missing}
            cotangents = {**self._given, **zeros}
            return [self._own(name, cotangents[name]) for name in self._seeded]
        except BaseException as error:
            self._error = error
            raise

    def _own(self, name: str, array: Array) -> Array:
        return np.ascontiguousarray(array.transpose(self._traced.named[name][1]))

    def _channels_first(self, names: Sequence[str], arrays: Sequence[Array]) -> dict[str, Array]:
        orders = (np.argsort(self._traced.named[name][1]) for name in names)
        return {n: a.transpose(o) for n, a, o in zip(names, arrays, orders, strict=True)}

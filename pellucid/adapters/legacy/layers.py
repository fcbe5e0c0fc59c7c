"""Layers that Keras 3 no longer has, with the mathematics they had.

Their arguments are those of the old layers in Keras 3's spelling. Variables are created in the
order that `variables.variables` lists.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import ops

from pellucid.adapters.legacy.operations import OPERATIONS

__all__ = ["ACTIVATIONS", "LAYERS"]

Tensor = Any
Shape = Any


def hard_sigmoid_legacy(x: Tensor) -> Tensor:
    """Keras 1 and 2: `min(max(0.2 x + 0.5, 0), 1)`."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


ACTIVATIONS = {"hard_sigmoid_legacy": hard_sigmoid_legacy}


class _Lost(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose arguments are attributes and are saved as they came."""

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, **kwargs: Any) -> None:
        self.arguments = {k: kwargs.pop(k, v) for k, v in self.defaults.items()}
        super().__init__(**kwargs)
        for key, value in self.arguments.items():
            setattr(self, key, value)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), **self.arguments}

    def weight(self, name: str, shape: Shape) -> Tensor:
        """Create a variable; its value comes from a file."""
        return self.add_weight(shape=shape, initializer="zeros", name=name)


class ThresholdedReLU(_Lost):
    """`x` where it exceeds `theta`, else 0."""

    defaults: ClassVar[dict[str, Any]] = {"theta": 1.0}

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return x * ops.cast(x > self.theta, x.dtype)


class ParametricSoftplus(_Lost):
    """`alpha softplus(beta x)`."""

    defaults: ClassVar[dict[str, Any]] = {"shared_axes": None}

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        size = _shared(shape, self.shared_axes)
        self.alpha, self.beta = self.weight("alpha", size), self.weight("beta", size)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.alpha * ops.softplus(self.beta * x)


class SReLU(_Lost):
    """Three linear pieces, with learned thresholds and slopes (arXiv:1512.07030)."""

    defaults: ClassVar[dict[str, Any]] = {"shared_axes": None}

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        size = _shared(shape, self.shared_axes)
        self.t_left, self.a_left = self.weight("t_left", size), self.weight("a_left", size)
        self.t_right, self.a_right = self.weight("t_right", size), self.weight("a_right", size)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        right = self.t_left + ops.abs(self.t_right)
        rise = x - self.t_left
        middle = ops.minimum(ops.relu(rise), right - self.t_left) - self.a_left * ops.relu(-rise)
        return self.t_left + middle + self.a_right * ops.relu(x - right)


def _shared(shape: Shape, axes: Any) -> tuple[int, ...]:
    return tuple(1 if i in (axes or ()) else n for i, n in enumerate(shape) if i)


class LayerScale(_Lost):
    """ConvNeXt's learned factor of each channel."""

    defaults: ClassVar[dict[str, Any]] = {"projection_dim": 1}

    def build(self, shape: Shape) -> None:
        """Create the variable."""
        self.gamma = self.weight("gamma", (self.projection_dim,))
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return x * self.gamma


class MaxoutDense(_Lost):
    """The largest of several dense layers, for each unit."""

    defaults: ClassVar[dict[str, Any]] = {"output_dim": 1, "nb_feature": 4, "use_bias": True}

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        self.kernel = self.weight("kernel", (self.nb_feature, shape[-1], self.output_dim))
        size = (self.nb_feature, self.output_dim)
        self.bias = self.weight("bias", size) if self.use_bias else 0.0
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return ops.max(ops.einsum("nc,kcu->nku", x, self.kernel) + self.bias, axis=1)


class Highway(_Lost):
    """`t f(x W + b) + (1 - t) x` with the gate `t = sigmoid(x V + c)` (arXiv:1505.00387)."""

    defaults: ClassVar[dict[str, Any]] = {"activation": "linear", "use_bias": True}

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        width = shape[-1]
        self.function = _activation(self.activation)
        self.kernel = self.weight("kernel", (width, width))
        self.carry_kernel = self.weight("carry_kernel", (width, width))
        self.bias = self.weight("bias", (width,)) if self.use_bias else 0.0
        self.carry_bias = self.weight("carry_bias", (width,)) if self.use_bias else 0.0
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        gate = ops.sigmoid(ops.matmul(x, self.carry_kernel) + self.carry_bias)
        return gate * self.function(ops.matmul(x, self.kernel) + self.bias) + (1.0 - gate) * x


def _activation(value: Any) -> Any:
    return value if callable(value) else ACTIVATIONS.get(value) or keras.activations.get(value)


class _Normalised(_Lost):
    defaults: ClassVar[dict[str, Any]] = {"epsilon": 1e-3, "axis": -1}

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        self.gamma = self.weight("gamma", (shape[self.axis],))
        self.beta = self.weight("beta", (shape[self.axis],))
        self.built = True


class SampleNormalization(_Normalised):
    """Keras 1's `BatchNormalization(mode=1)`, which adds epsilon twice."""

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        deviation = ops.sqrt(ops.var(x, axis=-1, keepdims=True) + self.epsilon)
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        return self.gamma * centred / (deviation + self.epsilon) + self.beta


class BatchStatistics(_Normalised):
    """Keras 1's `BatchNormalization(mode=2)`: the batch's own mean and variance, always."""

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        axis = self.axis % len(x.shape)
        others = [i for i in range(len(x.shape)) if i != axis]
        size = [-1 if i == axis else 1 for i in range(len(x.shape))]
        mean, variance = ops.mean(x, others, keepdims=True), ops.var(x, others, keepdims=True)
        scale = ops.reshape(self.gamma, size) * ops.rsqrt(variance + self.epsilon)
        return (x - mean) * scale + ops.reshape(self.beta, size)


class MergeDot(_Lost):
    """Keras 1's `Merge(mode="dot")`."""

    defaults: ClassVar[dict[str, Any]] = {"axes": -1}

    def call(self, xs: list[Tensor]) -> Tensor:
        """Apply the layer."""
        return self.product(xs[0], xs[1])

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract one axis of each."""
        axes = self.axes if isinstance(self.axes, (list, tuple)) else [self.axes, self.axes]
        pair = [axis % len(x.shape) for axis, x in zip(axes, (a, b), strict=True)]
        return keras.layers.Dot(axes=pair)([a, b])


class MergeCosine(MergeDot):
    """Keras 1's `Merge(mode="cos")`: the product over the root of the products with themselves."""

    def call(self, xs: list[Tensor]) -> Tensor:
        """Apply the layer."""
        a, b = xs
        size = ops.sqrt(self.product(a, a) * self.product(b, b))
        return ops.expand_dims(self.product(a, b) / ops.maximum(size, 1e-7), 1)


class LocallyConnected1D(_Lost):
    """A convolution whose kernel differs from place to place."""

    defaults: ClassVar[dict[str, Any]] = {
        "filters": 1, "kernel_size": 1, "strides": 1, "padding": "valid",
        "data_format": "channels_last", "activation": "linear", "use_bias": True,
    }  # fmt: skip
    rank = 1

    def build(self, shape: Shape) -> None:
        """Create the variables."""
        self.function = _activation(self.activation)
        self.size = _sizes(self.kernel_size, self.rank)
        self.steps = _sizes(self.strides, self.rank)
        first = self.data_format == "channels_first" and self.rank == 2
        spatial = shape[2:] if first else shape[1:-1]
        channels = shape[1] if first else shape[-1]
        self.places = [
            (n - k) // s + 1 for n, k, s in zip(spatial, self.size, self.steps, strict=True)
        ]
        fan = math.prod(self.size) * channels
        self.kernel = self.weight("kernel", (math.prod(self.places), fan, self.filters))
        places = tuple(self.places)
        bias = (self.filters, *places) if first else (*places, self.filters)
        self.bias = self.weight("bias", bias) if self.use_bias else None
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        first = self.data_format == "channels_first" and self.rank == 2
        windows = []
        for offset in _offsets(self.size):
            cut = tuple(
                slice(o, o + (n - 1) * s + 1, s)
                for o, n, s in zip(offset, self.places, self.steps, strict=True)
            )
            piece = x[(slice(None), slice(None), *cut)] if first else x[(slice(None), *cut)]
            windows.append(ops.transpose(piece, (0, 2, 3, 1)) if first else piece)
        # The window of a place lies flat as (k, C), or as (C, k) where channels are first.
        patches = ops.stack(windows, -1 if first else -2)
        patches = ops.reshape(patches, (-1, math.prod(self.places), self.kernel.shape[1]))
        y = ops.einsum("npk,pkf->npf", patches, self.kernel)
        y = ops.reshape(y, (-1, *self.places, self.filters))
        y = ops.transpose(y, (0, 3, 1, 2)) if first else y
        return self.function(y if self.bias is None else y + self.bias)


class LocallyConnected2D(LocallyConnected1D):
    """A convolution whose kernel differs from place to place."""

    rank = 2


def _sizes(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),) * rank


def _offsets(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    offsets: list[tuple[int, ...]] = [()]
    for count in size:
        offsets = [(*o, i) for o in offsets for i in range(count)]
    return offsets


class Deconvolution2D(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """A transposed convolution that is told the size of its output, as Keras 1's was."""

    def __init__(self, *, output_size: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_size = tuple(output_size)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "output_size": self.output_size}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the stated size."""
        if self.data_format == "channels_first":
            return (input_shape[0], self.filters, *self.output_size)
        return (input_shape[0], *self.output_size, self.filters)

    def call(self, x: Tensor) -> Tensor:
        """Compute the whole overlap-add, then cut or fill it to the stated size."""
        first = self.data_format == "channels_first"
        y = ops.conv_transpose(x, self.kernel, self.strides, "valid", data_format=self.data_format)
        axes, pads, cut = (2, 3) if first else (1, 2), [[0, 0]] * 4, [slice(None)] * 4
        for axis, want, k, s in zip(
            axes, self.output_size, self.kernel_size, self.strides, strict=True
        ):
            n = x.shape[axis]
            over = max((n - 1) * s + k - want, 0) if self.padding == "same" else 0
            cut[axis] = slice(over // 2, over // 2 + want)
            pads[axis] = [0, max(0, want - ((n - 1) * s + max(k, s)))]
        y = ops.pad(y, pads)[tuple(cut)]
        if self.bias is not None:
            y = y + ops.reshape(self.bias, (1, -1, 1, 1) if first else (1, 1, 1, -1))
        return self.activation(y)


class LegacyUpSampling2D(_Lost):
    """Bilinear enlargement of Keras 2.2 and 2.3: sample `i` lies at `i / factor`."""

    defaults: ClassVar[dict[str, Any]] = {"size": (2, 2), "data_format": "channels_last"}

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        axes = (2, 3) if self.data_format == "channels_first" else (1, 2)
        for axis, factor in zip(axes, _sizes(self.size, 2), strict=True):
            x = _enlarged(x, axis, factor)
        return x


def _enlarged(x: Tensor, axis: int, factor: int) -> Tensor:
    cut: list[Any] = [slice(None)] * len(x.shape)
    rest, last = list(cut), list(cut)
    rest[axis], last[axis] = slice(1, None), slice(-1, None)
    after = ops.concatenate([x[tuple(rest)], x[tuple(last)]], axis)
    steps = [x + (after - x) * (i / factor) for i in range(factor)]
    size = [-1 if n is None else n for n in x.shape]
    size[0], size[axis] = -1, x.shape[axis] * factor if x.shape[axis] else -1
    if size.count(-1) > 1:
        size = [*ops.shape(x)]
        size[axis] = size[axis] * factor
    return ops.reshape(ops.stack(steps, axis + 1), size)


class Operation(_Lost):
    """One entry of `operations.OPERATIONS`, with the constants the file gave.

    `template` is the list of arguments with `{"tensor": i}` in place of the tensors.
    """

    defaults: ClassVar[dict[str, Any]] = {"function": "", "template": (), "keywords": {}}

    def call(self, xs: Any) -> Any:
        """Apply the operation."""
        tensors = list(xs) if isinstance(xs, (list, tuple)) else [xs]
        args = [_filled(item, tensors) for item in self.arguments["template"]]
        keywords = {k: _filled(v, tensors) for k, v in self.arguments["keywords"].items()}
        return OPERATIONS[self.function](ops, *args, **keywords)


def _filled(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _filled(item, tensors) for key, item in value.items()}
    return [_filled(v, tensors) for v in value] if isinstance(value, (list, tuple)) else value


LAYERS: dict[str, type[keras.layers.Layer]] = {
    layer.__name__: layer
    for layer in (
        BatchStatistics, Deconvolution2D, Highway, LayerScale, LegacyUpSampling2D,
        LocallyConnected1D, LocallyConnected2D, MaxoutDense, MergeCosine, MergeDot, Operation,
        ParametricSoftplus, SReLU, SampleNormalization, ThresholdedReLU,
    )
}  # fmt: skip

"""Convolutions with the channels first whose bias lands on the channels.

Keras 3 on TensorFlow (3.15 at least) adds a bias through `ops.add`, which takes it for one along
the last axis wherever the width happens to equal the number of filters: the numbers are wrong and
nothing says so. Models of older Keras are built with these classes instead; they differ in that
one addition.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["LAYERS"]

Tensor = Any


def _separable(layer: Any, x: Tensor) -> Tensor:
    return ops.separable_conv(
        x, layer.depthwise_kernel, layer.pointwise_kernel, strides=layer.strides,
        padding=layer.padding, data_format=layer.data_format, dilation_rate=layer.dilation_rate,
    )  # fmt: skip


def _depthwise(layer: Any, x: Tensor) -> Tensor:
    return ops.depthwise_conv(
        x, layer.kernel, strides=layer.strides, padding=layer.padding,
        data_format=layer.data_format, dilation_rate=layer.dilation_rate,
    )  # fmt: skip


def _transposed(layer: Any, x: Tensor) -> Tensor:
    return ops.conv_transpose(
        x, layer.kernel, strides=layer.strides, padding=layer.padding,
        output_padding=layer.output_padding, data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )  # fmt: skip


class _Biased:
    """Mixed into a Keras convolution."""

    convolve = staticmethod(lambda layer, x: layer.convolution_op(x, layer.kernel))

    def call(self: Any, x: Tensor) -> Tensor:
        """Convolve, add the bias to the channels, apply the activation."""
        y = self.convolve(self, x)
        if self.use_bias:
            y = y + ops.reshape(self.bias, (1, -1, *[1] * self.rank))
        return y if self.activation is None else self.activation(y)


_CONVOLVE = {"Separable": _separable, "Depthwise": _depthwise, "Transpose": _transposed}


def _made(name: str) -> type[keras.layers.Layer]:
    convolve = next((f for part, f in _CONVOLVE.items() if part in name), None)
    members = {"convolve": staticmethod(convolve)} if convolve else {}
    return type(name, (_Biased, getattr(keras.layers, name)), members)


LAYERS: dict[str, type[keras.layers.Layer]] = {
    f"ChannelsFirst{name}": _made(name)
    for name in (
        "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
        "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
    )
}  # fmt: skip

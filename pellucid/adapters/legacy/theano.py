"""Convolution and pooling with Theano's SAME and FULL padding, as Keras's own layers.

Theano pads SAME by half the kernel on both sides and cuts the result to `ceil(n / stride)`;
TensorFlow pads by what the stride needs, the odd one after. The two differ for even kernels and
for strides.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from pellucid.adapters.legacy import channels_first

__all__ = ["LAYERS"]

Tensor = Any
Shape = Any


def _conv_pad(size: int, dilation: int, full: bool) -> int:
    reach = (size - 1) * dilation + 1
    return reach - 1 if full else reach // 2


def _pool_pad(size: int) -> int:
    """Keras's own rule for Theano: 1 for 2 and 3, and 3 for 4 and 5."""
    return size - 2 if size > 2 and size % 2 else size - 1


def _around(x: Tensor, pads: list[int], data_format: str, value: float = 0.0) -> Tensor:
    spatial = [[p, p] for p in pads]
    first = data_format == "channels_first"
    widths = [[0, 0], [0, 0], *spatial] if first else [[0, 0], *spatial, [0, 0]]
    return ops.pad(x, widths, constant_values=value)


def _cut(y: Tensor, sizes: list[int | None], data_format: str) -> Tensor:
    inner = tuple(slice(0, n) for n in sizes)
    return y[(slice(None), slice(None), *inner) if data_format == "channels_first" else (
        slice(None), *inner, slice(None))]  # fmt: skip


class _Padded:
    """Mixed into a Keras convolution: pads, convolves without padding, cuts."""

    def __init__(self, **kwargs: Any) -> None:
        self.theano_padding = kwargs.pop("padding")
        super().__init__(padding="valid", **kwargs)  # type: ignore[call-arg]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "padding": self.theano_padding}  # type: ignore[misc]

    def _spatial(self, shape: Shape) -> list[Any]:
        first = self.data_format == "channels_first"  # type: ignore[attr-defined]
        return list(shape[2:] if first else shape[1:-1])

    def _pads(self) -> list[int]:
        full = self.theano_padding == "full"
        sizes, steps = self.kernel_size, self.dilation_rate  # type: ignore[attr-defined]
        return [_conv_pad(k, d, full) for k, d in zip(sizes, steps, strict=True)]

    def _sizes(self, shape: Shape) -> list[Any]:
        """Sizes of the output: `ceil(n / stride)` for SAME, all of it for FULL."""
        if self.theano_padding == "full":
            return [None] * len(self._spatial(shape))
        strides = self.strides  # type: ignore[attr-defined]
        return [n and -(-n // s) for n, s in zip(self._spatial(shape), strides, strict=True)]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the cut result."""
        first = self.data_format == "channels_first"  # type: ignore[attr-defined]
        both = zip(self._spatial(input_shape), self._pads(), strict=True)
        wide = [n and n + 2 * p for n, p in both]
        shape = (*input_shape[:2], *wide) if first else (input_shape[0], *wide, input_shape[-1])
        out = list(super().compute_output_shape(shape))  # type: ignore[misc]
        for axis, size in enumerate(self._sizes(input_shape), 2 if first else 1):
            out[axis] = out[axis] if size is None else size
        return tuple(out)

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        order = self.data_format  # type: ignore[attr-defined]
        y = super().call(_around(x, self._pads(), order))  # type: ignore[misc]
        return _cut(y, self._sizes(x.shape), order)


class _Pooled(keras.layers.Layer):  # type: ignore[misc]
    maximum = True
    rank = 2

    def __init__(
        self, *, pool_size: Any = 2, strides: Any = None, padding: str = "same",
        data_format: str = "channels_last", **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        size = strides if strides is not None else pool_size
        both = [v if isinstance(v, (list, tuple)) else (v,) * self.rank for v in (pool_size, size)]
        self.pool_size, self.strides = (tuple(v) for v in both)
        self.padding, self.data_format = padding, data_format

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        own = ("pool_size", "strides", "padding", "data_format")
        return {**super().get_config(), **{key: getattr(self, key) for key in own}}

    def call(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        order, pads = self.data_format, [_pool_pad(size) for size in self.pool_size]
        spatial = x.shape[2:] if order == "channels_first" else x.shape[1:-1]
        sizes = [n and -(-n // s) for n, s in zip(spatial, self.strides, strict=True)]
        pool = ops.max_pool if self.maximum else ops.average_pool

        def pooled(value: Tensor, fill: float) -> Tensor:
            wide = _around(value, pads, order, fill)
            return _cut(pool(wide, self.pool_size, self.strides, "valid", order), sizes, order)

        if self.maximum:
            return pooled(x, float("-inf"))
        return pooled(x, 0.0) / pooled(ops.ones_like(x), 0.0)  # what lies outside is not counted


class _Transposed(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """The gradient of a convolution that is padded by half its odd kernel on both sides.

    TensorFlow's is that of a convolution padded by what the stride needs, which begins elsewhere.
    """

    def __init__(self, *, output_size: Any = None, padding: str = "same", **kwargs: Any) -> None:
        super().__init__(padding="valid", **kwargs)
        self.theano_padding = padding
        self.output_size = None if output_size is None else tuple(output_size)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        own = {"padding": self.theano_padding, "output_size": self.output_size}
        return {**super().get_config(), **own}

    def _sizes(self, shape: Shape) -> tuple[Any, ...]:
        first = self.data_format == "channels_first"
        spatial = shape[2:] if first else shape[1:-1]
        every = tuple(n and n * s for n, s in zip(spatial, self.strides, strict=True))
        return self.output_size or every

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the stated size, or the input's times the stride."""
        sizes = self._sizes(input_shape)
        if self.data_format == "channels_first":
            return (input_shape[0], self.filters, *sizes)
        return (input_shape[0], *sizes, self.filters)

    def call(self, x: Tensor) -> Tensor:
        """Compute the whole overlap-add, then cut half a kernel off its beginning."""
        first = self.data_format == "channels_first"
        y = ops.conv_transpose(x, self.kernel, self.strides, "valid", data_format=self.data_format)
        pads, cut = [[0, 0]] * 4, [slice(None)] * 4
        for axis, want, size in zip(
            (2, 3) if first else (1, 2), self._sizes(x.shape), self.kernel_size, strict=True
        ):
            begin = size // 2
            pads[axis] = [0, max(0, begin + want - y.shape[axis])]
            cut[axis] = slice(begin, begin + want)
        y = ops.pad(y, pads)[tuple(cut)]
        if self.bias is not None:
            y = y + ops.reshape(self.bias, (1, -1, 1, 1) if first else (1, 1, 1, -1))
        return self.activation(y)


_BASES = {name: getattr(keras.layers, name) for name in (
    "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D"
)}  # fmt: skip
LAYERS: dict[str, type[keras.layers.Layer]] = {
    "TheanoConv2DTranspose": _Transposed,
    "TheanoDeconvolution2D": _Transposed,
    **{f"Theano{name}": type(name, (_Padded, base), {}) for name, base in _BASES.items()},
    **{
        f"ChannelsFirstTheano{name}": type(
            name, (_Padded, channels_first.LAYERS[f"ChannelsFirst{name}"]), {}
        )
        for name in _BASES
    },
    **{
        f"Theano{kind}Pooling{rank}D": type(
            f"{kind}Pooling{rank}D", (_Pooled,), {"maximum": kind == "Max", "rank": rank}
        )
        for kind in ("Max", "Average")
        for rank in (1, 2, 3)
    },
}

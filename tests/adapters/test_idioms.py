"""Ways in which people write networks: each has the same gradient on both engines.

One network per framework holds all of them side by side, each on channels of its own, so that one
export and one gradient for each rule of the rectifiers tell them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers, ops
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.adapters.engine import engine_for

CHANNELS, SIDE = 4, 8
RULES = ("exact", "guided")
TOLERANCE = 1e-5


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 2, 1), nn.Conv2d(2, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class Lambda(nn.Module):
    """A function and the modules that it uses."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2]], 1)


def windows(x: Tensor) -> Tensor:
    parts = x.reshape(-1, CHANNELS, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, CHANNELS)
    return (parts @ parts.transpose(1, 2)).softmax(-1).matmul(parts).reshape(len(x), -1)


def sampled(x: Tensor) -> Tensor:
    theta = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.8, 0.0]]).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), False), align_corners=False)


def wide(kernel: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, **options)


TORCH: dict[str, Callable[[], nn.Module]] = {
    "relu, in place": lambda: nn.ReLU(inplace=True),
    "relu, functional": lambda: Lambda(F.relu),
    "relu, of torch": lambda: Lambda(torch.relu),
    "relu, clamp": lambda: Lambda(lambda x: x.clamp(min=0)),
    "relu, maximum": lambda: Lambda(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "relu, where": lambda: Lambda(lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
    "relu, mask": lambda: Lambda(lambda x: x * (x > 0)),
    "relu6": nn.ReLU6,
    "relu6, clamp": lambda: Lambda(lambda x: x.clamp(0, 6)),
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "leaky relu, where": lambda: Lambda(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "leaky relu, maximum": lambda: Lambda(lambda x: torch.maximum(x, 0.1 * x)),
    "prelu": lambda: nn.PReLU(CHANNELS, 0.2),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(0.5),
    "gelu": nn.GELU,
    "gelu, tanh": lambda: nn.GELU("tanh"),
    "gelu, sigmoid": lambda: Lambda(lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": nn.SiLU,
    "silu, written out": lambda: Lambda(lambda x: x * x.sigmoid()),
    "mish": nn.Mish,
    "hard swish": nn.Hardswish,
    "hard sigmoid": nn.Hardsigmoid,
    "hard tanh": nn.Hardtanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "log sigmoid": nn.LogSigmoid,
    "glu": lambda: nn.GLU(1),
    "chunk": lambda: Lambda(lambda x: torch.cat([-x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1)),
    "split": lambda: Lambda(lambda x: torch.add(*x.split([2, 2], 1))),
    "maxout": lambda: Lambda(lambda x: torch.stack(x.chunk(2, 1)).amax(0)),
    "shuffled channels": lambda: Lambda(shuffled),
    "focus": lambda: Lambda(focus),
    "roll, flip": lambda: Lambda(lambda x: x.roll(1, 2).flip(3)),
    "unfold": lambda: nn.Unfold(3, stride=2),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "pixel unshuffle": lambda: nn.PixelUnshuffle(2),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(size=(11, 13), mode="bilinear"),
    "bilinear, corners": lambda: nn.Upsample(size=(5, 6), mode="bilinear", align_corners=True),
    "bicubic": lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "grid sample": lambda: Lambda(sampled),
    "grouped": lambda: wide(3, groups=2, padding=1),
    "dilated": lambda: wide(3, dilation=2, stride=2, padding="valid"),
    "circular": lambda: wide(3, padding=1, padding_mode="circular"),
    "reflected": lambda: wide(3, padding=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, 3, 3, 2, 1, output_padding=1),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(wide(3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(wide(3)),
    "max pool": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "power pool": lambda: Lambda(lambda x: F.avg_pool2d(x.clamp(min=1e-6) ** 3, 2) ** (1 / 3)),
    "batch norm": lambda: nn.BatchNorm2d(CHANNELS),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "instance norm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "layer norm": lambda: nn.LayerNorm([CHANNELS, SIDE, SIDE]),
    "local response": lambda: nn.LocalResponseNorm(3),
    "root mean square": lambda: Lambda(root_mean_square),
    "unit length": lambda: Lambda(lambda x: F.normalize(x, dim=1)),
    "spread": lambda: Lambda(lambda x: torch.cat([x.std((2, 3)), x.var((2, 3))], 1)),
    "softmax": lambda: nn.Softmax2d(),
    "log-sum-exp": lambda: Lambda(lambda x: x.logsumexp((2, 3))),
    "product": lambda: Lambda(lambda x: x.prod(1)),
    "cumulative sum": lambda: Lambda(lambda x: x.cumsum(2)),
    "covariance": lambda: Lambda(lambda x: torch.einsum("nchw,ndhw->ncd", x, x)),
    "attention": lambda: Lambda(lambda x: F.scaled_dot_product_attention(*[x] * 3)),
    "heads": lambda: Lambda(
        lambda x, a: a(*[tokens(x)] * 3, need_weights=False)[0],
        nn.MultiheadAttention(CHANNELS, 2, batch_first=True),
    ),
    "windows": lambda: Lambda(windows),
    "gate": Gate,
    "recurrent": lambda: Lambda(
        lambda x, r: r(x.flatten(1, 2))[0], nn.LSTM(SIDE, 3, bidirectional=True, batch_first=True)
    ),
    "gated recurrent": lambda: Lambda(
        lambda x, r: r(x.flatten(1, 2))[1].transpose(0, 1), nn.GRU(SIDE, 3, batch_first=True)
    ),
    "checkpoint": lambda: Lambda(
        lambda x, part: checkpoint(part, x, use_reentrant=False), nn.Sequential(wide(3), nn.ReLU())
    ),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5)),
}


class Zoo(nn.Module):
    """Every idiom on four channels of its own, and a number of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.idioms = nn.ModuleList(make() for make in TORCH.values()).eval()
        sizes = [part(torch.rand(1, CHANNELS, SIDE, SIDE)).numel() for part in self.idioms]
        self.heads = nn.ModuleList(nn.Linear(size, 1) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(CHANNELS, 1)
        answers = [idiom(part + 0.0) for idiom, part in zip(self.idioms, parts, strict=True)]
        return torch.cat(
            [head(a.flatten(1)) for head, a in zip(self.heads, answers, strict=True)], 1
        )


class Function(layers.Layer):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def around(x: Any) -> Any:
    mean, variance = ops.moments(x, axes=(1, 2), keepdims=True)
    return (x - mean) * ops.rsqrt(variance + 1e-3)


def attended(x: Any) -> Any:
    rows = layers.Reshape((SIDE * SIDE, CHANNELS))(x)
    return layers.MultiHeadAttention(2, 3)(rows, rows)


def gated(x: Any) -> Any:
    gate = layers.Dense(CHANNELS, "sigmoid")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, CHANNELS))(gate)])


def of_rows(layer: layers.Layer) -> Callable[[Any], Any]:
    return lambda x: layer(layers.Reshape((SIDE, SIDE * CHANNELS))(x))


def split_up(x: Any) -> Any:
    one, other = ops.split(x, 2, axis=-1)
    return one * ops.sigmoid(other)


KERAS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "relu": layers.ReLU,
    "relu, fused": lambda: layers.Conv2D(3, 3, activation="relu"),
    "relu, of ops": lambda: Function(ops.relu),
    "relu, maximum": lambda: Function(lambda x: ops.maximum(x, 0.0)),
    "relu6": lambda: layers.ReLU(6),
    "leaky relu": layers.LeakyReLU,
    "thresholded relu": lambda: layers.ReLU(threshold=0.3),
    "prelu": lambda: layers.PReLU(shared_axes=(1, 2)),
    "elu": layers.ELU,
    "selu": lambda: layers.Activation("selu"),
    "gelu": lambda: layers.Activation("gelu"),
    "silu": lambda: layers.Activation("silu"),
    "silu, written out": lambda: Function(lambda x: x * ops.sigmoid(x)),
    "mish": lambda: layers.Activation("mish"),
    "hard silu": lambda: layers.Activation("hard_silu"),
    "hard sigmoid": lambda: layers.Activation("hard_sigmoid"),
    "softplus": lambda: layers.Activation("softplus"),
    "softsign": lambda: layers.Activation("softsign"),
    "grouped": lambda: layers.Conv2D(4, 3, groups=2, strides=2, padding="same"),
    "dilated": lambda: layers.Conv2D(4, 3, dilation_rate=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2),
    "separable": lambda: layers.SeparableConv2D(3, 3),
    "transposed": lambda: layers.Conv2DTranspose(3, 3, 2, "same"),
    "max pool": lambda: layers.MaxPooling2D(3, 2, "same"),
    "average pool": lambda: layers.AveragePooling2D(3, 2, "same"),
    "nearest": lambda: layers.UpSampling2D(2),
    "bilinear": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "resizing": lambda: layers.Resizing(5, 11),
    "padding, cropping": lambda: keras.Sequential([layers.ZeroPadding2D(2), layers.Cropping2D(1)]),
    "rescaling": lambda: layers.Rescaling(2.0, -0.5),
    "batch norm": layers.BatchNormalization,
    "layer norm": layers.LayerNormalization,
    "group norm": lambda: layers.GroupNormalization(2),
    "root mean square": layers.RMSNormalization,
    "unit length": layers.UnitNormalization,
    "moments": lambda: Function(around),
    "softmax": lambda: layers.Softmax(axis=-1),
    "split": lambda: Function(split_up),
    "space to depth": lambda: Function(
        lambda x: ops.reshape(
            ops.transpose(ops.reshape(x, (-1, 4, 2, 4, 2, CHANNELS)), (0, 1, 3, 2, 4, 5)),
            (-1, 4, 4, 16),
        )
    ),
    "covariance": lambda: Function(lambda x: ops.einsum("nhwc,nhwd->ncd", x, x)),
    "attention": lambda: attended,
    "gate": lambda: gated,
    "permuted": lambda: layers.Permute((3, 1, 2)),
    "one by one": lambda: layers.TimeDistributed(layers.Conv1D(3, 3)),
    "recurrent": lambda: of_rows(layers.Bidirectional(layers.LSTM(3, return_sequences=True))),
    "gated recurrent": lambda: of_rows(layers.GRU(3)),
    "plain recurrent": lambda: of_rows(layers.SimpleRNN(3, return_sequences=True)),
}


def keras_zoo() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = layers.Input((SIDE, SIDE, CHANNELS * len(KERAS)))
    answers = []
    for index, make in enumerate(KERAS.values()):
        first = index * CHANNELS
        part = Function(lambda x, first=first: x[..., first : first + CHANNELS])(x)
        answers.append(layers.Dense(1)(layers.Flatten()(make()(part))))
    return keras.Model(x, layers.Concatenate()(answers))


IDIOMS = {"torch": TORCH, "keras": KERAS}


@cache
def batch(framework: str) -> np.ndarray:
    shape = (2, CHANNELS * len(IDIOMS[framework]), SIDE, SIDE)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@cache
def zoo(framework: str) -> Adapter:
    model = pellucid.load(Zoo().eval() if framework == "torch" else keras_zoo())
    model.run(batch(framework))  # which shows the shape of the input
    return model


def gradients(framework: str, engine: str, rule: Any) -> dict[str, np.ndarray]:
    """Return the gradient of every idiom on its own channels, `(N, 4, H, W)`."""
    names = IDIOMS[framework]
    model = engine_for(zoo(framework), engine)[0]
    port = model.inputs[0].name

    def seed(values: Any) -> dict[str, np.ndarray]:
        return {name: np.ones_like(value) for name, value in values.items()}

    logits = model.outputs[0].logits
    whole = model.pullback(batch(framework), seed, (port,), fetch=(logits,), relu=rule)[1][port]
    return dict(zip(names, np.split(whole, len(names), axis=1), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("framework", IDIOMS)
def test_every_idiom_has_the_same_gradient_on_both_engines(framework: str, rule: str) -> None:
    native, onnx = (gradients(framework, engine, rule) for engine in ("native", "onnx"))
    far = {
        name: float(np.abs(one - onnx[name]).max() / np.abs(one).max())
        for name, one in native.items()
    }
    assert {name: distance for name, distance in far.items() if not distance < TOLERANCE} == {}

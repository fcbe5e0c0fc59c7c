"""A normalisation gives the same map however it is spelled, in PyTorch and in Keras."""

from __future__ import annotations

from functools import cache

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from keras import ops
from torch import nn
from torch.nn import functional as F

import pellucid

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
GROUPS, CHANNELS, EPSILON = 2, 6, 1e-5
rng = np.random.default_rng(1)
SCALE = rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
BIAS = rng.standard_normal(CHANNELS).astype(np.float32)
S, B = (torch.from_numpy(one) for one in (SCALE, BIAS))
FIRST = rng.standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32)
MIXES = rng.standard_normal((6, CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
DENSE = rng.standard_normal((4, CHANNELS)).astype(np.float32)


def channels_last(norm):
    return lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def of_groups(x):
    parts = x.reshape(-1, GROUPS, CHANNELS // GROUPS * x.shape[2] * x.shape[3])
    variance, mean = torch.var_mean(parts, -1, correction=0, keepdim=True)
    hat = (parts - mean) * torch.rsqrt(variance + EPSILON)
    return hat.reshape(x.shape) * S[:, None, None] + B[:, None, None]


def of_instances(x):
    away = x - x.mean((2, 3), keepdim=True)
    hat = away / (away.square().mean((2, 3), keepdim=True) + EPSILON) ** 0.5
    return torch.addcmul(B[:, None, None], hat, S[:, None, None])


def of_channels(x):
    away = x - x.mean(1, keepdim=True)
    hat = away / torch.sqrt(away.pow(2).mean(1, keepdim=True) + EPSILON)
    return S[:, None, None] * hat + B[:, None, None]


TORCH = [
    [
        lambda x: F.group_norm(x, GROUPS, S, B, EPSILON),
        lambda x: F.instance_norm(x, weight=S, bias=B, eps=EPSILON),
        channels_last(lambda x: F.layer_norm(x, (CHANNELS,), S, B, EPSILON)),
        channels_last(lambda x: F.rms_norm(x, (CHANNELS,), S, EPSILON)),
        channels_last(lambda x: x * S / torch.sqrt(x.var(-1, False, keepdim=True) + EPSILON)),
        F.normalize,
    ],
    [
        of_groups,
        of_instances,
        of_channels,
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, True) + EPSILON) * S[:, None, None],
        lambda x: x / (x.var(1, correction=0, keepdim=True) + EPSILON).sqrt() * S[:, None, None],
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12),
    ],
]  # fmt: skip


class Net(nn.Module):
    """A residual block for each kind of normalisation."""

    def __init__(self, norms):
        super().__init__()
        self.norms, self.first = norms, nn.Conv2d(3, CHANNELS, 3, bias=False)
        self.mixes = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False) for _ in norms)
        self.dense = nn.Linear(CHANNELS, 4, bias=False)
        with torch.no_grad():
            weights = (FIRST, *MIXES, DENSE)
            for layer, array in zip((self.first, *self.mixes, self.dense), weights, strict=True):
                layer.weight.copy_(torch.from_numpy(array))

    def forward(self, x):
        y = self.first(x)
        for index, (norm, mix) in enumerate(zip(self.norms, self.mixes, strict=True)):
            y = y + (F.gelu if index % 2 else F.relu)(norm(mix(y)))
        return self.dense(y.mean((2, 3)))


class InGroups(L.Layer):
    def call(self, x):
        parts = ops.reshape(x, (-1, x.shape[1] * x.shape[2], GROUPS, CHANNELS // GROUPS))
        away = parts - ops.mean(parts, (1, 3), keepdims=True)
        hat = away / ops.sqrt(ops.mean(away**2, (1, 3), keepdims=True) + EPSILON)
        return ops.reshape(hat, (-1, *x.shape[1:])) * SCALE + BIAS


class OfInstances(L.Layer):
    def call(self, x):
        mean, variance = ops.moments(x, (1, 2), keepdims=True)
        return (x - mean) * ops.rsqrt(variance + EPSILON) * SCALE + BIAS


class OfSquares(L.Layer):
    def call(self, x):
        return x * ops.rsqrt(ops.mean(ops.square(x), -1, keepdims=True) + EPSILON) * SCALE


class OverDeviation(L.Layer):
    def call(self, x):
        return SCALE * x / ops.sqrt(ops.var(x, -1, keepdims=True) + EPSILON)


class OfLengthOne(L.Layer):
    def call(self, x):
        return x / ops.sqrt(ops.maximum(ops.sum(x * x, -1, keepdims=True), 1e-24))


def layer_norm():
    return L.LayerNormalization(epsilon=EPSILON)


KERAS = [
    [
        lambda: L.GroupNormalization(GROUPS, epsilon=EPSILON),
        lambda: L.GroupNormalization(-1, epsilon=EPSILON),
        layer_norm,
        lambda: L.RMSNormalization(epsilon=EPSILON),
        lambda: L.LayerNormalization(epsilon=EPSILON, rms_scaling=True),
        L.UnitNormalization,
    ],
    [InGroups, OfInstances, layer_norm, OfSquares, OverDeviation, OfLengthOne],
]


def keras_net(norms):
    image = L.Input((8, 8, 3))
    first, dense = L.Conv2D(CHANNELS, 3, use_bias=False), L.Dense(4, use_bias=False)
    mixes, norms = [L.Conv2D(CHANNELS, 1, use_bias=False) for _ in norms], [one() for one in norms]
    y = first(image)
    for index, (norm, mix) in enumerate(zip(norms, mixes, strict=True)):
        y = L.Add()([y, L.Activation("gelu" if index % 2 else "relu")(norm(mix(y)))])
    network = keras.Model(image, dense(L.GlobalAveragePooling2D()(y)))
    for layer, weights in zip((first, *mixes), (FIRST, *MIXES), strict=True):
        layer.set_weights([weights.transpose(2, 3, 1, 0)])
    for layer in norms:
        layer.set_weights([SCALE, BIAS][: len(layer.get_weights())])
    dense.set_weights([DENSE.T])
    return network


@cache
def network(framework, spelling):
    if framework == "torch":
        return Net(TORCH[spelling]).eval()
    return keras_net(KERAS[spelling])


METHODS = {
    "fullgrad": ("fullgrad", {}),
    "fullgrad, plain": ("fullgrad", {"scale": "none"}),
    "epsilon": ("lrp", {"rule": "epsilon"}),
    "gamma": ("lrp", {"rule": "gamma"}),
    "composite": ("lrp", {}),
    "deeplift": ("deeplift", {"baseline": "blurred"}),
    "guided": ("guided-backprop", {"engine": "native"}),
}


@cache
def drawn(framework, spelling, method):
    name, options = METHODS[method]
    x = X if framework == "torch" else X.transpose(0, 2, 3, 1)
    found = pellucid.explain(network(framework, spelling), x, name, target=1, **options)
    for one in found:
        size = np.abs(one.attribution).sum()
        assert abs(one.details.get("completeness_delta", 0)) < 1e-5 * max(abs(one.score), 1)
        assert abs(one.details.get("convergence_delta", 0)) < 2e-5 * size
    return np.stack([one.attribution for one in found])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("framework", "spelling"), [("torch", 1), ("keras", 0), ("keras", 1)])
def test_the_map_does_not_depend_on_the_spelling(framework, spelling, method):
    ours, theirs = drawn("torch", 0, method), drawn(framework, spelling, method)
    assert ours.std() > 0
    np.testing.assert_allclose(theirs, ours, atol=2e-5 * np.abs(ours).max())

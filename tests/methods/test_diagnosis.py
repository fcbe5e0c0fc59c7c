"""Why a map shows nothing: one small network for each reason, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.torch.adapter import TorchAdapter

X = np.abs(np.random.default_rng(0).standard_normal((1, 1, 6, 6))).astype(np.float32) + 0.1


class Net(nn.Module):
    """Convolution, ReLU, a step that may be spoilt, mean, head."""

    def __init__(self, bias=0.0, spoil=None, head=(1.0, -1.0), end=None):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 1), nn.ReLU()
        self.conv2 = nn.Conv2d(2, 2, 1)
        self.spoil, self.end, self.head = spoil, end, nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.conv.bias.fill_(bias)
            self.conv2.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
            self.conv2.bias.zero_()
            self.head.weight.copy_(torch.tensor([[head[0]] * 2, [head[1]] * 2]))

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.spoil(x) if self.spoil else x
        x = self.head(self.conv2(x).mean((2, 3)))
        return self.end(x) if self.end else x


class Detach(nn.Module):
    def forward(self, x):
        return x.detach() + 0 * x


class Inner(nn.Module):
    """A softmax that no one takes for the last one."""

    def forward(self, x):
        return torch.softmax(1e3 * x, -1) * torch.ones(2)


def explained(network, method="grad-cam", x=X, **options):
    (one,) = pellucid.explain(TorchAdapter(network), x, method, **{"target": 0} | options)
    return one


CASES = {
    "saturated probability": (
        lambda: explained(Net(head=(90.0, -90.0), end=nn.Softmax(-1)), space="probability"),
        "saturated", ["probability of the target is 1", "space='logit'"],
    ),
    "saturated inside": (
        lambda: explained(Net(end=Inner()), "saliency"),
        "saturated", ["a softmax inside the network is saturated"],
    ),
    "dead layer": (
        lambda: explained(Net(bias=-100.0), layer="relu"),
        "dead", ["map at relu is zero", "all of its 72 values are zero", "input lies between"],
    ),
    "dead before": (
        lambda: explained(Net(bias=-100.0), layer="conv2"),
        "dead", ["zero from 'relu' (ReLU) on"],
    ),
    "dead on the way back": (
        lambda: explained(Net(bias=-100.0), "saliency"),
        "dead", ["no gradient passes 'relu' (ReLU)", "every unit is off"],
    ),
    "no gradient": (
        lambda: explained(Net(spoil=Detach()), "saliency"),
        "not-reached", ["past 'spoil'", "detach"],
    ),
    "sigmoid on the way": (
        lambda: explained(Net(bias=500.0, spoil=nn.Sigmoid()), "saliency"),
        "saturated", ["'spoil' (Sigmoid) is saturated"],
    ),
    "against": (
        lambda: explained(Net(), target=1, layer="relu"),
        "against", ["speaks against the target everywhere"],
    ),
    "nothing left of guided backprop": (
        lambda: explained(Net(head=(-1.0, -1.0)), "guided-backprop"),
        "against", ["keeps only what speaks for the target at every rectifier"],
    ),
    "NaN in the input": (
        lambda: explained(Net(), x=np.where(X > 1, np.nan, X), layer="relu"),
        "not-finite", ["input itself holds NaN"],
    ),
    "NaN in the weights": (
        lambda: explained(Net(bias=np.nan), layer="conv2"),
        "not-finite", ["appears first at 'conv' (Conv2D)"],
    ),
    "constant": (
        lambda: explained(Net(), x=np.ones_like(X), layer="relu"),
        "constant", ["map at relu is constant", "input is the same everywhere"],
    ),
    "unscaled pixels": (
        lambda: explained(Net(bias=-1e4), x=255 * X / X.max(), layer="relu"),
        "dead", ["and 255 here, as pixels do", "check the preprocessing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_map_that_shows_nothing_says_why(case):
    make, kind, words = CASES[case]
    one = make()
    assert one.details["diagnosis"] == kind
    for part in words:
        assert part in one.notes[0]


def test_training_mode_is_named():
    network = Net(bias=-100.0).train()
    assert "in training mode" in explained(network, layer="relu").notes[0]
    assert network.training


def test_a_good_map_has_no_diagnosis_and_costs_no_more_passes():
    calls = []

    class Counting(Net):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = TorchAdapter(Counting())
    assert model.layers
    calls.clear()
    (one,) = pellucid.explain(model, X, target=0, layer="relu")
    assert len(calls) == 1
    assert "diagnosis" not in one.details
    assert one.notes == ()


def test_only_the_images_that_ail_are_looked_into():
    x = np.concatenate([X, -X, X])
    found = pellucid.explain(TorchAdapter(Net()), x, target=0, layer="relu")
    assert [one.details.get("diagnosis") for one in found] == [None, "dead", None]


def test_keras_says_the_same():
    import keras

    image = keras.Input((6, 6, 1))
    off = keras.initializers.Constant(-100.0)
    y = keras.layers.Conv2D(2, 1, activation="relu", name="conv", bias_initializer=off)(image)
    y = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(y))
    model = KerasAdapter(keras.Model(image, y))
    (one,) = pellucid.explain(model, np.moveaxis(X, 1, -1), "saliency", target=0)
    assert one.details["diagnosis"] == "dead"
    assert "no gradient passes 'conv' (Conv2D), where every unit is off" in one.notes[0]

"""Recurrent networks: `engine="onnx"` unrolls them and gives the numbers of the framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
import tf_keras
import torch
from torch import nn

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.onnx.exported import exported
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import UnsupportedError

FAMILIES = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
RNG = np.random.default_rng(5)


def chain(k: Any, shape: tuple[int, ...], *layers: Any) -> Any:
    x = inputs = k.layers.Input(shape)
    for layer in layers:
        x = layer(x)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax", name="head")(x))


def stacked(k: Any) -> Any:
    layers = k.layers
    return chain(
        k, (3, 4), layers.LSTM(4, return_sequences=True, dropout=0.5, name="first"),
        layers.GRU(4, return_sequences=True, go_backwards=True, name="second"),
        layers.SimpleRNN(3, activation="relu", name="third"),
    )  # fmt: skip


def masked(k: Any) -> Any:
    layers = k.layers
    both = layers.Bidirectional(layers.SimpleRNN(3), merge_mode="ave", name="both")
    return chain(k, (4, 4), layers.Masking(), both)


def video(k: Any) -> Any:
    layers = k.layers
    return chain(
        k, (2, 6, 6, 2),
        layers.TimeDistributed(layers.Conv2D(3, 3, activation="relu", padding="same"), name="one"),
        layers.ConvLSTM2D(2, 3, recurrent_activation="hard_sigmoid", name="two"),
        layers.GlobalAveragePooling2D(name="pooled"),
    )  # fmt: skip


def own(k: Any) -> Any:
    @k.saving.register_keras_serializable(f"recurrent_{k.__name__}")
    class Cell(k.layers.Layer):
        state_size = output_size = 4

        def build(self, shape: Any) -> None:
            self.w = self.add_weight(shape=(shape[-1], 4), name="w")
            self.r = self.add_weight(shape=(4, 4), name="r")

        def call(self, x: Any, states: Any, training: bool = False) -> Any:
            h = k.activations.relu(x @ self.w + states[0] @ self.r + 0.1)
            return h, [h]

    cells = k.layers.RNN(Cell(), return_sequences=True, name="cells")
    return chain(k, (3, 4), cells, k.layers.Flatten(name="flat"))


def text(k: Any) -> Any:
    """Columns of a picture as a sequence, as networks that read text have it."""
    layers = k.layers
    return chain(
        k, (6, 8, 3), layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
        layers.MaxPooling2D(2, name="pool"), layers.Permute((2, 1, 3)), layers.Reshape((4, 12)),
        layers.Bidirectional(layers.GRU(4), name="reader"),
    )  # fmt: skip


def weighed(model: Any) -> Any:
    """Give a model weights and biases that keep its activations apart."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(np.asarray(weight) + 0.3 * rng.standard_normal(weight.shape))
    return model


def seed(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in values.items()}


def check(own: Adapter, x: np.ndarray, layers: list[str], rules: tuple[Any, ...]) -> None:
    """Compare both engines by some rules, at the input and at some layers, for two batches."""
    other, names, gradients = exported(own), ["input", *layers], {}
    for rule in rules:
        found = [e.pullback(x, seed, names, ["logits"], rule) for e in (own, other)]
        for (one, two), wanted in zip(zip(*found, strict=True), (["logits"], names), strict=True):
            for name in wanted:
                scale = np.abs(one[name]).max()
                assert scale > 0
                assert np.abs(one[name] - two[name]).max() < 5e-6 * scale, (rule, name)
        gradients[rule] = found[0][1]["input"]
    for engine in (own, other):  # a batch of another size
        alone = engine.pullback(x[:1], seed, names, ["logits"])[1]["input"]
        np.testing.assert_allclose(alone, gradients["exact"][:1], rtol=1e-4, atol=1e-6)


@FAMILIES
@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (stacked, ["first", "second", "third"]), (masked, ["both"]),
        (video, ["one", "two"]), (own, ["cells"]), (text, ["conv", "reader"]),
    ],
    ids=["stacked", "masked", "video", "own cell", "text"],
)  # fmt: skip
def test_keras_recurrent_networks(k: Any, make: Callable[[Any], Any], layers: list[str]) -> None:
    model = KerasAdapter(weighed(make(k)))
    x = RNG.standard_normal((2, *(size or 0 for size in model.inputs[0].shape[1:])), np.float32)
    if make is masked:
        x[0, 2:] = x[1, :1] = 0
    rectified = make in (stacked, video, own, text)
    check(model, x, layers, ("exact", "guided", "deconv") if rectified else ("exact",))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_pytorch_recurrent_networks(cell: Any) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
            self.cells = cell(24, 5, bidirectional=True, batch_first=True)
            self.head = nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            columns = self.relu(self.conv(x)).permute(0, 3, 1, 2).flatten(2)
            return self.head(self.cells(columns)[0].mean(1))

    torch.manual_seed(0)
    model = TorchAdapter(Reader())
    x = RNG.standard_normal((2, 3, 6, 4), np.float32)
    model.run(x)
    check(model, x, ["conv", "cells"], ("exact",))


def test_what_is_made_of_a_gradient_adds_up_and_compiles(tmp_path: Any) -> None:
    network = weighed(text(keras))
    model = exported(KerasAdapter(network))
    x = RNG.standard_normal((1, 6, 8, 3), np.float32)
    (full,) = pellucid.explain(model, x, "fullgrad", target=1)
    assert abs(full.details["completeness_delta"]) < 1e-5 * abs(full.score)
    path = tmp_path / "cam.onnx"
    pellucid.compile(network, "grad-cam", layer="conv", target=1).save(path)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    batch = np.concatenate([x, x])
    found = dict(zip(names, session.run(None, {"input": batch}), strict=True))
    (native,) = pellucid.explain(network, x, "grad-cam", layer="conv", target=1, engine="native")
    np.testing.assert_allclose(found["output"], network(batch), rtol=1e-5, atol=1e-6)
    scale = np.abs(native.attribution).max()
    assert np.abs(found["attribution"][1] - native.attribution).max() < 1e-5 * scale


def test_relevance_passes_the_gates_of_a_cell_undiminished() -> None:
    keras.utils.set_random_seed(2)
    model, x = exported(KerasAdapter(text(keras))), RNG.standard_normal((1, 6, 8, 3), np.float32)
    (found,) = pellucid.explain(model, x, "lrp", target=1)  # no layer has biases yet
    assert found.attribution.sum() == pytest.approx(found.score, rel=1e-3)


def test_a_sequence_that_is_too_long_is_said() -> None:
    network = chain(keras, (600, 2), keras.layers.GRU(2))
    model, x = exported(KerasAdapter(network)), np.ones((1, 600, 2), np.float32)
    assert model.run(x, ["logits"])["logits"].shape == (1, 3)
    with pytest.raises(UnsupportedError, match=r"more than 512 steps.*engine='native'"):
        model.pullback(x, seed, ["input"], ["logits"])

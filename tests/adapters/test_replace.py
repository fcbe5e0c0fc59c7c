"""Running a network on from given values of a layer, in PyTorch, Keras and ONNX."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import InputError, LayerError
from tests.twins import TWINS

# A layer of each twin around which nothing leads, and one with a path around it or inside another.
LAYERS = {
    "plain": ("pool:1", "conv2"),
    "residual": ("stage.block1", "block1.norm2"),
    "inception": ("conv", "branch2_norm"),
    "separable": ("depthwise1_relu", "separable"),
    "fused": ("pool1", "pool2"),
    "channels_first": ("relu1", "conv2"),
    "two_by_two": ("relu", "image_relu"),
    "vit": ("block1", "block2.norm1"),
    "conv1d": ("relu1", "conv2"),
    "conv3d": ("pool1", "conv2"),
    "nested_shared": ("relu", "tower.pool:1"),
}
CASES = [(name, layer) for name, layers in LAYERS.items() for layer in layers]


@cache
def models(name):
    twin = TWINS[name]
    return TorchAdapter(twin.torch()), KerasAdapter(twin.keras())


def adapters(name, layer):
    return zip(models(name), (layer, TWINS[name].matched[layer]), strict=True)


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_own_values_change_nothing_and_other_values_give_the_same_everywhere(name, layer):
    x = TWINS[name].inputs(3)
    found = []
    for model, own in adapters(name, layer):
        before = model.run(x, ["logits", own])
        kept = model.run(x, ["logits", own], replace={own: before[own]})
        np.testing.assert_allclose(kept["logits"], before["logits"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept[own], before[own])
        other = -0.5 * before[own][::-1]
        found.append(model.run(x, ["logits"], replace={own: other})["logits"])
        after = model.run(x, ["logits"])["logits"]
        np.testing.assert_allclose(after, before["logits"], rtol=1e-5, atol=1e-6)
    scale = np.abs(found[0]).max()
    assert np.abs(found[0] - before["logits"]).max() > 1e-3 * scale
    np.testing.assert_allclose(found[1], found[0], atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_variants_of_one_image_equal_as_many_images(name, layer):
    x = TWINS[name].inputs(1)
    rng = np.random.default_rng(0)
    for model, own in adapters(name, layer):
        shape = model.run(x, [own])[own].shape
        variants = rng.standard_normal((5, *shape[1:])).astype(np.float32)
        together = model.run(x, ["logits"], replace={own: variants})["logits"]
        many = tuple(np.repeat(array, 5, axis=0) for array in x)
        apart = model.run(many, ["logits"], replace={own: variants})["logits"]
        assert together.shape == apart.shape
        np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)
        early = model.run(x, ["input", "logits"], replace={own: variants})
        assert len(early["input"]) == len(early["logits"]) == 5


class Zeroed(nn.Module):
    """The plain twin with one layer's values set to zero."""

    def __init__(self, inner, layer):
        super().__init__()
        self.inner = inner
        inner.get_submodule(layer).register_forward_hook(lambda *args: torch.zeros_like(args[-1]))

    def forward(self, x):
        return self.inner(x)


def test_zeros_in_place_of_a_layer_are_the_network_with_that_layer_zeroed():
    twin = TWINS["residual"]
    (x,) = twin.inputs(2)
    with torch.no_grad():
        expected = Zeroed(twin.torch(), "stage.block1").inner(torch.from_numpy(x)).numpy()
    for model, own in adapters("residual", "stage.block1"):
        zeros = np.zeros_like(model.run(x, [own])[own])
        found = model.run(x, ["output"], replace={own: zeros})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["residual", "vit", "two_by_two", "conv3d", "nested_shared"])
def test_onnx_goes_on_from_any_tensor(name):
    x = TWINS[name].inputs(2)
    model = OnnxAdapter(TWINS[name].onnx())
    before = model.run(x, ["logits"])["logits"]
    float_layers = [layer for layer in model.layers if len(layer.shape) > 2]
    for layer in float_layers[:: max(1, len(float_layers) // 6)]:
        own = model.run(x, [layer.name])[layer.name]
        kept = model.run(x, ["logits"], replace={layer.name: own})["logits"]
        np.testing.assert_allclose(kept, before, rtol=1e-4, atol=1e-5)
        one = tuple(array[:1] for array in x)
        variants = np.concatenate([own[:1], 0 * own[:1], own[1:]])
        many = model.run(one, ["logits"], replace={layer.name: variants})["logits"]
        assert len(many) == 3
        np.testing.assert_allclose(many[0], before[0], rtol=1e-4, atol=1e-5)


def test_onnx_equals_pytorch_on_replaced_values():
    twin = TWINS["plain"]
    (x,) = twin.inputs(1)
    reference, model = TorchAdapter(twin.torch()), OnnxAdapter(twin.onnx())
    own = reference.run(x, ["conv3"])["conv3"]
    values = np.concatenate([own, -own, 0 * own])
    (layer,) = [n for n in (entry.name for entry in model.layers) if "conv3" in n.lower()] or [
        next(entry.name for entry in reversed(model.layers) if entry.kind == "Conv2D")
    ]
    np.testing.assert_allclose(
        model.run(x, ["logits"], replace={layer: values})["logits"],
        reference.run(x, ["logits"], replace={"conv3": values})["logits"],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_a_fixed_batch_takes_any_number_of_variants():
    twin = TWINS["plain"]
    (x,) = twin.inputs(1)
    free, fixed = TorchAdapter(twin.torch()), TorchAdapter(twin.torch(), fixed_batch=2)
    own = free.run(x, ["conv2"])["conv2"]
    variants = np.concatenate([own, 2 * own, -own])
    np.testing.assert_allclose(
        fixed.run(x, ["logits"], replace={"conv2": variants})["logits"],
        free.run(x, ["logits"], replace={"conv2": variants})["logits"],
        rtol=1e-5,
    )


def test_in_place_modules_go_on_with_the_replaced_values():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    model, x = TorchAdapter(network), np.ones((2, 3, 8, 8), np.float32)
    values = np.full((2, 4, 6, 6), 0.5, np.float32)
    found = model.run(x, ["output"], replace={"1": values})["output"]
    expected = network[2](torch.from_numpy(values)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_cannot_be_replaced_is_named():
    (x,) = TWINS["plain"].inputs(2)
    for model in (*models("plain"), OnnxAdapter(TWINS["plain"].onnx())):
        first = next(layer for layer in model.layers if layer.kind == "Conv2D").name
        own = model.run(x, [first])[first]
        with pytest.raises(LayerError, match="no layer 'nowhere'"):
            model.run(x, replace={"nowhere": own})
        with pytest.raises(LayerError, match="'input' is no layer"):
            model.run(x, replace={"input": x})
        with pytest.raises(InputError, match=r"have 3 rows for a batch of 2"):
            model.run(x, replace={first: np.concatenate([own, own[:1]])})
        with pytest.raises(InputError, match=r"those to replace it have shape \(2, 1, 1, 1\)"):
            model.run(x, replace={first: np.zeros((2, 1, 1, 1), np.float32)})

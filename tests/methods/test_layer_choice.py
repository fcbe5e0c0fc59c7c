"""Which layer Grad-CAM takes when none is named."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import LayerError, UnsupportedError
from pellucid.methods import layer_choice
from pellucid.methods.layer_choice import as_grid, choose_layer
from pellucid.methods.objective import Objective
from tests.graph.networks import adapter
from tests.twins import TWINS

EXPECTED = {  # PyTorch names
    "plain": "conv3",
    "residual": "stage",
    "inception": "norm",
    "separable": "separable_relu",
    "nested_shared": "tower.relu:1",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_last_grid_before_the_head_is_taken(name):
    model = TorchAdapter(TWINS[name].torch())
    model.batch(TWINS[name].inputs(1))
    choice = choose_layer(model)
    assert choice.name == EXPECTED[name]
    assert "before the head" in choice.reason


def test_of_a_vgg_the_layer_before_the_last_pooling_is_taken_not_the_container_that_ends_in_it():
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("features", features)
    network.add_module(
        "head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    )
    assert choose_layer(TorchAdapter(network)).name == "features.1"


def test_of_a_segmentation_network_the_layer_before_the_dense_output_is_taken():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Softmax(dim=1))
    assert choose_layer(TorchAdapter(network)).name == "1"


def test_of_a_transformer_the_tokens_before_the_last_attention_are_taken():
    model = TorchAdapter(TWINS["vit"].torch())
    choice = choose_layer(model)
    assert choice.name == "block2.norm1"
    tokens = model.run(TWINS["vit"].inputs(2), [choice.name])[choice.name]
    (grid,) = as_grid(model, choice.name, tokens)
    assert grid.shape == (2, 24, 4, 4)
    np.testing.assert_array_equal(grid[:, :, 0, 1], tokens[:, 2])  # after the class token
    np.testing.assert_array_equal(grid[:, :, 3, 3], tokens[:, 16])


def test_network_without_a_grid_is_one_clear_error():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(LayerError, match="No layer of this model has a spatial grid"):
        choose_layer(TorchAdapter(network))


@pytest.mark.parametrize("name", sorted(set(TWINS) - {"vit", "two_by_two"}))
def test_the_graph_and_the_shapes_choose_the_same_layer(name, monkeypatch):
    for framework in ("torch", "keras"):
        model = adapter(name, framework)
        try:
            by_shapes = choose_layer(model)
        except LayerError:
            by_shapes = None
        monkeypatch.setattr(layer_choice, "_settled", lambda _: False)
        try:
            on_graph = choose_layer(model)
        except LayerError:
            on_graph = None
        monkeypatch.undo()
        assert on_graph == by_shapes


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_last_layer_that_leads_to_the_explained_output_is_taken(framework):
    model = adapter("two_by_two", framework)
    choice = choose_layer(model)
    assert choice.name == "relu"  # behind it, upsample and map lead to the other output
    assert "12 channels on 16 x 16" in choice.reason
    other = Objective(model, {"output:1": 0})
    assert choose_layer(model, other.outputs).name == "upsample"


def test_a_transformer_that_cannot_be_exported_is_judged_by_its_shapes(monkeypatch):
    model = adapter("vit", "torch")
    on_graph = choose_layer(model)
    tokens = model.run(TWINS["vit"].inputs(2), [on_graph.name])[on_graph.name]
    (expected,) = as_grid(model, on_graph.name, tokens)

    def refuse(_):
        raise UnsupportedError("no ONNX form")

    monkeypatch.setattr(type(model), "survey", property(refuse))
    assert choose_layer(model) == on_graph
    np.testing.assert_array_equal(as_grid(model, on_graph.name, tokens)[0], expected)


def test_a_convolutional_network_is_explained_without_an_export(monkeypatch):
    model = TorchAdapter(TWINS["residual"].torch())
    monkeypatch.setattr(model, "_export", lambda: pytest.fail("exported"))
    assert pellucid.explain(model, TWINS["residual"].inputs(1)[0])[0].layer == "stage"


def test_tokens_that_stand_in_no_grid_are_refused_by_name():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(tokens[:, [0, 5, 7]]).mean(1))

    model, x = TorchAdapter(Halved()), np.zeros((2, 3, 16, 16), np.float32)
    model.batch(x)
    assert choose_layer(model).name == "patches"
    with pytest.raises(LayerError, match="'norm', 3 x 8 per image, lie on no grid"):
        pellucid.explain(model, x, layer="norm")

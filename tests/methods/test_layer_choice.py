"""Which layer Grad-CAM takes when none is named."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import LayerError
from pellucid.methods.layer_choice import as_grid, choose_layer
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

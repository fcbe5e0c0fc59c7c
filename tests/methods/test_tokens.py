"""Every method finds the patches among the tokens, in every framework, with nothing to set."""

from __future__ import annotations

import io
import math
from functools import cache

import numpy as np
import onnx
import pytest
import torch

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import LayerError
from pellucid.methods.layer_choice import as_grid, choose_layer
from tests.graph.networks import adapter
from tests.methods.token_networks import NETWORKS, ViT, filled, image_size, keras_vit
from tests.twins import TWINS

CAMS = ("grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam")
every = pytest.mark.parametrize("name", NETWORKS)
CHOSEN = {
    "class token": "block2.norm1",
    "class and distillation": "block2.norm1",
    "registers at the start": "block2.norm1",
    "registers at the end": "block2.norm1",
    "no class token": "norm",
    "mean beside a class token": "norm",
    "windows": "norm",
    "windows, channels last": "norm",
}


def batch(name: str, n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 3, *image_size(name)), np.float32)


@cache
def in_torch(name: str) -> Adapter:
    adapter = TorchAdapter(filled(name))
    adapter.batch(batch(name))
    return adapter


@cache
def in_onnx(name: str, exporter: str) -> Adapter:
    """Return a file: that of the torch exporter, or the form, which names no module."""
    if exporter == "form":
        return OnnxAdapter(in_torch(name).form.model)
    program = torch.onnx.export(
        filled(name), (torch.from_numpy(batch(name)),), dynamo=True, verbose=False,
        optimize=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    file = io.BytesIO()
    program.save(file)
    return OnnxAdapter(onnx.load_from_string(file.getvalue()))


def lit(name: str) -> np.ndarray:
    """One image per cell of the grid, zero but there."""
    _, (h, w), cell = NETWORKS[name]
    images = np.zeros((h * w, 3, h * cell, w * cell), np.float32)
    drawn = np.random.default_rng(2).standard_normal((3, cell, cell))
    for index in range(h * w):
        row, column = divmod(index, w)
        part = (slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
        images[(index, slice(None), *part)] = drawn
    return images


@every
def test_only_the_cell_of_the_one_lit_patch_is_active(name: str) -> None:
    model = in_torch(name)
    choice = choose_layer(model)
    assert choice.name == CHOSEN[name]
    (grid,) = as_grid(model, choice.name, model.run(lit(name), [choice.name])[choice.name])
    assert grid.shape[2:] == NETWORKS[name][1]
    active = np.abs(grid).sum(1).reshape(len(grid), -1) > 1e-6
    np.testing.assert_array_equal(active, np.eye(len(grid), dtype=bool))


@every
@pytest.mark.parametrize("method", CAMS)
def test_the_map_is_the_patch_that_matters(name: str, method: str) -> None:
    cells = [0, 4, math.prod(NETWORKS[name][1]) - 2]
    found = np.zeros((3, math.prod(NETWORKS[name][1])))
    for target in range(5):
        made = pellucid.explain(in_torch(name), lit(name)[cells], method, target=target)
        found = np.maximum(found, [explanation.attribution.reshape(-1) for explanation in made])
    for cell, row in zip(cells, found, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row > 1e-6 * found.max()), [cell])


def same_maps(ours: Adapter, theirs: Adapter, x: np.ndarray) -> None:
    for target in (0, 3):
        one, other = (
            pellucid.explain(model, model.inputs[0].own_layout(x), target=target)
            for model in (ours, theirs)
        )
        for a, b in zip(one, other, strict=True):
            scale = max(np.abs(a.attribution).max(), 1e-6)
            np.testing.assert_allclose(b.attribution, a.attribution, atol=1e-5 * scale)
            assert a.layer_reason == b.layer_reason


@every
def test_a_file_gives_the_same_maps_as_torch(name: str) -> None:
    same_maps(in_torch(name), in_onnx(name, "form"), batch(name))


@pytest.mark.parametrize("name", ["registers at the end", "windows, channels last"])
def test_an_exported_file_gives_the_same_maps_as_torch(name: str) -> None:
    same_maps(in_torch(name), in_onnx(name, "torch"), batch(name))


@every
def test_a_compiled_explanation_gives_the_same_map(name: str) -> None:
    model, x = in_onnx(name, "form"), batch(name)
    compiled = pellucid.compile(model, "grad-cam", target=2)(x)
    for a, b in zip(pellucid.explain(model, x, target=2), compiled, strict=True):
        scale = max(np.abs(a.attribution).max(), 1e-6)
        np.testing.assert_allclose(b.attribution, a.attribution, atol=1e-5 * scale)


def test_keras_gives_the_same_maps_as_torch() -> None:
    from pellucid.adapters.keras.adapter import KerasAdapter

    torch.manual_seed(3)
    network = ViT(front=2, back=3).eval()
    del network.distilled
    network.front = 1  # the head reads the first token alone
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    ours, theirs = TorchAdapter(network), KerasAdapter(keras_vit(network))
    x = batch("class token")
    np.testing.assert_allclose(theirs.run(x)["output"], ours.run(x)["output"], atol=1e-5)
    assert choose_layer(theirs).name == "block2/norm1"
    same_maps(ours, theirs, x)
    same_maps(ours, OnnxAdapter(theirs.form.model), x)


@pytest.mark.parametrize("name", ["residual", "inception"])
def test_a_file_with_the_channels_last_gives_the_same_maps_as_keras(name: str) -> None:
    ours, (x,) = adapter(name, "keras"), TWINS[name].inputs(2)
    same_maps(ours, OnnxAdapter(ours.form.model), x)


@pytest.mark.parametrize("front", [0, 2])
def test_a_network_of_any_size_finds_its_grid_at_other_sizes(front: int) -> None:
    class Free(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 6, 4, 4, bias=False)
            self.norm, self.head = torch.nn.LayerNorm(6), torch.nn.Linear(6, 3)
            self.front = torch.nn.Parameter(torch.zeros(1, front, 6))

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.front.expand(len(x), -1, -1), tokens], 1) if front else tokens
            return self.head(self.norm(tokens).mean(1))

    torch.manual_seed(0)
    model = TorchAdapter(Free().eval())
    model.batch(np.zeros((2, 3, 16, 24), np.float32))
    for height, width in ((16, 24), (32, 48), (24, 16), (16, 40)):
        x = np.zeros((1, 3, height, width), np.float32)
        x[..., 4:8, 12:16] = np.random.default_rng(0).standard_normal((3, 4, 4))
        made = [pellucid.explain(model, x, target=t)[0].attribution for t in range(3)]
        assert made[0].shape == (height // 4, width // 4)
        np.testing.assert_array_equal(np.argwhere(np.maximum.reduce(made) > 0), [[1, 3]])
    tokens = np.zeros((1, 40 + front, 6), np.float32)
    with pytest.raises(LayerError, match=rf"{40 + front} tokens for this image and {24 + front}"):
        as_grid(model, "norm", tokens)  # 4 x 10 or 5 x 8: nobody can know

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
from pellucid.methods.layer_choice import as_grid, choose_layer
from tests.methods.token_networks import NETWORKS, ViT, filled, image_size, keras_vit

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

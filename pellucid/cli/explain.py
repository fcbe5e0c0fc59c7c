"""`pellucid explain`: pictures of what a network looks at."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid import __version__
from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser, count
from pellucid.cli.quiet import talk_aside
from pellucid.cli.target import add_target_options, read_target
from pellucid.cli.terminal import item, plain, styled, table, terminal_of_stderr
from pellucid.cli.wording import in_options
from pellucid.errors import MethodError
from pellucid.labels import load_labels

if TYPE_CHECKING:
    from pellucid.cli.outputs import Outputs
    from pellucid.explanation import Explanation

__all__ = ["parser", "read_options", "run"]

_EXAMPLES = """\
examples:
  The top class of a photograph, written to cat-grad-cam.png:
    pellucid explain model.keras cat.jpg

  A class by its name, in a folder of pictures, with a grid of all of them:
    pellucid explain resnet50.pt *.jpg --labels imagenet --target tabby --out pictures/

  PyTorch code in my_network.py with trained weights and its own preprocessing:
    pellucid explain my_network:build cat.jpg --weights best.pth \\
        --preprocess '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": [224, 224]}'

  Why a cat rather than the class that comes next:
    pellucid explain model.h5 cat.jpg --labels imagenet --target tabby --against runner-up

  Two layers, as vector graphics, and the numbers for a program:
    pellucid explain model.h5 cat.jpg --layer block3_pool --layer block5_pool --out cat.pdf
    pellucid explain model.h5 cat.jpg --json
"""


_METHODS = (
    "grad-cam (the default), grad-cam++, xgrad-cam, hires-cam, layer-cam, eigen-cam, "
    "eigengrad-cam, score-cam, ablation-cam, recipro-cam, layer-conductance; saliency, "
    "input-x-gradient, guided-backprop, deconvnet, integrated-gradients, "
    "expected-gradients, blur-ig, guided-ig, xrai, fullgrad, deeplift, lrp, smoothgrad; "
    "guided-grad-cam; lime, kernel-shap, shapley-sampling, rise, occlusion, "
    "hierarchical-occlusion, sobol, meaningful-perturbation"
)


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid explain",
        "Show what a network looks at in images: print its predictions, and write a picture with "
        "a heatmap for every image.",
        _EXAMPLES,
        usage="pellucid explain MODEL IMAGE [IMAGE ...] [options]",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="pictures; all form one batch")
    what = parser.add_argument_group("what is explained")
    what.add_argument("--method", metavar="NAME", default="grad-cam", help=_METHODS)
    add_target_options(what)
    what.add_argument(
        "--layer",
        metavar="NAME",
        action="append",
        help="where to look, see `pellucid layers`; repeat it to fuse several",
    )
    what.add_argument(
        "--space",
        choices=("logit", "probability"),
        default="logit",
        help="explain the score before the final softmax or sigmoid (the default), or after",
    )
    what.add_argument(
        "--like",
        metavar="LIBRARY",
        help="give the numbers of captum, pytorch-grad-cam, tf-keras-vis, torch-cam, xplique or "
        "lime; by default the paper's",
    )
    what.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, such as relu=false or fuse=max; may be repeated",
    )
    what.add_argument(
        "--engine",
        choices=("native", "onnx", "auto"),
        help="compute with the model's own framework (native, the default), with onnxruntime on "
        "its ONNX export, or with onnxruntime where an export is at hand and agrees (auto, the "
        "default of methods that ask for many predictions: lime, rise, ...)",
    )
    add_model_options(parser)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--labels",
        metavar="FILE",
        help="class names: a text file with one a line, a .json file, or imagenet",
    )
    shown.add_argument("--top", metavar="N", type=count, default=5, help="predictions to print (5)")
    shown.add_argument("--colormap", metavar="NAME", help="of matplotlib: inferno, viridis, jet")
    shown.add_argument(
        "-o",
        "--out",
        metavar="PATH",
        help="a folder, or for one image a .png, .pdf, .svg, .npz or .json file; by default "
        "IMAGE-METHOD.png in the current folder; earlier results are replaced",
    )
    shown.add_argument(
        "--json", action="store_true", help="print one JSON document and nothing else"
    )
    return parser


def run(arguments: Namespace) -> None:
    """Explain the images, write the files, print what was found.

    What can be wrong is found before the first file is written, and the cheap checks come before
    a framework is loaded.
    """
    from pellucid.cli.outputs import planned
    from pellucid.explainer import explain
    from pellucid.methods.progress import showing_passes
    from pellucid.methods.registry import method_named

    images = [Path(image).expanduser() for image in arguments.images]
    options = read_options(arguments.option)
    preprocess = read_preprocess(arguments.preprocess)
    labels = load_labels(arguments.labels)
    target = read_target(arguments)
    named = (arguments.model, arguments.weights, arguments.labels, arguments.preprocess)
    inputs = [Path(name) for name in named if name]
    outputs = planned(images, arguments.method, arguments.out, inputs)
    _check_colormap(arguments.colormap)
    for image in images:
        _check_image(image)
    terminal = terminal_of_stderr()
    if method_named(arguments.method).perturbs:
        options.setdefault("progress", terminal)
    with talk_aside(), showing_passes(terminal, "explaining"):
        adapter = open_model(arguments, preprocess, labels)
        explanations: list[Explanation] = explain(  # type: ignore[assignment]
            adapter,
            list(images),
            arguments.method,
            target=target,
            layer=arguments.layer,
            space=arguments.space,
            like=arguments.like,
            top=arguments.top,
            engine=arguments.engine,
            **options,
        )
    _write(explanations, outputs, arguments.colormap)
    if arguments.json:
        print(json.dumps(_document(arguments, explanations, outputs), allow_nan=False))
        return
    for index, explanation in enumerate(explanations):
        print(styled(plain(arguments.images[index]), "bold"))
        for line in _report(explanation, arguments):
            print(line)
        print(item("written", outputs.files[index], "green"), end="\n\n")
    if len(explanations) < len(images):
        print(f"Interrupted: {len(explanations)} of {len(images)} images are explained.")
    if outputs.grid:
        print(f"All {len(explanations)} are side by side in {plain(outputs.grid)}.")
    if labels is None and arguments.top:
        print("Classes are shown by number: --labels FILE, or --labels imagenet, names them.")


# ---- arguments -------------------------------------------------------------------------------


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE`; values are JSON where they can be, else text."""
    options: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not (equals and name):
            raise MethodError(f"--option {pair!r}: expected NAME=VALUE, such as relu=false.")
        if name in ("model", "images", "method", "target", "layer", "space", "like", "top",
                    "engine", "labels", "preprocess"):  # fmt: skip
            raise MethodError(f"{name!r} is no option of a method: give it as --{name}.")
        try:
            options[name] = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            options[name] = text
    return options


def _check_image(path: Path) -> None:
    """Look at the head of a file, so that what is no image is refused before a model is loaded."""
    from PIL import Image

    from pellucid.images import read_image

    try:
        with Image.open(path):
            return
    except Exception:  # whatever it is, reading says it better
        read_image(path)


def _check_colormap(name: str | None) -> None:
    import numpy as np

    from pellucid.plots import overlay

    if name is not None:
        overlay(None, np.zeros((1, 1), np.float32), colormap=name)


# ---- results ---------------------------------------------------------------------------------


def _write(explanations: Sequence[Explanation], outputs: Outputs, colormap: str | None) -> None:
    from pellucid import plots

    outputs.make_folder()
    # Ctrl-C in a long run leaves images out
    for explanation, path in zip(explanations, outputs.files, strict=False):
        if path.suffix.lower() in plots.FIGURE_SUFFIXES:
            plots.save_figure(explanation.plot(colormap=colormap), path)
        else:
            explanation.save(path)
    if outputs.grid:
        plots.save_figure(plots.grid(explanations, colormap=colormap), outputs.grid)


def _report(explanation: Explanation, arguments: Namespace) -> list[str]:
    """Say in words what was found."""
    from pellucid.region_explanation import RegionExplanation

    lines, top = [], explanation.top
    if top:
        rows = [("probability", "class", "label")]
        rows += [(_percent(score), str(index), plain(label or "")) for index, label, score in top]
        if all(label is None for _, label, _ in top):
            rows = [(*row[:2], "") for row in rows]
        head, *body = table(rows, ">><")
        lines = [styled(f"  {head}", "dim"), *(f"  {line}" for line in body)]
    chosen = ", the top class" if arguments.target is None else ""
    lines.append(item("explained", f"{explanation.name}{chosen} ({explanation.score_text})"))
    layers = (explanation.layer,) if isinstance(explanation.layer, str) else explanation.layer
    reason = f": {explanation.layer_reason}" if explanation.layer_reason else ""
    if layers:
        lines.append(item("layer", ", ".join(layers) + reason))
    if isinstance(explanation, RegionExplanation):
        lines.append(item("found by", "; ".join(explanation.summary())))
    if arguments.engine not in (None, "native"):
        provenance = explanation.provenance
        said = (provenance.get(name) for name in ("engine", "engine_reason"))
        lines.append(item("engine", ": ".join(part for part in said if part)))
    lines += [item("note", in_options(note), "yellow") for note in explanation.notes]
    return lines


def _percent(probability: float) -> str:
    return "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"


def _document(
    arguments: Namespace,
    explanations: Sequence[Explanation],
    outputs: Outputs,
) -> dict[str, Any]:
    """Return everything for machines."""
    entries = [
        {"path": path, "file": str(file), **explanation.to_dict()}
        for path, explanation, file in zip(
            arguments.images, explanations, outputs.files, strict=False
        )
    ]
    files = [str(file) for file in (*outputs.files, outputs.grid) if file]
    return {
        "pellucid": __version__,
        "model": arguments.model,
        "method": arguments.method,
        "explanations": entries,
        "grid": str(outputs.grid) if outputs.grid else None,
        "files": files,
    }

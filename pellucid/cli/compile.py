"""`pellucid compile`: a network and its explanation in one ONNX file."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

from pellucid.adapters.factories import FACTORY
from pellucid.cli.explain import read_options
from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.target import read_name
from pellucid.cli.terminal import item, plain
from pellucid.errors import InputError, PellucidError
from pellucid.labels import load_labels

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid compile model.onnx -o cam.onnx
  pellucid compile model.h5 --method recipro-cam --labels classes.txt
  pellucid compile my_network:build --weights best.pth --method saliency --target input
  pellucid compile model.onnx --method integrated-gradients --option steps=64

The file takes the model's input and gives its outputs, `heatmap`, `attribution`, `target` and
`score`. Any ONNX runtime executes it, with no Python around.
"""


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid compile",
        "Write one ONNX file that gives a network's prediction and the explanation of it.",
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="grad-cam",
        help="grad-cam (the default), grad-cam++, xgrad-cam, hires-cam, layer-cam; eigen-cam, "
        "recipro-cam; saliency, input-x-gradient, guided-backprop, deconvnet, "
        "integrated-gradients, smoothgrad, guided-grad-cam",
    )
    parser.add_argument(
        "--target",
        metavar="argmax|input|INDEX|LABEL",
        default="argmax",
        help="the top class (the default), a class given with each call, or one for good",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        action="append",
        help="where to look, see `pellucid layers`; repeat it to fuse several",
    )
    parser.add_argument(
        "--space",
        choices=("logit", "probability"),
        default="logit",
        help="explain the score before the final softmax or sigmoid (the default), or after",
    )
    parser.add_argument(
        "--size", metavar="HxW", help="of the heatmap; by default that of the model's input"
    )
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, such as steps=64 or samples=32; may be repeated",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="class names to write into the file: a text file with one a line, .json, or imagenet",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the file to write; by default MODEL-METHOD.onnx"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    return parser


def run(arguments: Namespace) -> None:
    """Compile, write the file, print what it does."""
    size, options = _size(arguments.size), read_options(arguments.option)
    labels, preprocess = load_labels(arguments.labels), read_preprocess(arguments.preprocess)
    named = Path(arguments.model).stem
    if FACTORY.match(arguments.model):
        named = arguments.model.rpartition(":")[2]
    out = Path(arguments.out or f"{named}-{arguments.method}.onnx")
    if os.path.realpath(out.expanduser()) == os.path.realpath(Path(arguments.model).expanduser()):
        raise PellucidError(f"--out {out} would overwrite the model that this command reads.")
    target = read_name(arguments.target)
    assert target is not None  # it has a default
    with talk_aside():
        from pellucid.compiling.compile import compile_explainer

        explainer = compile_explainer(
            open_model(arguments, preprocess, labels),
            arguments.method,
            layer=arguments.layer,
            target=target,
            size=size,
            space=arguments.space,
            **options,
        )
        explainer.save(out)
    facts = explainer.facts
    if arguments.json:
        print(json.dumps({"file": str(out), **facts}))
        return
    print(item("method", facts["method"]))
    print(item("target", str(facts["target"])))
    if facts["layer"]:
        layers = [facts["layer"]] if isinstance(facts["layer"], str) else facts["layer"]
        print(item("layer", plain(", ".join(layers))))
    print(item("inputs", ", ".join(plain(v.name) for v in explainer.model.graph.input)))
    print(item("outputs", ", ".join(plain(v.name) for v in explainer.model.graph.output)))
    print(item("written", plain(out), "green"))


def _size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise InputError(f"--size {text!r}: expected HEIGHTxWIDTH, such as 224x224.")
    return tuple(int(part) for part in parts)

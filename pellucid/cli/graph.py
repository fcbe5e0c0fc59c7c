"""`pellucid graph`: the network as a table or a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.target import read_name
from pellucid.cli.terminal import plain
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.adapters.base import Adapter
    from pellucid.graph.drawing.paint import Paint

__all__ = ["parser", "run"]

_COUNTS = ("parameters", "multiply_adds", "activation_bytes")
_MEASURES = ("time", "mean_activation", "dead_channels", "gradient_energy")

_EXAMPLES = """\
examples:
  pellucid graph model.keras
  pellucid graph resnet50.onnx -o resnet50.html
  pellucid graph model.h5 -o volumes.svg --style volumes
  pellucid graph my_network:build -o costs.png --paint multiply_adds
  pellucid graph model.onnx -o times.html --paint time --image cat.jpg
"""


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid graph",
        "Print a network's layers with their shapes, parameters and multiply-adds, or draw them.",
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="the picture to write: .svg, .png, .pdf, .html, .dot or .mmd",
    )
    parser.add_argument(
        "--style", choices=("graph", "volumes", "table"), default="graph", help="what to draw"
    )
    parser.add_argument(
        "--paint",
        choices=(*_COUNTS, *_MEASURES),
        help="colour layers by this number instead of by kind; the last four are measured, "
        "for --image",
    )
    parser.add_argument(
        "--image", metavar="IMAGE", help="the picture for which --paint measures the layers"
    )
    parser.add_argument(
        "--target",
        metavar="CLASS",
        help="the class whose score --paint gradient_energy is of; the top class by default",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="show containers nested N deep as one box each"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="show also layers that only arrange data, every repetition of a block, and every "
        "container open",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    return parser


def run(arguments: Namespace) -> None:
    """Print or draw the graph."""
    if arguments.paint and not arguments.out:
        raise InputError("--paint colours a picture: say where to write it with -o FILE.")
    if arguments.paint in _MEASURES and not arguments.image:
        raise InputError(f"--paint {arguments.paint} is measured: say for which --image FILE.")
    preprocess = read_preprocess(arguments.preprocess)
    with talk_aside():
        model = open_model(arguments, preprocess)
        graph = model.graph
        drawn: Path | None = None
        if arguments.out:
            drawn = graph.draw(
                arguments.out,
                arguments.style,
                paint=_paint(model, arguments),
                depth=arguments.depth,
                repeats=not arguments.all,
                arranging=arguments.all,
                closing=not arguments.all,
            )
    if arguments.json:
        document = {
            "name": graph.name,
            "parameters": graph.parameters,
            "multiply_adds": graph.multiply_adds,
            "activation_bytes": graph.activation_bytes,
            "layers": [asdict(layer) for layer in graph],
            "picture": str(drawn) if drawn else None,
        }
        print(json.dumps(document))
    elif drawn is None:
        for line in str(graph).splitlines():
            print(plain(line))
    else:
        print(drawn)


def _paint(model: Adapter, arguments: Namespace) -> Paint | str | None:
    """Return what to paint by, measured where it has to be."""
    if arguments.paint not in _MEASURES:
        paint: str | None = arguments.paint
        return paint
    from pellucid.measuring import measure

    return measure(model, arguments.image, arguments.paint, read_name(arguments.target))

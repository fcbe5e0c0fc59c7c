"""`pellucid graph`: the network as a table or a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.terminal import plain

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid graph model.keras
  pellucid graph resnet50.onnx -o resnet50.html
  pellucid graph model.h5 -o volumes.svg --style volumes
  pellucid graph my_network:build -o costs.png --paint multiply_adds
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
        choices=("parameters", "multiply_adds", "activation_bytes"),
        help="colour layers by this number instead of by kind",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="show containers nested N deep as one box each"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="show also layers that only arrange data, and every repetition of a block",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    return parser


def run(arguments: Namespace) -> None:
    """Print or draw the graph."""
    preprocess = read_preprocess(arguments.preprocess)
    with talk_aside():
        graph = open_model(arguments, preprocess).graph
        drawn: Path | None = None
        if arguments.out:
            drawn = graph.draw(
                arguments.out,
                arguments.style,
                paint=arguments.paint,
                depth=arguments.depth,
                repeats=not arguments.all,
                arranging=arguments.all,
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

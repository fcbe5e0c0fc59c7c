"""`pellucid layers`: what there is to look at in a network."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.terminal import plain, styled, table
from pellucid.errors import LayerError

if TYPE_CHECKING:
    from pellucid.adapters.base import Adapter, Layer, Port
    from pellucid.methods.layer_choice import LayerChoice

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid layers model.h5
  pellucid layers resnet50.onnx --all
  pellucid layers my_network:build --json

Every name in the first column can be given to `pellucid explain --layer`.
"""
_PASSES_ON = ("Dropout", "Identity", "Noise", "Input")  # layers that change nothing


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid layers",
        "List a network's layers in the order in which they finish, and mark the one that "
        "Grad-CAM takes where none is named.",
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--all",
        action="store_true",
        help="show also layers that change nothing, such as dropout, and the framework's classes",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    return parser


def run(arguments: Namespace) -> None:
    """Print the layers."""
    preprocess = read_preprocess(arguments.preprocess)
    with talk_aside():
        adapter = open_model(arguments, preprocess)
        layers = adapter.layers
        choice, reason = _choice(adapter)
    if arguments.json:
        document = _document(adapter, arguments.model, choice, reason)
        print(json.dumps(document, allow_nan=False))
        return
    shown = [
        layer
        for layer in layers
        if arguments.all or layer.kind not in _PASSES_ON or (choice and layer.name == choice.name)
    ]
    for line in _heading(adapter, arguments.model, len(layers)):
        print(line)
    print()
    for line in _table(shown, choice, arguments.all):
        print(line)
    print()
    print(f"* Grad-CAM looks here: {plain(reason)}." if choice else plain(reason))
    if hidden := len(layers) - len(shown):
        print(f"{hidden} more that change nothing are listed with --all.")


def _choice(adapter: Adapter) -> tuple[LayerChoice | None, str]:
    from pellucid.methods.layer_choice import choose_layer

    try:
        choice = choose_layer(adapter)
    except LayerError as error:
        return None, str(error)
    return choice, choice.reason


def _heading(adapter: Adapter, name: str, count: int) -> list[str]:
    yields = []
    for port in (*adapter.inputs, *adapter.outputs):
        own = f" ({plain(port.own_name)})" if port.own_name not in ("", port.name) else ""
        ends = f", {port.activation}" if port.activation else ""
        yields.append(f"  {port.name}{own}: {_shape(port.shape)}{ends}")
    head = f"{plain(name)}: {adapter.framework}, {count} {'layer' if count == 1 else 'layers'}"
    return [styled(head, "bold"), *yields]


def _table(layers: Sequence[Layer], choice: LayerChoice | None, everything: bool) -> list[str]:
    heads = ["", "name", "kind", "output, channels first", *(["class"] if everything else [])]
    rows = [heads]
    for layer in layers:
        mark = "*" if choice and layer.name == choice.name else ""
        row = [mark, plain(layer.name), plain(layer.kind), _shape(layer.shape, layer.layout)]
        rows.append([*row, plain(layer.framework_class)] if everything else row)
    head, *body = table(rows, "<" * len(heads))
    marked = [styled(line, "green") if line.startswith("*") else line for line in body]
    return [styled(head, "dim"), *marked]


def _shape(shape: Sequence[int | None], layout: str = "") -> str:
    text = " x ".join("any" if size is None else str(size) for size in shape[1:]) or "scalar"
    return f"{text} tokens" if layout == "tokens" else text


def _document(
    adapter: Adapter, name: str, choice: LayerChoice | None, reason: str
) -> dict[str, Any]:
    """Return everything for machines; shapes hold null where any size fits."""
    return {
        "model": name,
        "framework": adapter.framework,
        "inputs": [_port(port) for port in adapter.inputs],
        "outputs": [_port(port) for port in adapter.outputs],
        "grad_cam": {"layer": choice.name if choice else None, "reason": reason},
        "layers": [{**asdict(layer), "grid": layer.grid} for layer in adapter.layers],
    }


def _port(port: Port) -> dict[str, Any]:
    keys = ("name", "own_name", "shape", "own_shape", "activation")
    return {key: getattr(port, key) for key in keys}

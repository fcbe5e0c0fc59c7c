"""`pellucid layers`: what there is to look at in a network."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli.model import MODEL_HELP, add_model_options, open_model, read_preprocess
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.target import read_name
from pellucid.cli.terminal import plain, styled, table

if TYPE_CHECKING:
    from pellucid.adapters.base import Adapter, Layer, Port
    from pellucid.candidates import Candidates

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid layers model.h5
  pellucid layers resnet50.onnx --all
  pellucid layers my_network:build --json
  pellucid layers model.keras --images cat.jpg dog.jpg

"sees" is the receptive field: the pixels that one position of a layer depends on, and how far the
next position is away. "energy" is the squared gradient of the score at a layer, summed up. Every
name in the first column can be given to `pellucid explain --layer`.
"""
_PASSES_ON = ("Dropout", "Identity", "Noise", "Input")  # layers that change nothing


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid layers",
        "List a network's layers in the order in which they finish, with what their "
        "positions see of the image, and mark the one that Grad-CAM takes where none is named.",
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--all",
        action="store_true",
        help="show also layers that change nothing, such as dropout, and the framework's classes",
    )
    parser.add_argument(
        "--images", metavar="IMAGE", nargs="+", help="show also the gradient's energy for these"
    )
    parser.add_argument(
        "--target",
        metavar="INDEX|LABEL",
        help="the class whose gradient it is; by default the top class of each image",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)
    return parser


def run(arguments: Namespace) -> None:
    """Print the layers."""
    from pellucid.candidates import layers as candidates

    preprocess = read_preprocess(arguments.preprocess)
    with talk_aside():
        adapter = open_model(arguments, preprocess)
        layers = adapter.layers
        images = [Path(image).expanduser() for image in arguments.images or ()]
        found = candidates(adapter, images or None, read_name(arguments.target))
    if arguments.json:
        print(json.dumps(_document(adapter, arguments.model, found), allow_nan=False))
        return
    choice = found.chosen.name if found.chosen else ""
    shown = [
        layer
        for layer in layers
        if arguments.all or layer.kind not in _PASSES_ON or layer.name == choice
    ]
    for line in _heading(adapter, arguments.model, len(layers)):
        print(line)
    print()
    for line in _table(shown, found, arguments.all):
        print(line)
    print()
    if not choice:
        print(plain(found.reason))
    elif choice in {layer.name for layer in shown}:
        print(f"* Grad-CAM looks here: {plain(found.reason)}.")
    else:
        print(f"Grad-CAM looks at {plain(choice)}: {plain(found.reason)}.")
    if hidden := len(layers) - len(shown):
        print(f"{hidden} more that change nothing are listed with --all.")


def _heading(adapter: Adapter, name: str, count: int) -> list[str]:
    yields = []
    for port in (*adapter.inputs, *adapter.outputs):
        own = f" ({plain(port.own_name)})" if port.own_name not in ("", port.name) else ""
        ends = f", {port.activation}" if port.activation else ""
        yields.append(f"  {port.name}{own}: {_shape(port.shape)}{ends}")
    head = f"{plain(name)}: {adapter.framework}, {count} {'layer' if count == 1 else 'layers'}"
    return [styled(head, "bold"), *yields]


def _table(layers: Sequence[Layer], found: Candidates, everything: bool) -> list[str]:
    by_name = {candidate.name: candidate for candidate in found}
    chosen = found.chosen.name if found.chosen else ""
    sees = any(candidate.receptive_field for candidate in found)
    energy = any(candidate.energy is not None for candidate in found)
    heads = ["", "name", "kind", "output, channels first"]
    heads += ["sees"] * sees + ["energy"] * energy + ["class"] * everything
    rows = [heads]
    for layer in layers:
        mark, one = "*" if layer.name == chosen else "", by_name.get(layer.name)
        shape = _shape(layer.shape, layer.layout)
        if one and one.grid != layer.grid and layer.layout == "tokens":
            shape += f" ({' x '.join(map(str, one.grid))})"
        row = [mark, plain(layer.name), plain(layer.kind), shape]
        if sees:
            row.append(str((one and one.receptive_field) or ""))
        if energy:
            row.append("" if one is None or one.energy is None else f"{one.energy:.3g}")
        rows.append([*row, plain(layer.framework_class)] if everything else row)
    head, *body = table(rows, "".join(">" if name == "energy" else "<" for name in heads))
    marked = [styled(line, "green") if line.startswith("*") else line for line in body]
    return [styled(head, "dim"), *marked]


def _shape(shape: Sequence[int | None], layout: str = "") -> str:
    text = " x ".join("any" if size is None else str(size) for size in shape[1:]) or "scalar"
    return f"{text} tokens" if layout == "tokens" else text


def _document(adapter: Adapter, name: str, found: Candidates) -> dict[str, Any]:
    """Return everything for machines; shapes hold null where any size fits."""
    return {
        "model": name,
        "framework": adapter.framework,
        "inputs": [_port(port) for port in adapter.inputs],
        "outputs": [_port(port) for port in adapter.outputs],
        "grad_cam": {"layer": found.chosen.name if found.chosen else None, "reason": found.reason},
        "layers": [{**asdict(layer), "grid": layer.grid} for layer in adapter.layers],
        "candidates": [asdict(candidate) for candidate in found],
    }


def _port(port: Port) -> dict[str, Any]:
    keys = ("name", "own_name", "shape", "own_shape", "activation")
    return {key: getattr(port, key) for key in keys}

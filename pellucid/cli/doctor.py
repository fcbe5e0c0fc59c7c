"""`pellucid doctor`: what a model file is, and whether it was read right."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pellucid.cli.model import add_file_options, find_code
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.terminal import item, plain, styled
from pellucid.cli.wording import in_options

if TYPE_CHECKING:
    from pellucid.doctor import Diagnosis
    from pellucid.doctor.findings import End

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid doctor old_model.h5
  pellucid doctor model.json --weights weights.h5 --backend theano
  pellucid doctor weights.h5 --architecture my_network:build
  pellucid doctor damaged.keras --json
"""
_SHOWN = 8
_MARKS = {True: "yes", False: "NO", None: "unknown"}


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid doctor",
        "Say what a model file is, what was brought over from older forms, what code it lacks, "
        "and whether what was opened agrees with it; also of files that do not open.",
        _EXAMPLES,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a file (.h5 .hdf5 .keras .json .yaml .onnx .pt2 .pt .pth) or a SavedModel folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_file_options(parser.add_argument_group("the model"))
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="let the model's file run code of its own as it is opened; only for files you trust",
    )
    return parser


def run(arguments: Namespace) -> None:
    """Print the diagnosis. A file that does not open is a finding, not an error."""
    from pellucid.doctor import diagnose

    find_code(arguments)
    with talk_aside():
        found = diagnose(
            arguments.model,
            weights=arguments.weights,
            architecture=arguments.architecture,
            backend=arguments.backend,
            allow_code=arguments.allow_code,
        )
    if arguments.json:
        print(json.dumps(_document(found), allow_nan=False, default=str))
        return
    for line in _report(found):
        print(line)


def _document(found: Diagnosis) -> dict[str, Any]:
    return asdict(found)


def _report(found: Diagnosis) -> Iterator[str]:
    yield styled(f"{plain(found.path)}: {_what(found)}", "bold")
    if found.opens:
        yield item("opens", "yes", "green")
    for problem in found.problems:
        yield item("opens", f"no: {in_options(problem.removeprefix(f'{found.path}: '))}", "yellow")
    for name, ends in (("input", found.inputs), ("output", found.outputs)):
        for end in ends:
            yield item(name, _end(end))
    if found.parameters:
        layers = f"{found.layers} layers, " if found.layers else ""
        yield item("size", f"{layers}{found.parameters:,} weights, {found.size:,} bytes")
    if found.opens or found.scaling:
        inside = "; ".join(found.scaling)
        yield item("scaling", inside or "no layer inside scales the input: preprocess it yourself")
    if found.state_reason:
        text = f"{found.state}: {found.state_reason}"
        yield item("weights", text, "green" if found.state == "trained" else "yellow")
    for finding in found.findings[:_SHOWN]:
        name = f"{finding.layer} {finding.array}".rstrip()
        yield item("", f"{name}: {finding.text}")
    if len(found.findings) > _SHOWN:
        yield item("", f"and {len(found.findings) - _SHOWN} more; --json lists all")
    for check in found.checks:
        text = f"{check.name}: {_MARKS[check.passed]}; {check.text}"
        yield item("check", text, "green" if check.passed else "yellow")
    for sentence in found.translated:
        yield item("renewed", sentence)
    for warning in found.warnings:
        yield item("doubt", in_options(warning), "yellow")
    yield from _needs(found)


def _what(found: Diagnosis) -> str:
    """Say what wrote the file, in one line."""
    told = found.producer
    if not told and not found.framework:
        return "no model that can be read"
    parts = [" ".join(filter(None, (told.get("library") or found.framework, told.get("version"))))]
    if told.get("library") == "keras 3" and told.get("version"):
        parts = [f"keras {told['version']}"]
    parts += [told[key] for key in ("backend", "format", "data_format") if told.get(key)]
    parts += [f"opset {told['opset']}"] if told.get("opset") else []
    parts += [f"saved {told['date']}"] if told.get("date") else []
    return plain(", ".join(parts))


def _end(end: End) -> str:
    known = end.kind and len(end.shape) == 2  # the kind says how many
    sizes = (
        "" if known else " x ".join("any" if size is None else str(size) for size in end.shape[1:])
    )
    return ": ".join(filter(None, (end.name, "; ".join(filter(None, (sizes, end.kind))))))


def _needs(found: Diagnosis) -> Iterator[str]:
    """Print the code that is missing as a program to fill in."""
    if not found.custom:
        return
    for custom in found.custom:
        yield item("needs", f"{custom.kind} {custom.name!r} (layer {custom.layer!r}): "
                   f"{custom.described}", "yellow")  # fmt: skip
    yield ""
    yield "Fill this in to open it:"
    yield ""
    for line in _program(found):
        yield f"    {line}" if line else ""


def _program(found: Diagnosis) -> Iterator[str]:
    if any(custom.kind == "layer" for custom in found.custom):
        yield "import keras"
    yield "import pellucid"
    objects: list[str] = []
    replaced: list[str] = []
    for custom in found.custom:
        yield ""
        yield from map(_printable, custom.template.splitlines())
        head = custom.template.replace("(", " ").replace(":", " ").split()[1]
        pair = f"{custom.name!r}: {head}"
        (replaced if custom.kind == "lambda" else objects).append(pair)
    yield ""
    arguments = [repr(found.path)]
    arguments += [f"custom_objects={{{', '.join(objects)}}}"] if objects else []
    arguments += [f"replace={{{', '.join(replaced)}}}"] if replaced else []
    yield f"model = pellucid.load({', '.join(arguments)})"


def _printable(line: str) -> str:
    """Keep the indentation, and spell control characters out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)

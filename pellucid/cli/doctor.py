"""`pellucid doctor`: what a model file is, and whether it was read right."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli.model import add_file_options, file_options
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import talk_aside
from pellucid.cli.terminal import item, plain, styled, table
from pellucid.cli.wording import in_options

if TYPE_CHECKING:
    from pellucid.doctor import Diagnosis, PreprocessingGuess
    from pellucid.doctor.findings import End

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid doctor old_model.h5
  pellucid doctor model.json --weights weights.h5 --backend theano
  pellucid doctor weights.h5 --architecture my_network:build
  pellucid doctor damaged.keras --json

  How pictures were preprocessed for it, from about twenty pictures of the kind it is for; with a
  subfolder for each class the answer is surer:
    pellucid doctor old_model.h5 --images photographs/
"""
_SHOWN = 8
_TRIALS = 4
_LIKELY = 0.75
_LEGEND = (
    "off by: how far the first layers are from the statistics of their training, 0 is best",
    "telling: what the predictions tell of the pictures, 1 is most",
    "right: share of right predictions",
)
_UNSCALED = "no layer inside scales the input: preprocess it yourself"
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
        help="a file (.h5 .hdf5 .keras .json .yaml .onnx .pt2 .pt .pth .pb), a SavedModel folder, "
        "or package.module:factory",
    )
    shown = parser.add_argument_group("how its pictures were preprocessed")
    shown.add_argument(
        "--images",
        metavar="FOLDER",
        help="a few pictures of the kind that the network is for, to find its lost preprocessing "
        "by; subfolders are taken for classes",
    )
    shown.add_argument(
        "--truth",
        metavar="FILE",
        help="the classes of the pictures: a line with file name, comma, class for each",
    )
    shown.add_argument(
        "--labels",
        metavar="FILE",
        help="class names in the order of the outputs: a text file with one a line, a .json file, "
        "or imagenet; by default the classes of the pictures, sorted",
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
    from pellucid.labels import load_labels

    images, truth = _pictures(arguments)
    labels = load_labels(arguments.labels)
    with talk_aside():
        found = diagnose(
            arguments.model, **file_options(arguments), labels=labels, images=images, truth=truth
        )
    if arguments.json:
        print(json.dumps(_document(found), allow_nan=False, default=str))
        return
    for line in _report(found):
        print(line)


def _pictures(arguments: Namespace) -> tuple[Any, Any]:
    """Return the pictures and their classes, as far as they were given."""
    from pellucid.doctor.pictures import pictures_in, read_truth
    from pellucid.errors import InputError

    if arguments.images is None:
        if arguments.truth is not None:
            raise InputError("--truth goes with --images: it says of which class each picture is.")
        return None, None
    listed = None if arguments.truth is None else read_truth(Path(arguments.truth))
    return pictures_in(Path(arguments.images).expanduser(), listed)


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
            yield item(name, _end(end, name == "input"))
    if found.parameters:
        layers = f"{found.layers} layers, " if found.layers else ""
        size = f", {found.size:,} bytes" if found.size else ""
        yield item("size", f"{layers}{found.parameters:,} weights{size}")
    if found.opens or found.scaling:
        inside = "; ".join(found.scaling)
        hint = "" if found.preprocessing else " (--images finds out how)"
        yield item("scaling", inside or _UNSCALED + hint)
    if found.state_reason and (found.parameters or found.opens):
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
        yield item("adapted", sentence)
    for warning in found.warnings:
        yield item("doubt", in_options(warning), "yellow")
    if found.preprocessing is not None:
        yield from _preprocessing(found, found.preprocessing)
    yield from _needs(found)


def _what(found: Diagnosis) -> str:
    """Say what wrote the file, in one line."""
    told = found.producer
    if not told and not found.framework:
        return "no model that can be read"
    parts = [" ".join(filter(None, (told.get("library") or found.framework, told.get("version"))))]
    if told.get("library") == "keras 3" and told.get("version"):
        parts = [f"keras {told['version']}"]
    if told.get("library") == "tensorflow":
        parts = [" ".join(filter(None, ("tensorflow", told.get("version"))))]
    parts += [told[key] for key in ("backend", "format", "data_format") if told.get(key)]
    parts += [f"opset {told['opset']}"] if told.get("opset") else []
    parts += [f"saved {told['date']}"] if told.get("date") else []
    return plain(", ".join(parts))


def _end(end: End, is_input: bool) -> str:
    known = end.kind and len(end.shape) == 2  # the kind says how many
    shape = end.shape[1:]
    sizes = "" if known else " x ".join("any" if size is None else str(size) for size in shape)
    if is_input and len(shape) == 3:
        sizes = f"pictures, {sizes} ({_axes(shape)})"
    return ": ".join(filter(None, (end.name, "; ".join(filter(None, (sizes, end.kind))))))


def _axes(shape: Sequence[int | None]) -> str:
    """Say what the three axes of a picture are."""
    kinds = {1: "grey", 3: "colour"}
    if shape[0] in kinds and shape[-1] not in kinds:
        return f"channels, height, width; {kinds[shape[0]]}"
    kind = kinds.get(shape[-1] or 0)
    return "height, width, channels" + (f"; {kind}" if kind else "")


def _preprocessing(found: Diagnosis, guess: PreprocessingGuess) -> Iterator[str]:
    """Print what the network was most likely trained with, and how to use it."""
    best = guess.best
    sure = guess.best.probability >= _LIKELY
    yield item(
        "trained",
        f"with {best.described}: {guess.certainty} ({_percent(best.probability)})",
        "green" if sure else "yellow",
    )
    if best.same:
        yield item("", f"the network does not tell it from {'; '.join(best.same)}")
    if guess.size is not None:
        (height, width), share = guess.size
        yield item("", f"it takes any size; {height} x {width} fits best ({_percent(share)})")
    yield item("", f"{len(guess.trials)} ways tried on {guess.images} images, by "
               f"{', '.join(guess.evidence)}:")  # fmt: skip
    rows = [("share", "off by", "telling", "right", "preprocessing")]
    rows += [
        (
            _percent(trial.probability),
            "-" if trial.divergence is None else f"{trial.divergence:.2f}",
            "-" if trial.information is None else f"{trial.information:.2f}",
            "-" if trial.accuracy is None else _percent(trial.accuracy),
            trial.described,
        )
        for trial in guess.trials[:_TRIALS]
    ]
    used = [True, "batch normalisation" in guess.evidence, "predictions" in guess.evidence,
            "labels" in guess.evidence, True]  # fmt: skip
    kept = [[cell for cell, use in zip(row, used, strict=True) if use] for row in rows]
    legend = [words for words, use in zip(_LEGEND, used[1:], strict=False) if use]
    yield item("", "; ".join(legend))
    for line in table(kept, ">" * (len(kept[0]) - 1) + "<"):
        yield f"              {line}"
    for doubt in guess.doubts:
        yield item("doubt", doubt, "yellow")
    spec = guess.preprocess
    option = spec if isinstance(spec, str) else "'" + json.dumps(spec) + "'"
    path = shlex.quote(plain(found.path))
    yield item("use", f"pellucid explain {path} IMAGE --preprocess {option}")
    yield item("", f"pellucid.load({found.path!r}, preprocess={spec!r})")


def _percent(share: float) -> str:
    return "over 99 %" if share > 0.99 and share < 1 else f"{share:.0%}".replace("%", " %")


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

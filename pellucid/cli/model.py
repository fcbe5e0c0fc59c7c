"""What every command that opens a model shares: the options, and the opening."""

from __future__ import annotations

import json
import sys
from argparse import Namespace, _ArgumentGroup
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli.parser import Parser
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.adapters.base import Adapter

__all__ = [
    "MODEL_HELP",
    "add_file_options",
    "add_model_options",
    "file_options",
    "open_model",
    "read_preprocess",
]

MODEL_HELP = (
    "a file (.onnx .keras .h5 .hdf5 .json .yaml .pt2 .pt .pth .pb), a SavedModel folder, or "
    "file.py:factory or package.module:factory, which is looked for in the current folder too"
)


def add_model_options(parser: Parser) -> None:
    """Add the options that say how a model is opened."""
    group = parser.add_argument_group("the model")
    add_file_options(group)
    group.add_argument(
        "--preprocess",
        metavar="PRESET|JSON",
        help="how images become input: imagenet, caffe, tf (-1..1), 0-1, 0-255, standardise, raw; "
        "or JSON with any of name, mean, std, size, scale, channels, fit, standardise; or a .json "
        "file that holds it; `pellucid doctor MODEL --images FOLDER` finds it out",
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1")
    group.add_argument(
        "--allow-code",
        action="store_true",
        help="let the model's file run code of its own as it is opened; only for files you trust",
    )


def add_file_options(group: _ArgumentGroup) -> None:
    """Add the options that say what else there is to a model's file."""
    group.add_argument(
        "--weights", metavar="FILE", help="weights of a .json, .yaml or package.module:factory"
    )
    group.add_argument(
        "--architecture",
        metavar="FILE",
        help="for Keras files that hold weights only: a .json or .yaml file, or a "
        "package.module:factory that builds the network",
    )
    group.add_argument(
        "--backend",
        choices=("theano", "tensorflow"),
        help="what wrote a file of Keras 1, which does not say it; by default it is told from the "
        "names of the weights",
    )
    group.add_argument(
        "--custom-objects",
        metavar="NAME=MODULE:CLASS",
        action="append",
        default=[],
        help="a class or function that a Keras file needs and does not hold, such as "
        "Scale=my_layers:Scale; may be repeated",
    )
    group.add_argument(
        "--replace",
        metavar="LAYER=MODULE:FUNCTION",
        action="append",
        default=[],
        help="a function in place of a layer of a Keras file, such as a Lambda whose code must not "
        "or cannot run; may be repeated",
    )
    for name, what in (("--inputs", "go in"), ("--outputs", "come out")):
        group.add_argument(
            name,
            metavar="TENSOR[=SHAPE]" if name == "--inputs" else "TENSOR",
            action="append",
            default=None,
            help=f"for TensorFlow graphs (.pb, SavedModel), a tensor to {what}; by default it is "
            "guessed; may be repeated" + (". A shape is ?x224x224x3" if name == "--inputs" else ""),
        )


def read_preprocess(text: str | None) -> Any:
    """Read `--preprocess`: a preset's name, JSON, or the path of a JSON file.

    Raises
    ------
    InputError : the file is missing, or what it holds is no JSON object.
    """
    if text is None:
        return None
    source = "--preprocess"
    if text.lower().endswith(".json") and not text.lstrip().startswith("{"):
        source = text
        try:
            text = Path(text).expanduser().read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InputError(f"--preprocess {source} cannot be read: {reason}.") from error
    elif not text.lstrip().startswith(("{", "[")):
        return text
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{source} is no JSON object: expected something like "
            '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": [224, 224]}.'
        )
    return content


def find_code(arguments: Namespace) -> None:
    """Let a package.module:factory be found in the current folder too."""
    given = (*arguments.custom_objects, *arguments.replace)
    named = (arguments.model, arguments.architecture or "", *given)
    if any(":" in name for name in named) and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def file_options(arguments: Namespace) -> dict[str, Any]:
    """Return what `add_file_options` added, as keyword arguments of `pellucid.load`.

    Raises
    ------
    PellucidError : the code that an option names cannot be imported, or a value makes no sense.
    """
    find_code(arguments)
    return {
        "weights": arguments.weights,
        "architecture": arguments.architecture,
        "backend": arguments.backend,
        "custom_objects": _code("--custom-objects", arguments.custom_objects),
        "replace": _code("--replace", arguments.replace),
        "inputs": _tensors(arguments.inputs),
        "outputs": arguments.outputs,
        "allow_code": arguments.allow_code,
    }


def _code(option: str, given: Sequence[str]) -> dict[str, Any] | None:
    """Import what NAME=MODULE:CLASS names."""
    from pellucid.adapters.factories import FACTORY, named

    found = {}
    for text in given:
        name, _, place = text.rpartition("=")
        if not name or not FACTORY.match(place):
            raise InputError(f"{option} {text}: expected NAME=MODULE:CLASS, Scale=my_layers:Scale.")
        found[name] = named(place)
    return found or None


def _tensors(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Read TENSOR or TENSOR=?x224x224x3."""
    if given is None:
        return None
    found: dict[str, Any] = {}
    for text in given:
        name, _, sizes = text.partition("=")
        parts = sizes.split("x") if sizes else []
        if not name or any(part != "?" and not part.isdecimal() for part in parts):
            raise InputError(f"--inputs {text}: expected TENSOR or TENSOR=?x224x224x3.")
        shape = tuple(None if part == "?" else int(part) for part in parts)
        found[name] = shape or None
    return found


def open_model(
    arguments: Namespace, preprocess: Any = None, labels: Sequence[str] | None = None
) -> Adapter:
    """Open the model that the arguments name.

    Parameters
    ----------
    arguments : with those of `add_model_options`.
    preprocess : what `read_preprocess` gave.
    labels : names of the classes.

    Raises
    ------
    PellucidError : it cannot be opened.
    """
    from pellucid.adapters.load import load

    return load(
        arguments.model,
        labels=labels,
        preprocess=preprocess,
        device=arguments.device,
        **file_options(arguments),
    )

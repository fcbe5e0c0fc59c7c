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
    "find_code",
    "open_model",
    "read_preprocess",
]

MODEL_HELP = (
    "a file (.onnx .keras .h5 .hdf5 .json .yaml .pt2 .pt .pth), a SavedModel folder, or "
    "package.module:factory, which is looked for in the current folder too"
)


def add_model_options(parser: Parser) -> None:
    """Add the options that say how a model is opened."""
    group = parser.add_argument_group("the model")
    add_file_options(group)
    group.add_argument(
        "--preprocess",
        metavar="PRESET|JSON",
        help="how images become input: imagenet, caffe, tf (-1..1), 0-1, 0-255, raw; or JSON with "
        "any of name, mean, std, size, scale, channels, fit; or a .json file that holds it",
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
    named = (arguments.model, arguments.architecture or "")
    if any(":" in name for name in named) and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


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

    find_code(arguments)
    return load(
        arguments.model,
        weights=arguments.weights,
        architecture=arguments.architecture,
        backend=arguments.backend,
        labels=labels,
        preprocess=preprocess,
        allow_code=arguments.allow_code,
        device=arguments.device,
    )

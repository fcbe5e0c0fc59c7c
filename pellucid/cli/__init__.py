"""The command `pellucid`.

Each command is one file that gives a `parser()` and a `run(arguments)`. Asking for help loads
neither NumPy nor a framework: a command imports what it needs when it runs. Whatever goes wrong
is said in one line on stderr:

====  ====================================================================
exit
====  ====================================================================
0     done
1     a fault of this program; `PELLUCID_DEBUG=1` shows where
2     something that the user can mend: arguments, a file, a layer name
130   interrupted
====  ====================================================================
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from pellucid import __version__
from pellucid.cli.parser import Parser
from pellucid.cli.quiet import debugging, quiet
from pellucid.cli.terminal import encodable, plain
from pellucid.cli.wording import in_options
from pellucid.errors import LoadError, PellucidError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "explain": "show what a network looks at in images, and write pictures of it",
    "compile": "write a network and its explanation as one ONNX file",
    "doctor": "say what a model file is, what was brought over, and what it lacks",
    "graph": "print a network's layers with shapes and costs, or draw them",
    "layers": "list a network's layers, and the one that Grad-CAM takes",
    "cache": "show or clear the exports kept on this machine",
}
_EXAMPLES = """\
examples:
  pellucid explain model.h5 cat.jpg
  pellucid explain resnet50.onnx *.jpg --labels imagenet --out pictures/
  pellucid explain my_network:build photo.png --weights best.pth --target "tabby cat"
  pellucid layers model.keras
  pellucid doctor old_model.h5
  pellucid graph model.onnx -o model.svg

`pellucid COMMAND --help` tells more about each command.
"""
_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : the arguments after the program's name; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    encodable(sys.stdout, sys.stderr)
    try:
        status = _run(given)
        sys.stdout.flush()
        return status
    except PellucidError as error:
        return _failed(in_options(str(error), given), 2)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:
        _close_stdout()
        return _BROKEN_PIPE
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _failed(f"unexpected {said} (PELLUCID_DEBUG=1 shows where)", 1)


def _run(given: list[str]) -> int:
    """Find the command, read its arguments, run it."""
    top = _parser()
    try:
        name = top.parse_args(given[:1]).command
        if name is None:
            top.print_help(sys.stderr)
            return 2
        if name not in COMMANDS:
            top.error(f"there is no command {name!r}. {nearest(name, COMMANDS)}")
        command = import_module(f"pellucid.cli.{name}")
        arguments = command.parser().parse(given[1:])
    except SystemExit as stop:  # argparse has said what there is to say
        return int(stop.code or 0)
    with quiet():
        try:
            command.run(arguments)
        except SystemExit as stop:
            raise LoadError(
                f"The model's own code called sys.exit({stop.code!r}) as it was opened."
            ) from stop
    return 0


def _parser() -> Parser:
    commands = "\n".join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())
    top = Parser(
        "pellucid",
        "Explain image models, whatever they were written in: Keras, PyTorch, ONNX.",
        f"commands:\n{commands}\n\n{_EXAMPLES}",
        usage="pellucid COMMAND ...",
    )
    top.add_argument("--version", action="version", version=f"pellucid {__version__}")
    top.add_argument("command", nargs="?", help=Parser.HIDDEN)
    return top


def _failed(message: str, status: int) -> int:
    if debugging():
        traceback.print_exc()
    print(f"pellucid: {plain(message)}", file=sys.stderr)
    return status


def _close_stdout() -> None:
    """Let nothing be flushed into the broken pipe when the interpreter ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return

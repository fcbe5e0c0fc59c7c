"""How arguments are read: argparse, with errors in one line and a guess at what was meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pellucid.cli.terminal import plain
from pellucid.errors import nearest

__all__ = ["Parser", "count"]


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Parameters
    ----------
    prog : what the user types, "pellucid explain".
    description : a sentence or two.
    epilog : examples, printed as they are.
    usage : the first line of the help, where argparse's own would mislead.
    """

    HIDDEN = argparse.SUPPRESS

    def __init__(self, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, given: Sequence[str]) -> argparse.Namespace:
        """Read arguments; options may stand anywhere among the positional ones."""
        arguments, unknown = self.parse_known_intermixed_args(list(given))
        if unknown:
            name = unknown[0].partition("=")[0]
            options = [o for o in self._option_string_actions if o.startswith("--")]
            self.error(f"there is no option {name!r}. {nearest(name, options)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Say it in one line and leave with status 2."""
        message = plain(message).rstrip(".")
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog.split()[0]}: {message}{end} `{self.prog} --help` tells more.\n")


def count(text: str) -> int:
    """Read a whole number that is not negative."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or more")
    return int(text)

"""`pellucid cache`: the exports kept on this machine."""

from __future__ import annotations

import json
import time
from argparse import Namespace

from pellucid.cli.parser import Parser
from pellucid.cli.terminal import plain, table

__all__ = ["parser", "run"]

_EXAMPLES = """\
examples:
  pellucid cache
  pellucid cache --clear

PELLUCID_CACHE names another folder, or turns the cache off with "off".
"""


def parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(
        "pellucid cache",
        "Show the exports that are kept to make the next start quick, or remove them.",
        _EXAMPLES,
    )
    parser.add_argument("--clear", action="store_true", help="remove all of them")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def run(arguments: Namespace) -> None:
    """Show or clear the cache."""
    from pellucid.graph.cache import clear, entries, folder

    place = folder()
    kept = entries()
    freed = clear() if arguments.clear else None
    if arguments.json:
        found = [{"path": str(e.path), "bytes": e.bytes, "used": e.used} for e in kept]
        print(json.dumps({"folder": str(place) if place else None, "entries": found,
                          "freed": freed}))  # fmt: skip
        return
    if place is None:
        print("The cache is off.")
    elif freed is not None:
        print(f"Removed {len(kept)} exports, {freed / 1e6:.1f} MB, from {plain(str(place))}.")
    elif not kept:
        print(f"Nothing is kept in {plain(str(place))}.")
    else:
        rows = [("MB", "last used", "export")]
        for entry in kept:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            rows.append((f"{entry.bytes / 1e6:.1f}", used, entry.path.name))
        print(plain(str(place)))
        for line in table(rows, "><<"):
            print(f"  {line}")

"""The library's advice in the words of the command line.

The library says `allow_code=True`; who meets that message at a shell types `--allow-code`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["in_options"]

_SWITCHES = ("allow_code",)
_VALUES = (
    "weights", "architecture", "backend", "labels", "preprocess", "layer", "target", "space",
    "like", "device", "method", "custom_objects", "replace", "inputs", "outputs",
)  # fmt: skip
_CODE = ("custom_objects", "replace")
_KEY = re.compile(r"'([^']+)'")
_KEYWORD = re.compile(
    rf"(?<![\w/\\.=-])({'|'.join((*_SWITCHES, *_VALUES))})="
    r"(\{[^}]*\}|\['[^']*'\]|'[^']*'|[\w-]*)"
)


def in_options(message: str, given: Sequence[str] = ()) -> str:
    """Write keyword arguments in a message as options.

    Parameters
    ----------
    message : the library's words.
    given : the command line; what stands there, such as a file called `layer=3.onnx`, is kept.

    Examples
    --------
    >>> in_options("Give allow_code=True, or preprocess={'size': (28, 28)}.")
    'Give --allow-code, or --preprocess \\'{"size": [28, 28]}\\'.'
    >>> in_options("Pass replace={'norm': lambda x: ...}.")
    'Pass --replace norm=MODULE:NAME.'
    """

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if any(match[0] in argument for argument in given):
            return match[0]
        flag = "--" + name.replace("_", "-")
        if name in _SWITCHES or not value:
            return flag
        if name in _CODE and (keys := _KEY.findall(value)):
            return " ".join(f"{flag} {key}=MODULE:NAME" for key in keys)
        if name == "inputs" and value.startswith("{"):
            sizes = re.sub(r"[\s()]", "", value.partition(":")[2].rstrip("}")).split(",")
            shape = "x".join("?" if size == "None" else size for size in sizes)
            return f"{flag} {_KEY.findall(value)[0]}={shape}"
        if value.startswith("["):
            return f"{flag} {_KEY.findall(value)[0]}"
        if value.startswith("{"):
            value = "'" + value.translate(str.maketrans("'()", '"[]')) + "'"
        return f"{flag} {value}"

    return _KEYWORD.sub(option, message)

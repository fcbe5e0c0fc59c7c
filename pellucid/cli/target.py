"""What is explained, as the command line says it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli.parser import Parser, count
from pellucid.errors import TargetError

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

__all__ = ["add_target_options", "read_name", "read_target"]


def add_target_options(group: Parser | _ArgumentGroup) -> None:
    """Describe the arguments."""
    group.add_argument(
        "--target",
        metavar="INDEX|LABEL",
        help="the class, by number or by name; by default the top class of each image",
    )
    group.add_argument(
        "--against",
        metavar="INDEX|LABEL",
        help="why the target rather than this class; runner-up is the best class besides it",
    )
    group.add_argument(
        "--counterfactual",
        action="store_true",
        help="what speaks against the target rather than for it",
    )
    group.add_argument(
        "--region",
        metavar="MASK",
        help="of a segmentation map: a picture that is not black inside the region, or top for "
        "wherever the target is the top class",
    )
    group.add_argument(
        "--box",
        metavar="NUMBER",
        help="of a detector: the box to explain, or best for the one where the target scores best",
    )
    group.add_argument(
        "--box-offset",
        metavar="N",
        type=count,
        default=0,
        help="numbers before the scores of each box, such as 4 coordinates (0)",
    )


def read_name(text: str | None) -> int | str | None:
    """Take a number as an index and anything else as a label."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def read_target(arguments: Namespace) -> Any:
    """Put the target together.

    Raises
    ------
    TargetError : the arguments contradict each other.
    """
    from pellucid.methods.targets import Contrast, Counterfactual, Detection, Region

    name = read_name(arguments.target)
    made: dict[str, Any] = {}
    if arguments.against is not None:
        runner_up = arguments.against == "runner-up"
        made["--against"] = Contrast(name, None if runner_up else read_name(arguments.against))
    if arguments.counterfactual:
        made["--counterfactual"] = Counterfactual(name)
    if arguments.region is not None:
        made["--region"] = Region(name, _mask(arguments.region))
    if arguments.box is not None:
        made["--box"] = Detection(name, _box(arguments.box), arguments.box_offset)
    if len(made) > 1:
        raise TargetError(f"{' and '.join(made)} exclude each other: give one of them.")
    return next(iter(made.values()), name)


def _mask(text: str) -> Any:
    from pellucid.images import read_image

    return None if text == "top" else read_image(Path(text).expanduser()).max(axis=-1)


def _box(text: str) -> int | None:
    if text != "best" and not text.isdigit():
        raise TargetError(f"--box {text!r}: give the number of a box, or best.")
    return None if text == "best" else int(text)

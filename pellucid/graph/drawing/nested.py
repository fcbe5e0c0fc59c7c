"""Coordinates of a plan: groups are laid out from the inside to the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellucid.graph.drawing.groups import Plan
from pellucid.graph.drawing.layout import Layout, Node, placed

__all__ = ["Frame", "Picture", "pictured"]

Point = tuple[float, float]
_SIDE = 12.0  # between the border of a group and what is in it


@dataclass(frozen=True)
class Frame:
    """An open group: its corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Piece:
    """A part of an edge, up to the border of a group.

    Attributes
    ----------
    points : of it.
    carries : the box whose value it is.
    to : the box or group where it ends.
    ends : whether it ends at what is drawn as a box.
    """

    points: list[Point]
    carries: str
    to: str
    ends: bool


@dataclass(frozen=True)
class Picture:
    """Where everything is.

    Attributes
    ----------
    centres : of the boxes and closed groups.
    frames : of the open groups, outer ones first.
    pieces : of the edges.
    """

    width: float
    height: float
    centres: dict[str, Point]
    frames: dict[str, Frame]
    pieces: list[Piece]


def pictured(
    plan: Plan, sizes: Mapping[str, tuple[float, float]], closed: frozenset[str]
) -> Picture:
    """Lay out a plan.

    Parameters
    ----------
    sizes : width and height of each box and of each group when it is closed.
    closed : the groups that are drawn as boxes.
    """
    layouts: dict[str, Layout] = {}
    measured: dict[Node, tuple[float, float]] = {}

    def lay_out(name: str) -> None:
        group = plan.groups[name]
        doors: dict[tuple[Node, str, str], float] = {}
        for child in group.children:
            if child not in plan.groups or child in closed:
                measured[child] = sizes[child]
                continue
            lay_out(child)
            inner = layouts[child]
            middle = (inner.left + inner.right) / 2
            measured[child] = (inner.right - inner.left + 2 * _SIDE, inner.bottom)
            for node, (x, _) in inner.centres.items():
                if not isinstance(node, str) and node[0] in ("entry", "exit"):
                    doors[child, node[1], node[0]] = x - middle
        layouts[name] = placed(
            group.arrangement, {child: measured[child] for child in group.children}, doors
        )

    lay_out("")
    centres: dict[str, Point] = {}
    frames: dict[str, Frame] = {}
    pieces: list[Piece] = []

    def put(name: str, right: float, down: float) -> None:
        layout, group = layouts[name], plan.groups[name]
        for edge, route in layout.routes.items():
            to = edge.target if isinstance(edge.target, str) else name
            ends = isinstance(edge.target, str) and to not in layouts
            points = [(x + right, y + down) for x, y in route]
            pieces.append(Piece(points, edge.carries, to, ends))
        for child in group.children:
            x, y = layout.centres[child]
            x, y = x + right, y + down
            if child not in layouts:
                centres[child] = (x, y)
                continue
            wide, high = measured[child]
            frames[child] = Frame(x - wide / 2, y - high / 2, wide, high)
            inner = layouts[child]
            put(child, x - (inner.left + inner.right) / 2, y - high / 2)

    whole = layouts[""]
    put("", -whole.left, 0.0)
    return Picture(whole.right - whole.left, whole.bottom, centres, frames, pieces)

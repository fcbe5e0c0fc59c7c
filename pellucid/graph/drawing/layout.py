"""A layered layout for directed graphs: rows of nodes, edges that run downwards.

Four steps (Sugiyama, Tagawa and Toda 1981): nodes get rows by their longest way from an input;
edges that pass rows get a place in each; the order within rows is improved by moving nodes to the
mean of their neighbours; coordinates then follow the neighbours as closely as the order allows,
by isotonic regression.

The first three, `arranged`, do not depend on sizes. The page in data/graph_page.html repeats the
last, `placed`, whenever a group is opened or closed.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Arrangement", "Edge", "Layout", "Node", "arranged", "placed"]

# A box by name, or a place where only an edge passes: ("lane", source, row). Where edges cross
# the border of a group are ("entry", source) and ("exit", source).
Node = str | tuple[str, str, int] | tuple[str, str]
Point = tuple[float, float]
_SWEEPS = 10
_ROW_GAP = 26.0
_BORDER_GAP = 17.0  # between the border of a group and its first and last row
_COLUMN_GAP = 22.0
_FIRM = 50.0  # how much less boxes give way than edges that pass them
_ROUNDING = 1e-6
_NONE = (0.0, 0.0)
_LANE = 12.0  # width of a place where only an edge passes


class Edge(NamedTuple):
    """A connection; edges that carry the same value share their way."""

    source: Node
    target: Node
    carries: str


@dataclass(frozen=True)
class Arrangement:
    """Who stands in which row, in which order.

    Attributes
    ----------
    rows : nodes from left to right, rows from top to bottom.
    chains : all places that an edge goes through, its ends included.
    """

    rows: list[list[Node]]
    chains: dict[Edge, list[Node]]


@dataclass(frozen=True)
class Layout:
    """Where everything is; y grows downwards.

    Attributes
    ----------
    centres : of nodes.
    routes : points of each edge, from its source's lower to its target's upper edge.
    left, right, bottom : of all that there is; the top is 0.
    """

    centres: dict[Node, Point]
    routes: dict[Edge, list[Point]]
    left: float = 0.0
    right: float = 0.0
    bottom: float = 0.0


@dataclass
class _Neighbours:
    """Whom a node is to stand above or below: who, how far beside it, how much.

    `door` is where on the node its edges enter, from its middle.
    """

    above: list[tuple[Node, float, float]] = field(default_factory=list)
    below: list[tuple[Node, float, float]] = field(default_factory=list)
    door: float = 0.0


def arranged(nodes: Sequence[str], edges: Sequence[Edge]) -> Arrangement:
    """Find rows and the order within them.

    Parameters
    ----------
    nodes : names in an order in which edges run forward.
    edges : between them, and from entries and to exits.
    """
    ranks = _ranks(nodes, edges)
    chains = {edge: _chain(edge, ranks) for edge in dict.fromkeys(edges)}
    rows = _rows(chains, ranks)
    above: dict[Node, list[Node]] = {}
    below: dict[Node, list[Node]] = {}
    for source, target in dict.fromkeys(p for chain in chains.values() for p in pairwise(chain)):
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    return Arrangement(_ordered(rows, above, below), chains)


def placed(
    arrangement: Arrangement,
    sizes: Mapping[Node, tuple[float, float]],
    doors: Mapping[tuple[Node, str, str], float] | None = None,
) -> Layout:
    """Find coordinates.

    Parameters
    ----------
    sizes : width and height of each box.
    doors : how far from the middle of a box the edge that carries a value enters or leaves, by
        (box, value, "entry" or "exit").
    """
    doors = doors or {}
    rows, chains = arrangement.rows, arrangement.chains
    x = _columns(rows, _neighbours(chains, doors), sizes)
    heights = [max((sizes[n][1] for n in row if n in sizes), default=0.0) for row in rows]
    tops, y = [], 0.0
    for index, height in enumerate(heights):
        tops.append(y)
        y += height + (_ROW_GAP if _inside(rows[index : index + 2]) else _BORDER_GAP)
    bottom = tops[-1] + heights[-1] if tops else 0.0
    row_of = {node: index for index, row in enumerate(rows) for node in row}
    centres = {n: (x[n], tops[row] + heights[row] / 2) for n, row in row_of.items()}
    routes = {}
    for edge, chain in chains.items():
        (x0, y0), (x1, y1) = centres[edge.source], centres[edge.target]
        x0 += doors.get((edge.source, edge.carries, "exit"), 0.0)
        x1 += doors.get((edge.target, edge.carries, "entry"), 0.0)
        first, last = row_of[edge.source], row_of[edge.target]
        points = [
            (x0, y0 + sizes.get(edge.source, _NONE)[1] / 2),
            (x0, tops[first] + heights[first]),
        ]
        for place in chain[1:-1]:
            row = row_of[place]
            points += [(x[place], tops[row]), (x[place], tops[row] + heights[row])]
        points += [(x1, tops[last]), (x1, y1 - sizes.get(edge.target, _NONE)[1] / 2)]
        routes[edge] = [p for i, p in enumerate(points) if not i or p != points[i - 1]]
    wide = {node: _width(node, sizes) / 2 for node in x}
    left = min((x[n] - wide[n] for n in x), default=0.0)
    right = max((x[n] + wide[n] for n in x), default=0.0)
    return Layout(centres, routes, left, right, bottom)


def _inside(rows: Sequence[Sequence[Node]]) -> bool:
    """Whether none of the rows is the border of a group."""
    return not any(row and row[0][0] in ("entry", "exit") for row in rows)


def _width(node: Node, sizes: Mapping[Node, tuple[float, float]]) -> float:
    return sizes[node][0] if node in sizes else _LANE


# ---- rows ------------------------------------------------------------------------------------


def _ranks(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[Node, int]:
    sources: dict[Node, list[Node]] = {}
    targets: dict[Node, list[Node]] = {}
    for source, target, _ in edges:
        sources.setdefault(target, []).append(source)
        targets.setdefault(source, []).append(target)
    ranks: dict[Node, int] = {}
    for node in nodes:
        ranks[node] = max((ranks.get(s, 0) + 1 for s in sources.get(node, ())), default=0)
    last = max(ranks.values(), default=0) + 1
    entries = dict.fromkeys(s for s in targets if s not in ranks)
    exits = dict.fromkeys(t for t in sources if t not in ranks)
    for node in reversed(nodes):  # what is read late need not stand at the top
        if node in targets and len(sources.get(node, ())) <= 1:
            lowest = min(ranks.get(t, last) for t in targets[node]) - 1
            if not sources.get(node) or len(targets[node]) == 1:
                ranks[node] = max(ranks[node], lowest)
    ranks.update(dict.fromkeys(entries, 0))
    ranks.update(dict.fromkeys(exits, last))
    return ranks


def _chain(edge: Edge, ranks: Mapping[Node, int]) -> list[Node]:
    """Give an edge a place in each row that it passes.

    Edges that carry the same value share their way, so that a dense block is no brush of lines.
    """
    between = range(ranks[edge.source] + 1, ranks[edge.target])
    return [edge.source, *(("lane", edge.carries, row) for row in between), edge.target]


def _rows(chains: Mapping[Edge, list[Node]], ranks: Mapping[Node, int]) -> list[list[Node]]:
    rows: list[list[Node]] = [[] for _ in range(max(ranks.values(), default=0) + 1)]
    for node, rank in ranks.items():
        rows[rank].append(node)
    seen: set[Node] = set()
    for edge, chain in chains.items():
        for row, place in enumerate(chain[1:-1], ranks[edge.source] + 1):
            if place not in seen:
                seen.add(place)
                rows[row].append(place)
    return rows


def _ordered(
    rows: list[list[Node]],
    above: Mapping[Node, Sequence[Node]],
    below: Mapping[Node, Sequence[Node]],
) -> list[list[Node]]:
    """Reorder rows so that few edges cross."""
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        sides = above if down else below
        for index in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            place = _fractions(rows[index - 1 if down else index + 1])
            means = _fractions(rows[index])  # of those without neighbours: where they are
            for node in rows[index]:
                found = [place[n] for n in sides.get(node, ())]
                if found:
                    means[node] = sum(found) / len(found)
            rows[index].sort(key=means.__getitem__)
        count = _crossings(rows, below)
        if count < fewest:
            best, fewest = rows, count
    return best


def _fractions(row: Sequence[Node]) -> dict[Node, float]:
    return {node: i / max(len(row) - 1, 1) for i, node in enumerate(row)}


def _crossings(rows: Sequence[Sequence[Node]], below: Mapping[Node, Sequence[Node]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {node: i for i, node in enumerate(lower)}
        before: list[int] = []  # where the edges that begin further left end
        for node in upper:
            ends = [place[target] for target in below.get(node, ())]
            total += sum(len(before) - bisect_right(before, end) for end in ends)
            for end in ends:
                insort(before, end)
    return total


# ---- columns ---------------------------------------------------------------------------------


def _neighbours(
    chains: Mapping[Edge, Sequence[Node]], doors: Mapping[tuple[Node, str, str], float]
) -> dict[Node, _Neighbours]:
    found: dict[Node, _Neighbours] = {}
    links = {
        (upper, lower, edge.carries): None
        for edge, chain in chains.items()
        for upper, lower in pairwise(chain)
    }
    for upper, lower, carries in links:
        leaves = doors.get((upper, carries, "exit"), 0.0)
        enters = doors.get((lower, carries, "entry"), 0.0)
        shift = leaves - enters
        found.setdefault(upper, _Neighbours()).below.append((lower, -shift, _pull(upper, lower)))
        found.setdefault(lower, _Neighbours()).above.append((upper, shift, _pull(lower, upper)))
        found[upper].door = found[upper].door or leaves
        found[lower].door = enters or found[lower].door
    return found


def _pull(node: Node, other: Node) -> float:
    """Say how much a node is to stand above or below another.

    Boxes make a straight trunk, whatever branches off; long edges keep straight most of all.
    """
    if isinstance(node, str):
        return 4.0 if isinstance(other, str) else 0.01
    return 1.0 if isinstance(other, str) else 16.0


def _columns(
    rows: Sequence[Sequence[Node]],
    neighbours: Mapping[Node, _Neighbours],
    sizes: Mapping[Node, tuple[float, float]],
) -> dict[Node, float]:
    """Place each row's nodes as near to their neighbours as its order allows."""
    x: dict[Node, float] = {}
    offsets = [_offsets(row, sizes) for row in rows]
    for row, places in zip(rows, offsets, strict=True):
        x.update((node, place - places[-1] / 2) for node, place in zip(row, places, strict=True))
    order = list(zip(rows, offsets, strict=True))
    for sweep in range(4 * _SWEEPS):
        down = sweep % 2 == 0
        for row, places in order if down else reversed(order):
            wanted = [_wanted(n, x, neighbours.get(n), down, sweep < _SWEEPS) for n in row]
            if len(row) == 1:  # where everything comes together is the middle
                wanted = [-neighbours[row[0]].door if row[0] in neighbours else 0.0]
            weights = [_FIRM if isinstance(node, str) else 1.0 for node in row]
            x.update(zip(row, _spread(wanted, weights, places), strict=True))
    _straighten(x, order)
    return x


def _straighten(
    x: dict[Node, float], rows: Sequence[tuple[Sequence[Node], Sequence[float]]]
) -> None:
    """Move each edge that passes rows into one column, where nothing is in its way."""
    lines: dict[str, list[tuple[Sequence[Node], Sequence[float], int]]] = {}
    for row, places in rows:
        for i, node in enumerate(row):
            if node[0] == "lane":
                lines.setdefault(node[1], []).append((row, places, i))
    for line in sorted(lines.values(), key=lambda line: -max(abs(x[r[i]]) for r, _, i in line)):
        low, high = -math.inf, math.inf
        for row, places, i in line:
            if i:
                low = max(low, x[row[i - 1]] + places[i] - places[i - 1])
            if i + 1 < len(row):
                high = min(high, x[row[i + 1]] + places[i] - places[i + 1])
        if low <= high + _ROUNDING:
            here = sorted(x[row[i]] for row, _, i in line)
            column = max(min(here[len(here) // 2], high), low)
            x.update((row[i], column) for row, _, i in line)


def _offsets(row: Sequence[Node], sizes: Mapping[Node, tuple[float, float]]) -> list[float]:
    """Return how far from the first node of a row the others are at least."""
    offsets = [0.0]
    for one, other in pairwise(row):
        apart = (_width(one, sizes) + _width(other, sizes)) / 2 + _COLUMN_GAP
        offsets.append(offsets[-1] + apart)
    return offsets


def _wanted(
    node: Node, x: Mapping[Node, float], around: _Neighbours | None, down: bool, one_side: bool
) -> float:
    if around is None:
        return x[node]
    sides = [*around.above, *around.below]
    if one_side:
        sides = (around.above if down else around.below) or sides
    total = sum(pull for _, _, pull in sides)
    return sum(pull * (x[other] + shift) for other, shift, pull in sides) / total


def _spread(
    wanted: Sequence[float], weights: Sequence[float], offsets: Sequence[float]
) -> list[float]:
    """Find the positions nearest to the wanted ones that keep order and distance."""
    blocks: list[list[float]] = []  # mean, weight, count
    for value, weight, offset in zip(wanted, weights, offsets, strict=True):
        blocks.append([value - offset, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, heavy, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * heavy) / (before[1] + heavy)
            before[1] += heavy
            before[2] += count
    means = [block[0] for block in blocks for _ in range(int(block[2]))]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]

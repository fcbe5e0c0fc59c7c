"""A layered layout for directed graphs: rows of nodes, edges that run downwards.

Four steps (Sugiyama, Tagawa and Toda 1981): nodes get rows by their longest way from an input;
edges that pass rows get a place in each; the order within rows is improved by moving nodes to the
mean of their neighbours; coordinates then follow the neighbours as closely as the order allows,
by isotonic regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Layout", "layered"]

Node = str | tuple[str, str, int]  # a box by name, or the place of an edge: ("lane", source, row)
Point = tuple[float, float]
_SWEEPS = 10
_ROW_GAP = 26.0
_COLUMN_GAP = 22.0
_LANE = 12.0  # width of a place where only an edge passes


@dataclass(frozen=True)
class Layout:
    """Where everything is; y grows downwards.

    Attributes
    ----------
    centres : of nodes.
    routes : points of each edge, from its source's lower to its target's upper edge.
    """

    centres: dict[str, Point]
    routes: dict[tuple[str, str], list[Point]]


def layered(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]) -> Layout:
    """Lay out a graph without cycles.

    Parameters
    ----------
    sizes : width and height of each node, in an order in which edges run forward.
    edges : pairs of nodes.
    """
    ranks = _ranks(sizes, edges)
    chains, widths = _chains(sizes, edges, ranks)
    rows = _rows(chains, ranks, sizes)
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    above: dict[Node, list[Node]] = {}
    below: dict[Node, list[Node]] = {}
    for source, target in links:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    rows = _ordered(rows, above, below)
    x = _columns(rows, above, below, widths, sizes)
    tops, heights = _row_tops(rows, sizes)
    centres = {n: (x[n], tops[ranks[n]] + heights[ranks[n]] / 2) for n in sizes}
    routes = {}
    for (source, target), chain in chains.items():
        start, end = centres[source], centres[target]
        points = [(start[0], start[1] + sizes[source][1] / 2)]
        for row, place in enumerate(chain[1:-1], ranks[source] + 1):
            points += [(x[place], tops[row]), (x[place], tops[row] + heights[row])]
        points.append((end[0], end[1] - sizes[target][1] / 2))
        routes[source, target] = points
    return Layout(centres, routes)


def _ranks(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]
) -> dict[str, int]:
    sources: dict[str, list[str]] = {}
    targets: dict[str, list[str]] = {}
    for source, target in edges:
        sources.setdefault(target, []).append(source)
        targets.setdefault(source, []).append(target)
    ranks: dict[str, int] = {}
    for node in sizes:
        ranks[node] = max((ranks[s] + 1 for s in sources.get(node, ())), default=0)
    for node in reversed(list(sizes)):  # what is read late need not stand at the top
        if node in targets and len(sources.get(node, ())) <= 1:
            lowest = min(ranks[t] for t in targets[node]) - 1
            if not sources.get(node) or len(targets[node]) == 1:
                ranks[node] = max(ranks[node], lowest)
    return ranks


def _chains(
    sizes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    ranks: Mapping[str, int],
) -> tuple[dict[tuple[str, str], list[Node]], dict[Node, float]]:
    """Give every edge a place in each row that it passes."""
    widths: dict[Node, float] = {node: size[0] for node, size in sizes.items()}
    chains = {}
    for source, target in dict.fromkeys(edges):
        # Edges from one source share their way, so that a dense block is no brush of lines.
        places: list[Node] = [
            ("lane", source, row) for row in range(ranks[source] + 1, ranks[target])
        ]
        widths.update(dict.fromkeys(places, _LANE))
        chains[source, target] = [source, *places, target]
    return chains, widths


def _rows(
    chains: Mapping[tuple[str, str], list[Node]],
    ranks: Mapping[str, int],
    sizes: Mapping[str, tuple[float, float]],
) -> list[list[Node]]:
    rows: list[list[Node]] = [[] for _ in range(max(ranks.values(), default=0) + 1)]
    for node in sizes:
        rows[ranks[node]].append(node)
    seen: set[Node] = set()
    for (source, _), chain in chains.items():
        for row, place in enumerate(chain[1:-1], ranks[source] + 1):
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
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        indices = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for index in indices:
            fixed = rows[index - 1 if down else index + 1]
            place = {node: i / max(len(fixed) - 1, 1) for i, node in enumerate(fixed)}
            here = {node: i / max(len(rows[index]) - 1, 1) for i, node in enumerate(rows[index])}
            sides = above if down else below

            def mean(
                node: Node,
                place: Mapping[Node, float] = place,
                here: Mapping[Node, float] = here,
                sides: Mapping[Node, Sequence[Node]] = sides,
            ) -> float:
                found = [place[n] for n in sides.get(node, ()) if n in place]
                return sum(found) / len(found) if found else here[node]

            rows[index].sort(key=mean)
        count = _crossings(rows, below)
        if count < fewest:
            best, fewest = rows, count
        if not fewest:
            break
    return best


def _crossings(rows: Sequence[Sequence[Node]], below: Mapping[Node, Sequence[Node]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {node: i for i, node in enumerate(lower)}
        ends = [
            (i, place[t]) for i, node in enumerate(upper) for t in below.get(node, ()) if t in place
        ]
        ends.sort()
        total += sum(
            second < first
            for i, (start, first) in enumerate(ends)
            for after, second in ends[i + 1 :]
            if after > start
        )
    return total


def _columns(
    rows: Sequence[Sequence[Node]],
    above: Mapping[Node, Sequence[Node]],
    below: Mapping[Node, Sequence[Node]],
    widths: Mapping[Node, float],
    sizes: Mapping[str, tuple[float, float]],
) -> dict[Node, float]:
    """Place each row's nodes as near to their neighbours as its order allows."""
    x: dict[Node, float] = {}
    for row in rows:
        left = 0.0
        for node in row:
            x[node] = left + widths[node] / 2
            left += widths[node] + _COLUMN_GAP
        for node in row:
            x[node] -= (left - _COLUMN_GAP) / 2
    for sweep in range(4 * _SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted, weights = [], []
            for node in row:
                sides = [*above.get(node, ()), *below.get(node, ())]
                if sweep < _SWEEPS:
                    sides = list((above if down else below).get(node, ())) or sides
                pulls = [_pull(isinstance(node, str), isinstance(other, str)) for other in sides]
                places = [x[other] for other in sides]
                total = sum(p * q for p, q in zip(pulls, places, strict=True))
                wanted.append(total / sum(pulls) if pulls else x[node])
                weights.append(2.0 if isinstance(node, str) else 1.0)
            x.update(zip(row, _spread(row, wanted, weights, widths), strict=True))
    return x


def _pull(box: bool, other: bool) -> float:
    """Say how much two neighbours are to stand above each other: long edges most of all."""
    return 4.0 if box and other else 1.0 if box or other else 16.0


def _spread(
    row: Sequence[Node],
    wanted: Sequence[float],
    weights: Sequence[float],
    widths: Mapping[Node, float],
) -> list[float]:
    """Find the positions nearest to the wanted ones that keep order and distance."""
    offsets = [0.0]
    for one, other in pairwise(row):
        offsets.append(offsets[-1] + (widths[one] + widths[other]) / 2 + _COLUMN_GAP)
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


def _row_tops(
    rows: Sequence[Sequence[Node]], sizes: Mapping[str, tuple[float, float]]
) -> tuple[list[float], list[float]]:
    heights = [max((sizes[n][1] for n in row if isinstance(n, str)), default=0.0) for row in rows]
    tops, y = [], 0.0
    for height in heights:
        tops.append(y)
        y += height + _ROW_GAP
    return tops, heights

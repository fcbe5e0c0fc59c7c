"""Blocks that follow one another and are the same, shown once as "x 6"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["Repeat", "without_repeats"]

_LONGEST = 12  # segments in one block
_LEAST = 3  # layers that are worth folding


@dataclass(frozen=True)
class Repeat:
    """Layers that stand for several blocks like theirs.

    Attributes
    ----------
    layers : names of those that are shown.
    times : how often the block occurs.
    stands_for : each layer that is left out, and the one that is shown for it.
    """

    layers: tuple[str, ...]
    times: int
    stands_for: Mapping[str, str] = field(default_factory=dict)


def without_repeats(
    graph: LayerGraph, numbers: Mapping[str, float] = MappingProxyType({})
) -> tuple[LayerGraph, list[Repeat]]:
    """Leave out blocks that equal the one before them.

    A block begins and ends where all that flows goes through a single layer. Two are the same if
    their layers have the same kinds, shapes and connections, in the same order.
    """
    segments = _segments(graph)
    signs = [_sign(segment, numbers) for segment in segments]
    gone: dict[str, str] = {}  # a layer that is left out: the one that is shown for it
    repeats: list[Repeat] = []
    start = 0
    while start < len(segments):
        length, times = _best_run(signs, segments, start)
        if times > 1:
            start = _at_beginning(signs, segments, start, length, times)
            shown = [layer for segment in segments[start : start + length] for layer in segment]
            others = [x for s in segments[start + length : start + times * length] for x in s]
            same = {x.name: shown[i % len(shown)].name for i, x in enumerate(others)}
            repeats.append(Repeat(tuple(layer.name for layer in shown), times, same))
            gone.update(same)
        start += length * times
    layers = [
        replace(layer, inputs=tuple(dict.fromkeys(gone.get(n, n) for n in layer.inputs)))
        for layer in graph.layers
        if layer.name not in gone
    ]
    readers: dict[str, list[str]] = {}
    for layer in layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer.name)
    connected = tuple(replace(x, outputs=tuple(readers.get(x.name, ()))) for x in layers)
    used = {name for layer in layers for name in layer.path}
    containers = tuple(c for c in graph.containers if c.name in used)
    return replace(graph, layers=connected, containers=containers), repeats


def _segments(graph: LayerGraph) -> list[list[GraphLayer]]:
    """Cut the layers where nothing but one layer's output is still to be read."""
    position = {layer.name: i for i, layer in enumerate(graph.layers)}
    segments: list[list[GraphLayer]] = [[]]
    reach = 0
    for index, layer in enumerate(graph.layers):
        segments[-1].append(layer)
        before = reach
        reach = max([reach, *(position[name] for name in layer.outputs)])
        if before <= index:  # all earlier outputs have been read by now
            segments.append([])
    return [segment for segment in segments if segment]


def _sign(segment: list[GraphLayer], numbers: Mapping[str, float]) -> tuple[object, ...]:
    place = {layer.name: i for i, layer in enumerate(segment)}
    return tuple(
        (layer.kind, layer.shape, layer.multiply_adds, layer.parameters, layer.fused,
         numbers.get(layer.name),
         tuple(place.get(name, -1) for name in layer.inputs))
        for layer in segment
    )  # fmt: skip


def _best_run(
    signs: list[tuple[object, ...]], segments: list[list[GraphLayer]], start: int
) -> tuple[int, int]:
    """Find the block at `start` whose repetition covers most: its segments and its count."""
    best, covered = (1, 1), 1
    for length in range(1, min(_LONGEST, (len(signs) - start) // 2) + 1):
        block = signs[start : start + length]
        times = 1
        while signs[start + times * length : start + (times + 1) * length] == block:
            times += 1
        size = sum(len(segment) for segment in segments[start : start + length])
        if times > 1 and length * times > covered and size >= _LEAST:
            best, covered = (length, times), length * times
    return best


def _at_beginning(
    signs: list[tuple[object, ...]],
    segments: list[list[GraphLayer]],
    start: int,
    length: int,
    times: int,
) -> int:
    """Shift a run so that its blocks begin where a reader would say they do.

    That is where a container begins, or else at a convolution or normalisation.
    """
    fitting = [
        first
        for first in range(start, start + length)
        if signs[first : first + length] * times == signs[first : first + length * times]
    ]
    for first in fitting:
        before = segments[first - 1][-1].path if first else ()
        path = segments[first][0].path
        if path and path != before and len(path) >= len(before):
            return first
    kinds = ("Conv", "LayerNorm", "BatchNorm", "DepthwiseConv", "SeparableConv")
    return next((f for f in fitting if segments[f][0].kind.startswith(kinds)), start)

"""The style *volumes*: feature maps as blocks, as high as their resolution, as thick as their
number of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pellucid.graph.drawing.colours import colour_of
from pellucid.graph.drawing.legend import colour_bar
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.scene import Curve, Label, Polygon, Rectangle, Scene, text_width
from pellucid.graph.layer_table import TIMES
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.simplifying import ARRANGING, computing_only

__all__ = ["volumes"]

_HIGHEST = 190.0
_SLANT = (0.32, 0.26)  # how far the depth of a block goes right and up, per unit of its height
_GAP = 20.0
_MARGIN = 30.0
_PASSING = frozenset((
    "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "ReLU", "ReLU6", "LeakyReLU", "PReLU",
    "ELU", "SiLU", "GELU", "HardSwish", "Sigmoid", "Tanh", "Mish", "HardSigmoid",
))  # fmt: skip


def volumes(graph: LayerGraph, paint: Paint | None = None) -> Scene:
    """Draw a graph as a row of feature maps; connections that skip are arcs above."""
    small = computing_only(graph, ARRANGING | _PASSING)
    layers = [layer for layer in small.layers if layer.kind != "Output" and layer.shape]
    largest = max((max(_sides(layer)) for layer in layers if layer.grid), default=1)
    x = _MARGIN
    spots: dict[str, tuple[float, float, float]] = {}  # left, right, top
    shapes: list[Polygon | Rectangle | Label | Curve] = []
    ground = _MARGIN + _HIGHEST * (1 + _SLANT[1]) + 90
    for layer in layers:
        thick, high = _size(layer, largest)
        fill = colour_of(layer.kind)
        if paint:
            fill = paint.fill(paint.of([layer.name]))
        faces = _block(x, ground, thick, high, bool(layer.grid), fill, layer)
        shapes += faces
        deep = high * _SLANT[0] if layer.grid else 0.0
        wide = thick + deep
        top = ground - high / 2 - (high * _SLANT[1] if layer.grid else 0.0)
        spots[layer.name] = (x, x + wide, top)
        text = _caption(layer)
        room = max(wide, *(text_width(line, 7.5) for line in text)) + _GAP
        for row, line in enumerate(text):
            y = ground + _HIGHEST / 2 + 14 + 10 * row
            shapes.append(Label(x + thick / 2, y, line, 7.5, "#3d3d45", "middle", bold=not row))
        x += room
    arcs = _arcs(small, layers, spots)
    scene = Scene(x + _MARGIN, ground + _HIGHEST / 2 + 66, title=graph.name)
    scene.add(Label(_MARGIN, 18, graph.name, 14, bold=True))
    if paint:
        scene.height += 40
        colour_bar(scene, paint, _MARGIN, scene.height - 34)
    scene.add(*arcs, *shapes)
    return scene


def _sides(layer: GraphLayer) -> list[int]:
    return [size or 1 for size in layer.grid] or [1]


def _size(layer: GraphLayer, largest: int) -> tuple[float, float]:
    """Return a block's thickness and height."""
    channels = (layer.shape[1] if len(layer.shape) > 1 else 1) or 1
    if not layer.grid:
        return 9.0, min(24 + 14 * math.log2(max(channels, 2)), _HIGHEST)
    high = 10 + (_HIGHEST - 10) * math.sqrt(max(_sides(layer)) / largest)
    return 3 + 3.2 * math.log2(max(channels, 2)), high


def _block(
    x: float, ground: float, thick: float, high: float, deep: bool, fill: str, layer: GraphLayer
) -> list[Polygon | Rectangle | Label | Curve]:
    bottom, top = ground + high / 2, ground - high / 2
    title = f"{layer.name}: {layer.kind}"
    front = [(x, top), (x + thick, top), (x + thick, bottom), (x, bottom)]
    faces: list[Polygon | Rectangle | Label | Curve] = []
    if deep:
        right, up = high * _SLANT[0], high * _SLANT[1]
        roof = [(x, top), (x + right, top - up), (x + thick + right, top - up), (x + thick, top)]
        side = [
            (x + thick, top), (x + thick + right, top - up), (x + thick + right, bottom - up),
            (x + thick, bottom),
        ]  # fmt: skip
        faces += [
            Polygon(roof, _shade(fill, 1.06), key=layer.name, title=title),
            Polygon(side, _shade(fill, 0.86), key=layer.name, title=title),
        ]
    return [*faces, Polygon(front, fill, key=layer.name, title=title)]


def _shade(fill: str, factor: float) -> str:
    parts = (min(255, round(int(fill[i : i + 2], 16) * factor)) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _caption(layer: GraphLayer) -> list[str]:
    name = layer.name
    if len(name) > 22:
        name = "…" + name[-21:]
    shape = f" {TIMES} ".join("?" if s is None else str(s) for s in layer.shape[1:])
    return [name, layer.kind, shape]


def _arcs(
    graph: LayerGraph,
    layers: Sequence[GraphLayer],
    spots: Mapping[str, tuple[float, float, float]],
) -> list[Polygon | Rectangle | Label | Curve]:
    """Connect what does not stand side by side."""
    position = {layer.name: i for i, layer in enumerate(layers)}
    found: list[Polygon | Rectangle | Label | Curve] = []
    for source, target in graph.edges:
        if source not in position or target not in position:
            continue
        steps = position[target] - position[source]
        if steps == 1:
            continue
        start, end = spots[source], spots[target]
        between = [
            spots[layer.name][2] for layer in layers[position[source] : position[target] + 1]
        ]
        level = min(between, default=start[2]) - 6 - min(4.0 * steps, 44)
        x0, x1 = start[1] - 3, (end[0] + end[1]) / 2
        points = [(x0, start[2]), (x0, level), (x1, level), (x1, end[2])]
        found.append(Curve(points, "#9a9aa5", 0.9, (source, target), straight=True))
    return found

"""The style *graph*: boxes with names, kinds, shapes and counts, connected by lines.

Layers that only follow the one before them (normalisation, activation, dropout) share its box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pellucid.graph.drawing.colours import FAMILIES, colour_of, family_of, ink_on, scaled
from pellucid.graph.drawing.layout import layered
from pellucid.graph.drawing.repeats import Repeat
from pellucid.graph.drawing.scene import Curve, Label, Rectangle, Scene, text_width
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.table import TIMES, short_count, shown_shape

__all__ = ["boxes"]

_STRIP = 17.0
_LINE = 11.0
_PAD = 8.0
_MARGIN = 28.0
_FOLLOWING = ("normalisation", "activation")
_ALONE = ("Dropout", "Identity", "Noise")


@dataclass(frozen=True)
class _Box:
    layers: tuple[GraphLayer, ...]
    width: float
    height: float


def boxes(
    graph: LayerGraph,
    repeats: Sequence[Repeat] = (),
    paint: Mapping[str, float] | None = None,
    painted: str = "",
) -> Scene:
    """Draw a graph as boxes.

    Parameters
    ----------
    repeats : blocks that stand for several.
    paint : a number per layer, to colour by instead of by kind.
    painted : what the number is.
    """
    grouped = _stacked(graph)
    sizes = {box.layers[0].name: (box.width, box.height) for box in grouped}
    owner = {layer.name: box.layers[0].name for box in grouped for layer in box.layers}
    edges = [
        (owner[source], owner[target])
        for source, target in graph.edges
        if owner[source] != owner[target]
    ]
    layout = layered(sizes, edges)
    left = min(x - sizes[n][0] / 2 for n, (x, _) in layout.centres.items())
    xs = [x for route in layout.routes.values() for x, _ in route]
    left = min([left, *xs]) - _MARGIN
    right = max([*(x + sizes[n][0] / 2 for n, (x, _) in layout.centres.items()), *xs]) + _MARGIN
    bottom = max(y + sizes[n][1] / 2 for n, (_, y) in layout.centres.items())
    head = 46.0
    legend = 30.0
    width = max(right - left, 420.0)
    shift = (width - (right - left)) / 2 - left
    scene = Scene(width, bottom + head + legend + _MARGIN, title=graph.name)
    _title(scene, graph, repeats)
    place = {n: (x + shift, y + head + 8) for n, (x, y) in layout.centres.items()}
    _frames(scene, graph, grouped, place)
    _multiples(scene, repeats, owner, grouped, place)
    for (source, target), route in layout.routes.items():
        points = [(x + shift, y + head + 8) for x, y in route]
        scene.add(Curve(points, ends=(str(source), str(target))))
    scale = max((abs(v) for v in (paint or {}).values()), default=0.0) or 1.0
    for box in grouped:
        _draw_box(scene, box, place[box.layers[0].name], paint, scale)
    _legend(scene, graph, paint, painted, scale)
    return scene


def _stacked(graph: LayerGraph) -> list[_Box]:
    """Put layers that only follow into the box of the layer that they follow."""
    stacks: dict[str, list[GraphLayer]] = {}
    head: dict[str, str] = {}
    for layer in graph.layers:
        source = graph[layer.inputs[0]] if len(layer.inputs) == 1 else None
        follows = (
            source is not None
            and source.outputs == (layer.name,)
            and not source.is_port
            and (family_of(layer.kind) in _FOLLOWING or layer.kind in _ALONE)
            and source.path == layer.path
        )
        first = head[source.name] if follows and source is not None else layer.name
        head[layer.name] = first
        stacks.setdefault(first, []).append(layer)
    return [_box(tuple(stack)) for stack in stacks.values()]


def _box(layers: tuple[GraphLayer, ...]) -> _Box:
    widths = [
        max(
            text_width(_short(layer), 10, bold=True) + text_width(_kind(layer), 9) + 18,
            text_width(_facts(layer, index == 0), 8.5),
        )
        for index, layer in enumerate(layers)
    ]
    height = sum(_strip_height(layer, i == 0) for i, layer in enumerate(layers))
    return _Box(layers, max(96.0, *widths) + 2 * _PAD, height)


def _strip_height(layer: GraphLayer, first: bool) -> float:
    return _STRIP + (_LINE if _facts(layer, first) else 0)


def _short(layer: GraphLayer) -> str:
    """Return a layer's name without that of the container that it is in."""
    for outer in reversed(layer.path):
        base = outer.split(":")[0]
        for prefix in (outer, base):
            if layer.name.startswith(prefix) and len(layer.name) > len(prefix) + 1:
                return layer.name[len(prefix) + 1 :]
    return layer.name


def _kind(layer: GraphLayer) -> str:
    return f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind


def _facts(layer: GraphLayer, first: bool) -> str:
    parts = []
    if first and layer.shape:
        parts += [f" {TIMES} ".join("?" if s is None else str(s) for s in layer.shape[1:])]
    if first and layer.parameters:
        parts.append(f"{short_count(layer.parameters)} par.")
    if first and layer.multiply_adds:
        parts.append(f"{short_count(layer.multiply_adds)} m.-a.")
    return "   ".join(parts)


def _draw_box(
    scene: Scene,
    box: _Box,
    centre: tuple[float, float],
    paint: Mapping[str, float] | None,
    scale: float,
) -> None:
    x, y = centre[0] - box.width / 2, centre[1] - box.height / 2
    for index, layer in enumerate(box.layers):
        height = _strip_height(layer, index == 0)
        fill = colour_of(layer.kind)
        if paint is not None:
            value = paint.get(layer.name)
            fill = "#ffffff" if value is None else scaled(abs(value) / scale)
        ink = ink_on(fill)
        hover = f"{layer.name}: {_kind(layer)}, {shown_shape(layer.shape)}"
        scene.add(
            Rectangle(x, y, box.width, height, fill, "none", 0, False, layer.name, hover),
            Label(x + _PAD, y + _STRIP / 2 + 0.5, _short(layer), 10, ink, bold=True),
            Label(x + box.width - _PAD, y + _STRIP / 2 + 0.5, _kind(layer), 9, ink, "end"),
        )
        if facts := _facts(layer, index == 0):
            scene.add(Label(x + _PAD, y + _STRIP + 3.5, facts, 8.5, ink))
        y += height
    x, top = centre[0] - box.width / 2, centre[1] - box.height / 2
    scene.add(Rectangle(x, top, box.width, box.height, "none", "#4a4a55", 3))


def _frames(
    scene: Scene,
    graph: LayerGraph,
    grouped: Sequence[_Box],
    place: Mapping[str, tuple[float, float]],
) -> None:
    """Frame the containers whose layers stand together, with no others among them."""
    labels: list[Label] = []
    depth = {name: i for layer in graph.layers for i, name in enumerate(layer.path)}
    for container in sorted(graph.containers, key=lambda c: depth.get(c.name, 0)):
        inside = [b for b in grouped if all(container.name in x.path for x in b.layers)]
        if len(inside) < 2:
            continue
        spare = max(14.0 - 2.0 * depth[container.name], 6.0)
        x0, y0, x1, y1 = _around(inside, place, spare)
        others = [b for b in grouped if b not in inside]
        if any(_overlaps(b, place, (x0, y0, x1, y1)) for b in others):
            continue
        label = f"{container.name}  {container.framework_class}".strip()
        scene.add(Rectangle(x0, y0, x1 - x0, y1 - y0, "#00000008", "#b5b5c0", 6))
        if depth[container.name] % 2:  # an inner frame often begins where the outer one does
            labels.append(Label(x1 - 5, y0 + 5, label, 7.5, "#6d6d78", "end"))
        else:
            labels.append(Label(x0 + 5, y0 + 5, label, 7.5, "#6d6d78"))
    scene.add(*labels)


def _around(
    inside: Sequence[_Box], place: Mapping[str, tuple[float, float]], spare: float
) -> tuple[float, float, float, float]:
    spots = [(place[b.layers[0].name], b) for b in inside]
    return (
        min(x - b.width / 2 for (x, _), b in spots) - spare,
        min(y - b.height / 2 for (_, y), b in spots) - min(spare, 12.0),
        max(x + b.width / 2 for (x, _), b in spots) + spare,
        max(y + b.height / 2 for (_, y), b in spots) + min(spare, 11.0) - 3,
    )


def _overlaps(
    box: _Box, place: Mapping[str, tuple[float, float]], area: tuple[float, float, float, float]
) -> bool:
    x, y = place[box.layers[0].name]
    x0, y0, x1, y1 = area
    return (
        x0 < x + box.width / 2 and x - box.width / 2 < x1
        and y0 < y + box.height / 2 and y - box.height / 2 < y1
    )  # fmt: skip


def _multiples(
    scene: Scene,
    repeats: Sequence[Repeat],
    owner: Mapping[str, str],
    grouped: Sequence[_Box],
    place: Mapping[str, tuple[float, float]],
) -> None:
    by_name = {box.layers[0].name: box for box in grouped}
    for repeat in repeats:
        heads = dict.fromkeys(owner[name] for name in repeat.layers if name in owner)
        inside = [by_name[head] for head in heads]
        x0, y0, x1, y1 = _around(inside, place, 19.0)
        scene.add(
            Rectangle(x0, y0, x1 - x0, y1 - y0, "none", "#c0504d", 8, dashed=True),
            Label(x1 + 4, (y0 + y1) / 2, f"{TIMES} {repeat.times}", 13, "#c0504d", bold=True),
        )


def _title(scene: Scene, graph: LayerGraph, repeats: Sequence[Repeat]) -> None:
    total = (
        f"{short_count(graph.parameters)} parameters, "
        f"{short_count(graph.multiply_adds)} multiply-adds"
    )
    if not repeats:
        scene.add(Label(scene.width / 2, 34, total, 9, "#6d6d78", "middle"))
    scene.add(Label(scene.width / 2, 18, graph.name, 14, anchor="middle", bold=True))


def _legend(
    scene: Scene,
    graph: LayerGraph,
    paint: Mapping[str, float] | None,
    painted: str,
    scale: float,
) -> None:
    y = scene.height - 20
    x = _MARGIN
    if paint is not None:
        scene.add(Label(x, y, f"{painted or 'painted'}: 0", 8.5))
        x += text_width(f"{painted or 'painted'}: 0", 8.5) + 8
        for step in range(40):
            scene.add(Rectangle(x + 3 * step, y - 5, 3.2, 10, scaled(step / 39), "none"))
        top = short_count(round(scale)) if scale >= 100 else f"{scale:.3g}"
        scene.add(Label(x + 128, y, top, 8.5))
        return
    used = dict.fromkeys(family_of(layer.kind) for layer in graph.layers)
    for family in used:
        wide = text_width(family, 8.5) + 26
        if family == "port":
            continue
        if x + wide > scene.width - 6:
            x, y = _MARGIN, y + 13
            scene.height += 13
        scene.add(
            Rectangle(x, y - 5, 10, 10, FAMILIES[family], "#8a8a95"), Label(x + 14, y, family, 8.5)
        )
        x += wide

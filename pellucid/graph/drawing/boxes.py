"""The style *graph*: boxes with names, kinds, shapes and counts, connected by lines.

Layers that only follow the one before them (normalisation, activation, dropout) share its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.graph.drawing.colours import FAMILIES, colour_of, family_of, ink_on
from pellucid.graph.drawing.groups import Box, Group, Plan
from pellucid.graph.drawing.legend import colour_bar
from pellucid.graph.drawing.nested import Picture, pictured
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.scene import Curve, Label, Rectangle, Scene, text_width
from pellucid.graph.layer_table import TIMES, short_count, shown_shape
from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["Card", "Strip", "boxes", "cards"]

_STRIP = 17.0
_LINE = 11.0
_PAD = 8.0
_MARGIN = 28.0
_HEAD = 56.0
_LEAST = 96.0  # width of a box
_SMALL = 8.5  # size of the facts' letters
_GREY = "#6d6d78"


@dataclass(frozen=True)
class Strip:
    """What a box shows of one layer."""

    key: str
    name: str
    kind: str
    facts: tuple[str, ...]
    fill: str
    ink: str
    hover: str

    @property
    def height(self) -> float:
        """How high it is."""
        return _STRIP + _LINE * len(self.facts)


@dataclass(frozen=True)
class Card:
    """A box, or a closed group, as it is drawn."""

    strips: tuple[Strip, ...]
    times: int = 1
    group: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        widths = [
            max(
                text_width(strip.name, 10, bold=True) + text_width(strip.kind, 9) + 18,
                *(text_width(fact, _SMALL) for fact in strip.facts),
                _LEAST,
            )
            for strip in self.strips
        ]
        return max(widths) + 2 * _PAD, sum(strip.height for strip in self.strips)


def cards(plan: Plan, paint: Paint | None = None) -> dict[str, Card]:
    """Return how each box, and each group when it is closed, is drawn."""
    found = {name: _card(box, list(plan.around(name)), paint) for name, box in plan.boxes.items()}
    for name, group in plan.groups.items():
        if group.summary:
            found[name] = _closed(group, group.summary, list(plan.around(name)), paint)
    return found


def boxes(
    graph: LayerGraph, plan: Plan, closed: frozenset[str] = frozenset(), paint: Paint | None = None
) -> Scene:
    """Draw a graph as boxes.

    Parameters
    ----------
    plan : of the graph.
    closed : groups that are shown as one box each.
    paint : numbers to colour by instead of by kind.
    """
    drawn = cards(plan, paint)
    picture = pictured(plan, {name: card.size for name, card in drawn.items()}, closed)
    scene = Scene(max(picture.width + 2 * _MARGIN, 420.0), 0.0, title=graph.name)
    scene.add(
        Label(scene.width / 2, 18, graph.name, 14, anchor="middle", bold=True),
        Label(scene.width / 2, 35, _totals(graph), 9, _GREY, "middle"),
    )
    right = (scene.width - picture.width) / 2
    _frames(scene, plan, picture, right)
    for piece in picture.pieces:
        points = [(x + right, y + _HEAD) for x, y in piece.points]
        scene.add(Curve(points, ends=(piece.carries, piece.to), arrow=piece.ends))
    for name, (x, y) in picture.centres.items():
        _draw_card(scene, drawn[name], x + right, y + _HEAD)
    scene.height = _HEAD + picture.height + 34
    if paint:
        colour_bar(scene, paint, _MARGIN, scene.height)
        scene.height += 12
    else:
        _legend(scene, [layer for name in picture.centres for layer in _layers(plan, name)])
    scene.height += 24
    return scene


def _layers(plan: Plan, name: str) -> Sequence[GraphLayer]:
    if name in plan.boxes:
        return plan.boxes[name].layers
    summary = plan.groups[name].summary
    return [summary] if summary else []


def _totals(graph: LayerGraph) -> str:
    return (
        f"{sum(not layer.is_port for layer in graph)} layers, "
        f"{short_count(graph.parameters)} parameters, "
        f"{short_count(graph.multiply_adds)} multiply-adds"
    )


def _card(box: Box, around: Sequence[str], paint: Paint | None) -> Card:
    strips = []
    for index, layer in enumerate(box.layers):
        facts = _facts(layer) if not index else []
        value = paint.of([layer.name]) if paint else None
        strips.append(_strip(layer, _short(layer, around), _kind(layer), facts, value, paint))
    return Card(tuple(strips))


def _closed(group: Group, layer: GraphLayer, around: Sequence[str], paint: Paint | None) -> Card:
    value = paint.of(group.layers) if paint else None
    kind = layer.framework_class or layer.kind
    facts = [*_facts(layer), f"{len(group.layers)} layers"]
    strip = _strip(layer, _short(layer, around), kind, facts, value, paint)
    return Card((strip,), group.times, group=True)


def _strip(
    layer: GraphLayer,
    name: str,
    kind: str,
    facts: list[str],
    value: float | None,
    paint: Paint | None,
) -> Strip:
    fill = paint.fill(value) if paint else colour_of(layer.kind)
    if paint and value is not None:
        facts = [*facts, paint.shown(value)]
    hover = f"{layer.name}: {kind}, {shown_shape(layer.shape)}"
    return Strip(layer.name, name, kind, tuple(facts), fill, ink_on(fill), hover)


def _short(layer: GraphLayer, around: Sequence[str]) -> str:
    """Return a layer's name without that of the frame that it is in."""
    for outer in around:
        for prefix in (outer, outer.split(":")[0]):
            if layer.name.startswith(prefix) and len(layer.name) > len(prefix) + 1:
                return layer.name[len(prefix) + 1 :]
    return layer.name


def _kind(layer: GraphLayer) -> str:
    return f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind


def _facts(layer: GraphLayer) -> list[str]:
    counts = []
    if layer.parameters:
        counts.append(f"{short_count(layer.parameters)} parameters")
    if layer.multiply_adds:
        counts.append(f"{short_count(layer.multiply_adds)} multiply-adds")
    shape = f" {TIMES} ".join("?" if s is None else str(s) for s in layer.shape[1:])
    return [line for line in (shape, ", ".join(counts)) if line]


def _draw_card(scene: Scene, card: Card, x: float, y: float) -> None:
    width, height = card.size
    left, top = x - width / 2, y - height / 2
    if card.group:  # a second edge behind says that there is more in it
        scene.add(Rectangle(left + 3, top + 3, width, height, "#ffffff", "#8a8a95", 3))
    below = top
    for strip in card.strips:
        scene.add(
            Rectangle(left, below, width, strip.height, strip.fill, "none", 0, False, strip.key,
                      strip.hover),
            Label(left + _PAD, below + _STRIP / 2 + 0.5, strip.name, 10, strip.ink, bold=True),
            Label(left + width - _PAD, below + _STRIP / 2 + 0.5, strip.kind, 9, strip.ink, "end"),
        )  # fmt: skip
        for row, fact in enumerate(strip.facts):
            line = below + _STRIP + 3.5 + row * _LINE
            scene.add(Label(left + _PAD, line, fact, _SMALL, strip.ink))
        below += strip.height
    scene.add(Rectangle(left, top, width, height, "none", "#4a4a55", 3))
    if card.times > 1:
        _times(scene, left + width + 7, y, card.times)


def _frames(scene: Scene, plan: Plan, picture: Picture, right: float) -> None:
    labels = []
    for name, frame in picture.frames.items():
        group, x, y = plan.groups[name], frame.x + right, frame.y + _HEAD
        repeated = group.times > 1
        stroke = "#c0504d" if repeated else "#b5b5c0"
        scene.add(
            Rectangle(x, y, frame.width, frame.height, "#00000008", stroke, 6, dashed=repeated)
        )
        if group.depth and group.summary:
            short = _short(group.summary, list(plan.around(name)))
            label = f"{short}  {group.summary.framework_class}".strip()
            labels.append(Label(x + 6, y + 7, label, 7.5, _GREY))
        if repeated:
            _times(scene, x + frame.width + 4, y + frame.height / 2, group.times)
    scene.add(*labels)


def _times(scene: Scene, x: float, y: float, times: int) -> None:
    scene.add(Label(x, y, f"{TIMES} {times}", 13, "#c0504d", bold=True))


def _legend(scene: Scene, layers: Sequence[GraphLayer]) -> None:
    x = _MARGIN
    for family in dict.fromkeys(family_of(layer.kind) for layer in layers):
        wide = text_width(family, _SMALL) + 26
        if family == "port":
            continue
        if x + wide > scene.width - 6:
            x = _MARGIN
            scene.height += 13
        scene.add(
            Rectangle(x, scene.height - 5, 10, 10, FAMILIES[family], "#8a8a95"),
            Label(x + 14, scene.height, family, _SMALL),
        )
        x += wide

"""A graph as text for other programs: Graphviz DOT and Mermaid."""

from __future__ import annotations

import json
from collections.abc import Callable

from pellucid.graph.drawing.colours import FAMILIES, colour_of, family_of, ink_on
from pellucid.graph.drawing.groups import Group, Plan
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.layer_table import TIMES, short_count
from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["to_dot", "to_mermaid"]


def to_dot(
    graph: LayerGraph, plan: Plan, closed: frozenset[str], paint: Paint | None = None
) -> str:
    """Write a graph in Graphviz's language, groups as clusters."""
    lines = [
        f"digraph {json.dumps(graph.name or 'network')} {{",
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=10];',
        '  graph [fontname="Helvetica", fontsize=9, color="#b5b5c0"];',
    ]
    if paint:
        lines.append(f"  label={_quoted(_scale(paint))};")

    def node(layer: GraphLayer, group: Group | None) -> str:
        fill = _fill(layer, group, paint)
        label = _quoted("\n".join(_lines(layer, group, paint)))
        colours = f'fillcolor="{fill}", fontcolor="{ink_on(fill)}"'
        return f"{_quoted(layer.name)} [label={label}, {colours}];"

    def begin(group: Group) -> str:
        return f"subgraph {_quoted('cluster ' + group.name)} {{ label={_quoted(_title(group))};"

    names = _names(graph, plan, closed)
    lines += _nested(graph, plan, closed, node, begin, "}")
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in names]
    return "\n".join([*lines, "}\n"])


def to_mermaid(
    graph: LayerGraph, plan: Plan, closed: frozenset[str], paint: Paint | None = None
) -> str:
    """Write a graph in Mermaid's language, groups as subgraphs."""
    keys: dict[str, str] = {}
    families: dict[str, None] = {}
    fills: list[str] = []

    def node(layer: GraphLayer, group: Group | None) -> str:
        key = keys.setdefault(layer.name, f"n{len(keys)}")
        label = "<br/>".join(_escaped(line) for line in _lines(layer, group, paint))
        if paint:
            fill = _fill(layer, group, paint)
            fills.append(f"  style {key} fill:{fill},stroke:#55555f,color:{ink_on(fill)}")
            return f'{key}["{label}"]'
        families.setdefault(family_of(layer.kind))
        return f'{key}["{label}"]:::{family_of(layer.kind)}'

    numbers = {name: index for index, name in enumerate(plan.groups)}

    def begin(group: Group) -> str:
        return f'subgraph g{numbers[group.name]}["{_escaped(_title(group))}"]'

    lines = ["flowchart TD", *_nested(graph, plan, closed, node, begin, "end")]
    if paint:
        lines.insert(1, f"  %% {_scale(paint)}")
    lines += [f"  {keys[a]} --> {keys[b]}" for a, b in _names(graph, plan, closed)]
    lines += [f"  classDef {f} fill:{FAMILIES[f]},stroke:#55555f,color:#1d1d22" for f in families]
    return "\n".join([*lines, *fills, ""])


def _names(graph: LayerGraph, plan: Plan, closed: frozenset[str]) -> list[tuple[str, str]]:
    """Return the connections between what is to be seen: layers, and closed groups by name."""
    seen = plan.shown_as(closed)

    def name(layer: str) -> str:
        shown = seen[plan.owner[layer]]
        summary = plan.groups[shown].summary if shown in plan.groups else None
        return summary.name if summary else layer

    found = dict.fromkeys((name(a), name(b)) for a, b in graph.edges)
    return [(a, b) for a, b in found if a != b]


def _lines(layer: GraphLayer, group: Group | None, paint: Paint | None) -> list[str]:
    kind = f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind
    if group:
        kind = f"{layer.framework_class or layer.kind}, {len(group.layers)} layers"
    times = f" {TIMES} {group.times}" if group and group.times > 1 else ""
    found = [layer.name + times, kind]
    if layer.shape:
        found.append(f" {TIMES} ".join("?" if s is None else str(s) for s in layer.shape[1:]))
    if layer.parameters:
        found.append(f"{short_count(layer.parameters)} parameters")
    value = paint.of(group.layers if group else [layer.name]) if paint else None
    if paint and value is not None:
        found.append(paint.shown(value))
    return found


def _fill(layer: GraphLayer, group: Group | None, paint: Paint | None) -> str:
    if paint is None:
        return colour_of(layer.kind)
    return paint.fill(paint.of(group.layers if group else [layer.name]))


def _title(group: Group) -> str:
    times = f"{TIMES} {group.times}" if group.times > 1 else ""
    return f"{group.name if group.depth else ''} {times}".strip()


def _scale(paint: Paint) -> str:
    return f"{paint.caption}: pale {paint.shown(paint.low)}, dark {paint.shown(paint.high)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    for character, entity in (("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text


def _nested(
    graph: LayerGraph,
    plan: Plan,
    closed: frozenset[str],
    node: Callable[[GraphLayer, Group | None], str],
    begin: Callable[[Group], str],
    end: str,
) -> list[str]:
    """Write the layers inside their groups."""

    def inside(name: str, indent: str) -> list[str]:
        lines = []
        for child in plan.groups[name].children:
            group = plan.groups.get(child)
            if group is None:
                lines += [indent + node(layer, None) for layer in plan.boxes[child].layers]
            elif child in closed and group.summary:
                lines.append(indent + node(group.summary, group))
            else:
                lines += [indent + begin(group), *inside(child, indent + "  "), indent + end]
        return lines

    return inside("", "  ")

"""A graph as text for other programs: Graphviz DOT and Mermaid."""

from __future__ import annotations

import json
from collections.abc import Callable

from pellucid.graph.drawing.colours import FAMILIES, colour_of, family_of
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.table import TIMES, short_count

__all__ = ["to_dot", "to_mermaid"]

Tree = dict[str, "Tree"]


def to_dot(graph: LayerGraph) -> str:
    """Write a graph in Graphviz's language, containers as clusters."""
    lines = [
        f"digraph {json.dumps(graph.name or 'network')} {{",
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=10];',
        '  graph [fontname="Helvetica", fontsize=9, color="#b5b5c0"];',
    ]

    def node(layer: GraphLayer) -> str:
        label = json.dumps("\n".join(_lines(layer)), ensure_ascii=False)
        return f'{json.dumps(layer.name)} [label={label}, fillcolor="{colour_of(layer.kind)}"];'

    def begin(name: str) -> str:
        return f"subgraph {json.dumps('cluster ' + name)} {{ label={json.dumps(name)};"

    lines += _nested(graph, node, begin, "}")
    lines += [f"  {json.dumps(a)} -> {json.dumps(b)};" for a, b in graph.edges]
    return "\n".join([*lines, "}\n"])


def to_mermaid(graph: LayerGraph) -> str:
    """Write a graph in Mermaid's language, containers as subgraphs."""
    keys = {layer.name: f"n{i}" for i, layer in enumerate(graph.layers)}
    groups = {container.name: f"g{i}" for i, container in enumerate(graph.containers)}

    def node(layer: GraphLayer) -> str:
        label = "<br/>".join(_escaped(line) for line in _lines(layer))
        return f'{keys[layer.name]}["{label}"]:::{family_of(layer.kind)}'

    def begin(name: str) -> str:
        return f'subgraph {groups.get(name, "g")}["{_escaped(name)}"]'

    lines = ["flowchart TD", *_nested(graph, node, begin, "end")]
    lines += [f"  {keys[a]} --> {keys[b]}" for a, b in graph.edges]
    used = dict.fromkeys(family_of(layer.kind) for layer in graph.layers)
    lines += [f"  classDef {f} fill:{FAMILIES[f]},stroke:#55555f,color:#1d1d22" for f in used]
    return "\n".join([*lines, ""])


def _lines(layer: GraphLayer) -> list[str]:
    kind = f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind
    found = [layer.name, kind]
    if layer.shape:
        found.append(f" {TIMES} ".join("?" if s is None else str(s) for s in layer.shape[1:]))
    if layer.parameters:
        found.append(f"{short_count(layer.parameters)} parameters")
    return found


def _escaped(text: str) -> str:
    for character, entity in (("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text


def _nested(
    graph: LayerGraph,
    node: Callable[[GraphLayer], str],
    begin: Callable[[str], str],
    end: str,
) -> list[str]:
    """Write the layers inside their containers."""
    members: dict[tuple[str, ...], list[GraphLayer]] = {}
    for layer in graph.layers:
        members.setdefault(layer.path, []).append(layer)

    def inside(path: tuple[str, ...]) -> list[str]:
        indent = "  " * (len(path) + 1)
        lines = [indent + node(layer) for layer in members.get(path, ())]
        deeper = (p[: len(path) + 1] for p in members if len(p) > len(path))
        for child in dict.fromkeys(p for p in deeper if p[: len(path)] == path):
            lines += [indent + begin(child[-1]), *inside(child), indent + end]
        return lines

    return inside(())

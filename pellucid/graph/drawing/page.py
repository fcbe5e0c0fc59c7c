"""A graph as one HTML page that needs nothing else: pan, zoom, search, details, groups."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

from pellucid.graph.drawing.boxes import Card, cards
from pellucid.graph.drawing.colours import FAMILIES, family_of, scaled
from pellucid.graph.drawing.groups import Group, Plan
from pellucid.graph.drawing.layout import Node
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.scene import Scene
from pellucid.graph.drawing.svg import to_svg
from pellucid.graph.layer_table import short_count, shown_shape
from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["graph_page", "scene_page"]

_BOX, _LANE = "box", "lane"


def graph_page(
    graph: LayerGraph, plan: Plan, closed: frozenset[str], paint: Paint | None = None
) -> str:
    """Write a page on which groups can be opened and closed.

    Parameters
    ----------
    closed : groups that are closed when the page opens.
    """
    data = {
        "cards": {name: _card(card) for name, card in cards(plan, paint).items()},
        "groups": {name: _group(group) for name, group in plan.groups.items()},
        "parents": dict(plan.parents),
        "owner": dict(plan.owner),
        "closed": sorted(closed),
        "legend": _legend(plan, paint),
    }
    summaries = [group.summary for group in plan.groups.values() if group.summary]
    return _page(graph, data, summaries)


def scene_page(graph: LayerGraph, scene: Scene) -> str:
    """Write a page with a picture that stays as it is."""
    return _page(graph, {"svg": to_svg(scene)})


def _page(
    graph: LayerGraph, data: dict[str, Any], summaries: list[GraphLayer] | None = None
) -> str:
    data["details"] = {x.name: _details(x) for x in (*(summaries or []), *graph.layers)}
    total = (
        f"{graph.name}: {sum(not x.is_port for x in graph)} layers, "
        f"{short_count(graph.parameters)} parameters, "
        f"{short_count(graph.multiply_adds)} multiply-adds"
    )
    return (
        files("pellucid.data")
        .joinpath("graph_page.html")
        .read_text("utf-8")
        .replace("{{title}}", html.escape(graph.name or "network"))
        .replace("{{total}}", html.escape(total))
        .replace("{{data}}", json.dumps(data).replace("<", "\\u003c"))
    )


def _card(card: Card) -> dict[str, Any]:
    return {
        "size": card.size,
        "times": card.times,
        "group": card.group,
        "strips": [
            {
                "key": strip.key, "name": strip.name, "kind": strip.kind, "facts": strip.facts,
                "fill": strip.fill, "ink": strip.ink, "hover": strip.hover, "height": strip.height,
            }
            for strip in card.strips
        ],
    }  # fmt: skip


def _group(group: Group) -> dict[str, Any]:
    """Return a group's arrangement, with nodes as numbers."""
    rows, chains = group.arrangement.rows, group.arrangement.chains
    number = {node: i for i, node in enumerate(node for row in rows for node in row)}
    label = ""
    if group.depth and group.summary:
        label = f"{group.summary.name}  {group.summary.framework_class}".strip()
    return {
        "label": label,
        "times": group.times,
        "children": group.children,
        "nodes": [_node(node) for node in number],
        "rows": [[number[node] for node in row] for row in rows],
        "chains": [[edge.carries, [number[n] for n in chain]] for edge, chain in chains.items()],
    }


def _node(node: Node) -> tuple[str, str]:
    return (_BOX, node) if isinstance(node, str) else (node[0], node[1])


def _legend(plan: Plan, paint: Paint | None) -> dict[str, Any]:
    if paint is None:
        used = dict.fromkeys(
            family_of(layer.kind) for box in plan.boxes.values() for layer in box.layers
        )
        return {"families": {name: FAMILIES[name] for name in used if name != "port"}}
    return {
        "caption": paint.caption,
        "colours": [scaled(step / 10) for step in range(11)],
        "ticks": [paint.shown(paint.at(fraction)) for fraction in (0.0, 0.5, 1.0)],
    }


def _details(layer: GraphLayer) -> dict[str, str]:
    found = {
        "kind": f"{layer.kind} + {layer.fused}" if layer.fused else layer.kind,
        "class": layer.framework_class,
        "output": shown_shape(layer.shape),
        "inputs": "; ".join(shown_shape(shape) for shape in layer.input_shapes),
        "element type": layer.dtype,
        "parameters": f"{layer.parameters:,}",
        "multiply-adds": "?" if layer.multiply_adds is None else f"{layer.multiply_adds:,}",
        "bytes": f"{layer.activation_bytes:,}",
        "inside": " / ".join(layer.path),
        "reads from": ", ".join(layer.inputs),
        "read by": ", ".join(layer.outputs),
        "ONNX tensor": layer.tensor,
        "ONNX nodes": ", ".join(layer.nodes[:12]) + (" …" if len(layer.nodes) > 12 else ""),
    }
    return {key: value for key, value in found.items() if value}

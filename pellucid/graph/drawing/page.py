"""A graph as one HTML page that needs nothing else: pan, zoom, search, detail, levels."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from xml.sax.saxutils import quoteattr

from pellucid.graph.drawing.scene import Scene
from pellucid.graph.drawing.svg import to_svg
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.table import short_count, shown_shape

__all__ = ["to_html"]


def to_html(graph: LayerGraph, scenes: Mapping[str, Scene]) -> str:
    """Write a page.

    Parameters
    ----------
    scenes : pictures of the graph at different levels of detail, by what to call the level.
    """
    pictures = "\n".join(
        f'<div class="level" data-level={quoteattr(level)}{" hidden" if i else ""}>'
        f"{_own_marker(to_svg(scene), i)}</div>"
        for i, (level, scene) in enumerate(scenes.items())
    )
    options = "".join(f"<option>{html.escape(level)}</option>" for level in scenes)
    details = json.dumps({layer.name: _details(layer) for layer in graph.layers})
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
        .replace("{{options}}", options)
        .replace("{{details}}", details.replace("<", "\\u003c"))
        .replace("{{pictures}}", pictures)
    )


def _own_marker(svg: str, index: int) -> str:
    """Give a picture an arrow head of its own; one in a hidden picture is not drawn."""
    return svg.replace('id="tip"', f'id="tip{index}"').replace("#tip)", f"#tip{index})")


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

"""Drawing a layer graph into a file: which style, which format, how much of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import InputError
from pellucid.graph.drawing.boxes import boxes
from pellucid.graph.drawing.repeats import without_repeats
from pellucid.graph.drawing.scene import Scene
from pellucid.graph.layers import LayerGraph
from pellucid.graph.simplifying import ARRANGING, collapsed, computing_only

__all__ = ["FORMATS", "STYLES", "draw", "scene_of"]

STYLES = ("graph", "volumes", "table")
FORMATS = (".svg", ".png", ".pdf", ".html", ".dot", ".mmd")
_PAINTS = ("parameters", "multiply_adds", "activation_bytes")


def draw(
    graph: LayerGraph,
    path: str | Path,
    style: str = "graph",
    *,
    paint: str | Mapping[str, float] | None = None,
    depth: int | None = None,
    repeats: bool = True,
    arranging: bool = False,
    dpi: float = 144,
) -> Path:
    """Draw a graph.

    Parameters
    ----------
    path : the file to write; its suffix says the format: .svg, .png, .pdf, .html (a page that
        needs nothing else), .dot (Graphviz) or .mmd (Mermaid).
    style : "graph" (boxes and lines), "volumes" (feature maps as blocks, sized by resolution and
        channels) or "table".
    paint : colour layers by a number instead of by kind: "parameters", "multiply_adds",
        "activation_bytes", or `{layer name: number}`.
    depth : show containers at this depth of nesting as one box each; None shows every layer.
    repeats : show blocks that follow one another and are the same only once, with their number.
    arranging : show also layers that only arrange data, such as Reshape and Dropout.
    dpi : resolution of PNG files.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError : style, format or paint are unknown.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"{path}: pictures are written as {', '.join(FORMATS)}; the suffix says which."
        )
    if suffix in (".dot", ".mmd"):
        from pellucid.graph.drawing.text import to_dot, to_mermaid

        shown = _shown(graph, depth, arranging)
        text = to_dot(shown) if suffix == ".dot" else to_mermaid(shown)
        path.write_text(text, encoding="utf-8")
        return path
    options: dict[str, Any] = {"paint": paint, "repeats": repeats, "arranging": arranging}
    if suffix == ".html":
        from pellucid.graph.drawing.page import to_html

        levels = [depth] if depth is not None or style != "graph" else _levels(graph)
        scenes = {
            "all layers" if d is None else f"depth {d}": scene_of(graph, style, depth=d, **options)
            for d in levels
        }
        path.write_text(to_html(graph, scenes), encoding="utf-8")
        return path
    scene = scene_of(graph, style, depth=depth, **options)
    if suffix == ".svg":
        from pellucid.graph.drawing.svg import to_svg

        path.write_text(to_svg(scene), encoding="utf-8")
    else:
        from pellucid.graph.drawing.raster import save_figure

        save_figure(scene, path, dpi)
    return path


def scene_of(
    graph: LayerGraph,
    style: str = "graph",
    *,
    paint: str | Mapping[str, float] | None = None,
    depth: int | None = None,
    repeats: bool = True,
    arranging: bool = False,
) -> Scene:
    """Return the picture as shapes; the parameters are those of `draw`."""
    if style not in STYLES:
        raise InputError(f"style={style!r} is no style of drawing: {', '.join(STYLES)}.")
    shown = _shown(graph, depth, arranging)
    numbers, what = _numbers(shown, paint)
    if style == "table":
        from pellucid.graph.drawing.sheet import sheet

        return sheet(shown, numbers, what)
    if style == "volumes":
        from pellucid.graph.drawing.volumes import volumes

        return volumes(shown, numbers, what)
    found, folded = without_repeats(shown) if repeats else (shown, [])
    return boxes(found, folded, numbers, what)


def _levels(graph: LayerGraph) -> list[int | None]:
    deepest = max((len(layer.path) for layer in graph.layers), default=0)
    return [None, *range(deepest, 0, -1)]


def _shown(graph: LayerGraph, depth: int | None, arranging: bool) -> LayerGraph:
    if depth is not None:
        level = max(depth, 1)
        names = {layer.path[level - 1] for layer in graph.layers if len(layer.path) >= level}
        graph = collapsed(graph, names)
    return graph if arranging else computing_only(graph, ARRANGING)


def _numbers(
    graph: LayerGraph, paint: str | Mapping[str, float] | None
) -> tuple[dict[str, float] | None, str]:
    if paint is None:
        return None, ""
    if isinstance(paint, str):
        if paint not in _PAINTS:
            raise InputError(
                f"paint={paint!r} is nothing to paint by: {', '.join(_PAINTS)}, or a number for "
                "each layer name."
            )
        found = {layer.name: float(getattr(layer, paint) or 0) for layer in graph.layers}
        return found, paint.replace("_", " ")
    for name, value in paint.items():
        if not math.isfinite(value):
            raise InputError(f"paint gives layer {name!r} the number {value}.")
    return {name: float(value) for name, value in paint.items()}, ""

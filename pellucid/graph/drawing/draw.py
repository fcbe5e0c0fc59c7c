"""Drawing a layer graph into a file: which style, which format, how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pellucid.errors import InputError
from pellucid.graph.drawing.boxes import boxes
from pellucid.graph.drawing.groups import Plan, planned
from pellucid.graph.drawing.paint import Paint, paint_of
from pellucid.graph.drawing.repeats import without_repeats
from pellucid.graph.drawing.scene import Scene
from pellucid.graph.layers import LayerGraph
from pellucid.graph.simplifying import ARRANGING, collapsed, computing_only

__all__ = ["FORMATS", "STYLES", "draw", "scene_of"]

STYLES = ("graph", "volumes", "table")
FORMATS = (".svg", ".png", ".pdf", ".html", ".dot", ".mmd")
_MANY = 90  # boxes; beyond it, groups are closed


def draw(
    graph: LayerGraph,
    path: str | Path,
    style: str = "graph",
    *,
    paint: str | Mapping[str, float] | Paint | None = None,
    depth: int | None = None,
    repeats: bool = True,
    arranging: bool = False,
    closing: bool = True,
    dpi: float = 144,
) -> Path:
    """Draw a graph.

    Parameters
    ----------
    path : the file to write; its suffix says the format: .svg, .png, .pdf, .html (a page that
        needs nothing else), .dot (Graphviz) or .mmd (Mermaid).
    style : "graph" (boxes and lines), "volumes" (feature maps as blocks, sized by resolution and
        channels) or "table". DOT and Mermaid are always graphs.
    paint : colour layers by a number instead of by kind: "parameters", "multiply_adds",
        "activation_bytes", `{layer name: number}`, or what `pellucid.measure` gives.
    depth : show containers at this depth of nesting as one box each. None shows every layer, or,
        of a network that is too large for one page, as many as fit.
    repeats : show blocks that follow one another and are the same only once, with their number;
        where numbers are painted, these are to be the same too.
    arranging : show also layers that only arrange data, such as Reshape and Dropout.
    closing : close containers where the network is too large for one page.
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
    _check(style)
    if suffix in (".dot", ".mmd", ".html") and (style == "graph" or suffix != ".html"):
        shown, plan, closed, colours = _planned(graph, paint, depth, repeats, arranging, closing)
        if suffix == ".html":
            from pellucid.graph.drawing.page import graph_page

            text = graph_page(graph, plan, closed, colours)
        else:
            from pellucid.graph.drawing.text import to_dot, to_mermaid

            write = to_dot if suffix == ".dot" else to_mermaid
            text = write(shown, plan, closed, colours)
        path.write_text(text, encoding="utf-8")
        return path
    scene = scene_of(
        graph, style, paint=paint, depth=depth, repeats=repeats, arranging=arranging,
        closing=closing,
    )  # fmt: skip
    if suffix == ".html":
        from pellucid.graph.drawing.page import scene_page

        path.write_text(scene_page(graph, scene), encoding="utf-8")
    elif suffix == ".svg":
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
    paint: str | Mapping[str, float] | Paint | None = None,
    depth: int | None = None,
    repeats: bool = True,
    arranging: bool = False,
    closing: bool = True,
) -> Scene:
    """Return the picture as shapes; the parameters are those of `draw`."""
    _check(style)
    if style == "graph":
        _, plan, closed, colours = _planned(graph, paint, depth, repeats, arranging, closing)
        return boxes(graph, plan, closed, colours)
    colours = paint_of(graph, paint)
    if depth is not None:
        level = max(depth, 1)
        names = {layer.path[level - 1] for layer in graph.layers if len(layer.path) >= level}
        graph = collapsed(graph, names)
    shown = graph if arranging else computing_only(graph, ARRANGING)
    if style == "table":
        from pellucid.graph.drawing.sheet import sheet

        return sheet(shown, colours)
    from pellucid.graph.drawing.volumes import volumes

    return volumes(shown, colours)


def _check(style: str) -> None:
    if style not in STYLES:
        raise InputError(f"style={style!r} is no style of drawing: {', '.join(STYLES)}.")


def _planned(
    graph: LayerGraph,
    paint: str | Mapping[str, float] | Paint | None,
    depth: int | None,
    repeats: bool,
    arranging: bool,
    closing: bool,
) -> tuple[LayerGraph, Plan, frozenset[str], Paint | None]:
    colours = paint_of(graph, paint)
    whole = graph if arranging else computing_only(graph, ARRANGING)
    shown, folded = (
        without_repeats(whole, colours.values if colours else {}) if repeats else (whole, [])
    )
    plan = planned(shown, folded, whole)
    closed: frozenset[str] = frozenset()
    if depth is not None or closing:
        closed = plan.fitting(_MANY, depth)
    if colours:  # a closed group may have more than any layer
        found = (plan.groups[name].layers for name in closed & set(plan.visible(closed)))
        sums = [value for layers in found if (value := colours.of(layers)) is not None]
        colours = colours.over([*colours.values.values(), *sums])
    return shown, plan, closed, colours

"""Pictures: nothing overlaps, everything is named, every format is well formed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as Tree
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from pellucid.errors import InputError
from pellucid.graph.drawing import FORMATS, STYLES, scene_of
from pellucid.graph.drawing.layout import Edge, arranged, placed
from pellucid.graph.drawing.repeats import without_repeats
from pellucid.graph.drawing.scene import Label, Rectangle
from pellucid.graph.layers import Container, GraphLayer, LayerGraph

SVG = "{http://www.w3.org/2000/svg}"


def built(edges: list[tuple[str, str]], **kinds: str) -> LayerGraph:
    """A graph from its edges, given in an order in which they can be computed."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    names.sort(key=lambda name: max([0, *(i for i, e in enumerate(edges, 1) if e[1] == name)]))
    layers = [
        GraphLayer(
            name,
            kinds.get(name.rstrip("0123456789"), "Conv2D"),
            shape=(None, 8, 16, 16),
            layout="spatial",
            path=(f"block{name[-1]}",) if name[-1].isdigit() else (),
            inputs=tuple(a for a, b in edges if b == name),
            outputs=tuple(b for a, b in edges if a == name),
        )
        for name in names
    ]
    containers = tuple(Container(n) for n in dict.fromkeys(p for x in layers for p in x.path))
    return LayerGraph(tuple(layers), containers, "built")


def residual(blocks: int) -> LayerGraph:
    edges, last = [], "start"
    for i in range(blocks):
        edges += [(last, f"conv{i}"), (f"conv{i}", f"deep{i}"), (f"deep{i}", f"add{i}")]
        edges += [(last, f"add{i}")]
        last = f"add{i}"
    return built([*edges, (last, "end")], add="Add", start="Input", end="Output")


def dense(count: int) -> LayerGraph:
    edges = [(f"conv{i}", f"conv{j}") for j in range(count) for i in range(j)]
    return built(edges)


def laid_out(graph: LayerGraph) -> tuple:
    sizes = {layer.name: (90.0 + 7 * (i % 5), 40.0) for i, layer in enumerate(graph.layers)}
    edges = [Edge(source, target, source) for source, target in graph.edges]
    return sizes, placed(arranged(list(sizes), edges), sizes)


@pytest.mark.parametrize("graph", [residual(4), dense(7)], ids=["residual", "dense"])
def test_boxes_do_not_overlap_and_edges_run_downwards(graph: LayerGraph) -> None:
    sizes, layout = laid_out(graph)
    for one, other in combinations(sizes, 2):
        (x, y), (u, v) = layout.centres[one], layout.centres[other]
        apart = abs(x - u) >= (sizes[one][0] + sizes[other][0]) / 2
        assert apart or abs(y - v) >= (sizes[one][1] + sizes[other][1]) / 2
    for source, target in graph.edges:
        assert layout.centres[source][1] < layout.centres[target][1]


@pytest.mark.parametrize("graph", [residual(4), dense(7)], ids=["residual", "dense"])
def test_no_edge_passes_through_a_box(graph: LayerGraph) -> None:
    sizes, layout = laid_out(graph)
    for ends, route in layout.routes.items():
        for x, y in route[1:-1]:
            for name, (u, v) in layout.centres.items():
                inside = abs(x - u) < sizes[name][0] / 2 and abs(y - v) < sizes[name][1] / 2
                assert not inside, (ends, name)


def test_the_trunk_of_a_residual_network_is_straight() -> None:
    _, layout = laid_out(residual(5))
    trunk = [layout.centres[name][0] for name in ("start", "add0", "add2", "add4", "end")]
    assert max(trunk) - min(trunk) < 1


def test_blocks_that_are_the_same_are_shown_once() -> None:
    small, repeats = without_repeats(residual(6))
    assert [layer.name for layer in small] == ["start", "conv0", "deep0", "add0", "end"]
    assert [(repeat.times, repeat.layers) for repeat in repeats] == [
        (6, ("conv0", "deep0", "add0"))
    ]
    assert small["end"].inputs == ("add0",)
    assert small["add0"].outputs == ("end",)


def test_blocks_that_differ_are_all_shown() -> None:
    graph = residual(2)
    different = [
        layer if layer.name != "deep1" else GraphLayer(**{
            **{name: getattr(layer, name) for name in GraphLayer.__slots__}, "kind": "Dense",
        })
        for layer in graph.layers
    ]  # fmt: skip
    assert without_repeats(LayerGraph(tuple(different)))[1] == []


def test_every_layer_is_named_in_a_picture_without_folding() -> None:
    graph = residual(3)
    for style in STYLES:
        scene = scene_of(graph, style, repeats=False)
        texts = {shape.text for shape in scene.shapes if isinstance(shape, Label)}
        names = {x.name for x in graph if style != "volumes" or x.kind != "Output"}
        assert names <= texts, style


def test_painting_colours_by_number() -> None:
    graph = residual(1)
    scene = scene_of(graph, paint={"conv0": 1.0, "deep0": 4.0})
    fills = {s.key: s.fill for s in scene.shapes if isinstance(s, Rectangle) and s.key}
    assert fills["add0"] == "#ffffff"
    assert fills["deep0"] == "#7a194a"
    assert fills["conv0"] not in (fills["deep0"], fills["add0"])


@pytest.mark.parametrize("style", STYLES)
def test_svg_is_well_formed_and_holds_every_layer(tmp_path: Path, style: str) -> None:
    graph = residual(2)
    root = Tree.parse(graph.draw(tmp_path / "a.svg", style, repeats=False)).getroot()
    assert root.tag == f"{SVG}svg"
    keys = {element.get("data-layer") for element in root.iter()} - {None}
    assert {"conv0", "deep1", "add1"} <= keys


@pytest.mark.parametrize("style", STYLES)
def test_png_and_pdf_are_written(tmp_path: Path, style: str) -> None:
    graph = residual(2)
    with Image.open(graph.draw(tmp_path / "a.png", style, dpi=72)) as image:
        scene = scene_of(graph, style)
        assert abs(image.width - scene.width) <= 1
        assert len(set(image.convert("RGB").resize((60, 60)).getdata())) > 10
    assert graph.draw(tmp_path / "a.pdf", style).read_bytes().startswith(b"%PDF")


def test_dot_and_mermaid_name_layers_and_connections(tmp_path: Path) -> None:
    graph = residual(2)
    dot = graph.draw(tmp_path / "a.dot").read_text()
    assert dot.count(" -> ") == len(graph.edges)
    assert '"conv0" -> "deep0";' in dot
    assert dot.count("{") == dot.count("}")
    mermaid = graph.draw(tmp_path / "a.mmd").read_text()
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count(" --> ") == len(graph.edges)
    assert mermaid.count("subgraph ") == mermaid.count("\n  end") + mermaid.count("\n    end")


def test_the_page_needs_nothing_else_and_holds_all_details(tmp_path: Path) -> None:
    graph = residual(2)
    page = graph.draw(tmp_path / "a.html").read_text()
    outside = re.findall(
        r"(?:src|href)=[\"'](?!data:|#)[^\"']*|url\((?!#)|https?://[^\"' <]*", page
    )
    assert set(outside) == {"http://www.w3.org/2000/svg"}
    details = json.loads(re.search(r"const details = (\{.*\});\n", page)[1])
    assert set(details) == {layer.name for layer in graph}
    assert page.count('class="level"') == 2


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    wicked = "</script><img src=x onerror=alert(1)>\"'&"
    graph = LayerGraph((GraphLayer(wicked, wicked, wicked, (None, 3)),), name=wicked)
    page = graph.draw(tmp_path / "a.html").read_text()
    assert "<img" not in page
    assert page.count("</script>") == 1
    Tree.parse(graph.draw(tmp_path / "a.svg"))
    for suffix in (".png", ".dot", ".mmd"):
        graph.draw(tmp_path / f"a{suffix}")


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    graph = residual(1)
    with pytest.raises(InputError, match=re.escape(", ".join(FORMATS))):
        graph.draw(tmp_path / "a.gif")
    with pytest.raises(InputError, match="no style"):
        graph.draw(tmp_path / "a.svg", "cubist")
    with pytest.raises(InputError, match="nothing to paint"):
        graph.draw(tmp_path / "a.svg", paint="beauty")
    with pytest.raises(InputError, match="nan"):
        graph.draw(tmp_path / "a.svg", paint={"conv0": float("nan")})

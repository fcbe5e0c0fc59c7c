"""Pictures: nothing overlaps, everything is named, every format is well formed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as Tree
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from pellucid.errors import InputError
from pellucid.graph.drawing import FORMATS, STYLES, scene_of
from pellucid.graph.drawing.boxes import cards
from pellucid.graph.drawing.groups import planned
from pellucid.graph.drawing.layout import Edge, arranged, placed
from pellucid.graph.drawing.nested import pictured
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.repeats import without_repeats
from pellucid.graph.drawing.scene import Label, Rectangle
from pellucid.graph.layer_table import TIMES
from pellucid.graph.layers import Container, GraphLayer, LayerGraph
from tests.graph.graphs import built, dense, residual

SVG = "{http://www.w3.org/2000/svg}"


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
                if name not in sizes:
                    continue
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
def test_a_painted_picture_says_what_its_colours_are(style: str) -> None:
    paint = Paint({"conv0": 0.002, "deep0": 40.0, "add0": 0.004}, "measured time", "milliseconds")
    scene = scene_of(residual(1), style, paint=paint)
    texts = {shape.text for shape in scene.shapes if isinstance(shape, Label)}
    assert {"measured time, logarithmic scale", "0.004 milliseconds", "40 milliseconds"} <= texts
    fills = {s.fill for s in scene.shapes if isinstance(s, Rectangle)}
    assert len(fills) > 40  # the bar


def test_a_scale_is_linear_where_most_numbers_can_be_told_apart_on_it() -> None:
    paint = Paint({}).over([0.0, 10.0, 20.0, 40.0])
    assert not paint.logarithmic
    assert [paint.fraction(value) for value in (0.0, 10.0, 20.0, 40.0)] == [0, 0.25, 0.5, 1]
    assert paint.at(0.25) == 10.0


def test_a_scale_is_logarithmic_where_one_number_dwarfs_the_others() -> None:
    paint = Paint({}).over([0.0, 1.0, 10.0, 10.0, 1e4])
    assert paint.logarithmic
    assert [paint.fraction(value) for value in (0.0, 1.0, 10.0, 1e4)] == [0, 0, 0.25, 1]
    assert paint.at(0.5) == pytest.approx(100.0)


def test_numbers_below_zero_have_a_scale_too() -> None:
    paint = Paint({}).over([-2.0, 0.0, 2.0])
    assert [paint.fraction(value) for value in (-2.0, 0.0, 2.0)] == [0, 0.5, 1]


def test_blocks_are_folded_only_if_their_numbers_are_the_same() -> None:
    graph = residual(3)
    same = {layer.name: 1.0 for layer in graph}
    assert without_repeats(graph, same)[1][0].times == 3
    assert without_repeats(graph, {**same, "deep1": 2.0})[1] == []


def test_containers_are_closed_in_every_style() -> None:
    for style in STYLES:
        scene = scene_of(residual(2), style, depth=1, repeats=False)
        texts = {shape.text for shape in scene.shapes if isinstance(shape, Label)}
        assert "block1" in texts, style
        assert "conv1" not in texts, style


def test_a_closed_group_shows_the_sum_of_its_layers_numbers() -> None:
    graph = residual(2)
    paint = Paint({"conv0": 1.0, "deep0": 2.0, "conv1": 4.0}, "seconds", combine="sum")
    scene = scene_of(graph, paint=paint, depth=1)
    texts = [shape.text for shape in scene.shapes if isinstance(shape, Label)]
    assert "block0" in texts
    assert {"3", "4"} <= set(texts)
    assert "conv0" not in texts


# ---- groups ----------------------------------------------------------------------------------


def test_what_is_in_a_group_is_drawn_in_its_frame_and_nothing_else() -> None:
    graph = residual(4)
    plan = planned(graph)
    sizes = {name: card.size for name, card in cards(plan).items()}
    picture = pictured(plan, sizes, frozenset())
    assert set(picture.frames) == {"block0", "block1", "block2", "block3"}
    for group, frame in picture.frames.items():
        for name, (x, y) in picture.centres.items():
            inside = group in list(plan.around(name))
            covered = frame.x < x < frame.x + frame.width and frame.y < y < frame.y + frame.height
            assert covered == inside, (group, name)


def test_pieces_of_an_edge_meet_at_the_borders_of_groups() -> None:
    plan = planned(residual(3))
    sizes = {name: card.size for name, card in cards(plan).items()}
    picture = pictured(plan, sizes, frozenset({"block1"}))
    assert "block1" in picture.centres
    ends = {(round(p.points[-1][0], 6), round(p.points[-1][1], 6)) for p in picture.pieces}
    boxes = {name: (x, y) for name, (x, y) in picture.centres.items()}
    for piece in picture.pieces:
        x, y = piece.points[0]
        leaves = any(
            abs(x - u) < 1e-6 and abs(y - (v + sizes[name][1] / 2)) < 1e-6
            for name, (u, v) in boxes.items()
        )
        assert leaves or (round(x, 6), round(y, 6)) in ends


def test_a_repeated_block_is_called_by_the_innermost_container() -> None:
    graph = residual(3)
    nested = [replace(x, path=("stage", *x.path)) if x.path else x for x in graph.layers]
    whole = replace(graph, layers=tuple(nested), containers=(Container("stage"), *graph.containers))
    plan = planned(*without_repeats(whole), whole)
    assert set(plan.groups) == {"", "block0"}
    assert plan.groups["block0"].times == 3
    assert plan.groups["block0"].layers == ("conv0", "deep0", "add0")


def test_groups_of_a_large_network_are_closed_until_it_fits() -> None:
    plan = planned(residual(9))
    assert plan.fitting(most=100) == frozenset()
    closed = plan.fitting(most=20)
    assert closed == {f"block{i}" for i in range(9)}
    assert len(list(plan.visible(closed))) == 11


def test_a_group_that_its_own_output_comes_back_to_is_no_group() -> None:
    edges = [("a1", "b2"), ("b2", "c1")]  # block1 holds a1 and c1, between which lies b2
    plan = planned(built([*edges, ("a1", "d1"), ("d1", "c1")]))
    assert set(plan.groups) == {""}


def test_repeats_and_closed_groups_are_in_the_text_formats_too(tmp_path: Path) -> None:
    graph = residual(6)
    for suffix in (".dot", ".mmd"):
        text = graph.draw(tmp_path / f"a{suffix}").read_text()
        assert f"{TIMES} 6" in text
        assert "conv3" not in text
        text = graph.draw(tmp_path / f"b{suffix}", depth=1, repeats=False).read_text()
        assert "3 layers" in text
        assert "conv3" not in text
        assert "block3" in text
        painted = graph.draw(tmp_path / f"c{suffix}", paint={"conv0": 1.0}).read_text()
        assert "#7a194a" in painted


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
    dot = graph.draw(tmp_path / "a.dot", repeats=False).read_text()
    assert dot.count(" -> ") == len(graph.edges)
    assert '"conv0" -> "deep0";' in dot
    assert dot.count("{") == dot.count("}")
    mermaid = graph.draw(tmp_path / "a.mmd", repeats=False).read_text()
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
    data = json.loads(re.search(r"const data = (\{.*\});\n", page)[1])
    assert set(data["details"]) >= {layer.name for layer in graph}


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

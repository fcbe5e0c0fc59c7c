"""The HTML page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pellucid.graph.drawing.boxes import cards
from pellucid.graph.drawing.groups import Plan, planned
from pellucid.graph.drawing.nested import pictured
from pellucid.graph.drawing.paint import Paint
from pellucid.graph.drawing.repeats import without_repeats
from pellucid.graph.layers import LayerGraph
from tests.browser import Page, find_chromium
from tests.graph.graphs import built, dense, residual

pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium: `make test` fetches one where there is npm; or apt install chromium",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser; whatever a test does, the page is to be quiet and ask for nothing."""
    browser.messages.clear()
    yield browser
    assert browser.messages == []
    assert len(browser.requests) == 1
    assert browser.requests[0].startswith("file:")


def opened(page: Page, graph: LayerGraph, folder: Path, **options) -> Page:
    page.open(graph.draw(folder / "page.html", **options).as_uri())
    return page


def shown(page: Page) -> set[str]:
    """Names of the boxes and closed groups that are to be seen."""
    return set(page.run("Object.keys(picture.centres)"))


def middle(page: Page, selector: str) -> tuple[float, float]:
    box = page.run(
        f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])"
        f"([...document.querySelectorAll({selector!r})].at(-1).getBoundingClientRect())"
    )
    return box[0], box[1]


def click(page: Page, selector: str) -> None:
    page.click(*middle(page, selector))


def text(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).textContent")


def nested() -> LayerGraph:
    """A U-shaped network whose halves are groups that several edges lead into."""
    down = [("start", "a1"), ("a1", "b1"), ("b1", "c1")]
    up = [("c1", "d2"), ("b1", "d2"), ("d2", "e2"), ("a1", "e2"), ("e2", "end")]
    return built([*down, *up], start="Input", end="Output")


def plan_of(graph: LayerGraph) -> Plan:
    return planned(*without_repeats(graph), graph)


@pytest.mark.parametrize(
    "graph", [residual(3), nested(), dense(6)], ids=["repeated", "nested", "dense"]
)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_the_page_computes_the_coordinates_that_pictures_have(
    page: Page, tmp_path: Path, graph: LayerGraph, closed: bool
) -> None:
    opened(page, graph, tmp_path)
    click(page, "#shut" if closed else "#open")
    plan = plan_of(graph)
    groups = frozenset(plan.groups) - {""} if closed else frozenset()
    ours = pictured(plan, {name: card.size for name, card in cards(plan).items()}, groups)
    theirs = page.run("picture.centres")
    assert set(theirs) == set(ours.centres)
    for name, centre in ours.centres.items():
        np.testing.assert_allclose(theirs[name], np.add(centre, (30, 20)), atol=1e-6)
    routes = page.run("picture.pieces.map(p => [p.from, p.to, p.ends, p.points])")
    assert len(routes) == len(ours.pieces)
    for theirs_piece, piece in zip(routes, ours.pieces, strict=True):
        assert theirs_piece[:3] == [piece.carries, piece.to, piece.ends]
        points = np.add(piece.points, (30, 20))
        np.testing.assert_allclose(theirs_piece[3], points, atol=1e-6)


def test_groups_close_and_open_one_by_one(page: Page, tmp_path: Path) -> None:
    opened(page, residual(3), tmp_path, repeats=False)
    assert "conv1" in shown(page)
    before = middle(page, '[data-group="block1"]')
    click(page, '[data-group="block1"]')
    assert shown(page) >= {"block1", "conv0", "conv2"}
    assert not shown(page) & {"conv1", "deep1", "add1"}
    assert middle(page, '[data-group="block1"]') == pytest.approx(before, abs=1)
    click(page, '[data-group="block1"]')
    assert "conv1" in shown(page)
    click(page, "#shut")
    assert shown(page) == {"start", "block0", "block1", "block2", "end"}
    click(page, "#open")
    assert shown(page) >= {"conv0", "conv1", "conv2"}


def test_a_click_shows_the_details_of_a_layer(page: Page, tmp_path: Path) -> None:
    opened(page, residual(2), tmp_path, repeats=False)
    assert page.run("document.getElementById('details').hidden")
    click(page, '[data-layer="deep1"]')
    assert text(page, "aside h2") == "deep1"
    assert "conv1" in text(page, "aside dl")
    near = "[...document.querySelectorAll('path.near')].map(e => e.dataset.from)"
    assert set(page.run(near)) == {"conv1", "deep1"}
    page.key("Escape")
    assert page.run("document.getElementById('details').hidden")


def test_search_finds_layers_in_closed_groups_and_in_folded_blocks(
    page: Page, tmp_path: Path
) -> None:
    opened(page, residual(4), tmp_path)  # of which one block is shown
    click(page, "#shut")
    page.key("/")
    page.type("DEEP2")
    assert text(page, "#count") == "1 found"
    assert page.run("document.querySelectorAll('.found').length") == 1
    page.key("Enter")
    assert text(page, "#count") == "1 of 1"
    assert text(page, "aside h2") == "deep2"
    assert "deep0" in shown(page)
    page.run("search.value = ''")
    page.type("nowhere")
    assert text(page, "#count") == "0 found"


def test_the_wheel_zooms_and_dragging_pans(page: Page, tmp_path: Path) -> None:
    opened(page, residual(2), tmp_path)
    x, y, scale = page.run("[x, y, scale]")
    page.drag(300, 400, 70, -30)
    assert page.run("[x, y, scale]") == pytest.approx([x + 70, y - 30, scale])
    page.wheel(300, 400, -200)
    page.run("new Promise(requestAnimationFrame)")
    assert page.run("scale") > scale
    click(page, "#fit")
    assert page.run("[x, y, scale]") == pytest.approx([x, y, scale])


def test_everything_can_be_reached_by_the_keyboard(page: Page, tmp_path: Path) -> None:
    opened(page, residual(2), tmp_path, repeats=False)
    page.run("view.focus()")
    scale, y = page.run("[scale, y]")
    page.key("+")
    page.key("ArrowDown")
    assert page.run("scale") == pytest.approx(1.25 * scale)
    page.key("0")
    assert page.run("[scale, y]") == pytest.approx([scale, y])
    reached = []
    for _ in range(30):
        page.key("Tab")
        name = page.run("document.activeElement.getAttribute('aria-label') || ''")
        reached.append(name)
        if name == "Close block1":
            break
    assert "Close block0" in reached
    page.key("Enter")
    assert "block1" in shown(page)
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Open block1"
    page.key("Enter")
    assert "conv1" in shown(page)


def test_a_painted_page_has_a_legend_and_other_styles_are_still(page: Page, tmp_path: Path) -> None:
    graph = residual(2)
    paint = Paint({"conv0": 1.0, "deep0": 3.0}, "measured time", "milliseconds")
    opened(page, graph, tmp_path, paint=paint)
    assert "measured time" in text(page, "#legend")
    assert "3 milliseconds" in text(page, "#legend")
    for style in ("volumes", "table"):
        opened(page, graph, tmp_path, style=style)
        click(page, '[data-layer="deep1"]')
        assert text(page, "aside h2") == "deep1", style

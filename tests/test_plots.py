import gc
import io
import subprocess
import sys
import warnings
import weakref

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pellucid import plots
from pellucid.errors import ImageError, MethodError, PellucidError, UnsupportedError
from pellucid.explanation import Explanation
from pellucid.plots.panels import reduced

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
HEAT = RNG.random((7, 9), dtype=np.float32)


def explained(heatmap=HEAT, image=PHOTO, **fields):
    given = {"method": "grad-cam", "score": 0.91, "label": "tabby", "target": 281}
    given |= {"space": "probability", "layer": "layer4"}
    return Explanation(attribution=heatmap, heatmap=heatmap, image=image, **given | fields)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def pictures(figure):
    """What the axes show, colour bars apart."""
    return [np.asarray(a.images[0].get_array()) for a in figure.axes if a.images]


# ---- overlay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["heat", "even"])
def test_alpha_zero_is_the_picture(blend):
    np.testing.assert_array_equal(plots.overlay(PHOTO, HEAT, alpha=0, blend=blend), PHOTO)


@pytest.mark.parametrize("blend", ["heat", "even"])
@pytest.mark.parametrize("name", ["inferno", "jet", "tab10"])
def test_alpha_one_is_the_colour_map(name, blend):
    colours = matplotlib.colormaps[name](HEAT, bytes=True)[..., :3]
    painted = plots.overlay(PHOTO, HEAT, colormap=name, alpha=1, blend=blend)
    np.testing.assert_array_equal(painted, colours)
    np.testing.assert_array_equal(plots.overlay(None, HEAT, colormap=name), colours)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("blend", ["heat", "even"])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_blend_follows_its_formula_pixel_by_pixel(signed, blend, alpha):
    painted = plots.overlay(PHOTO, HEAT, alpha=alpha, signed=signed, blend=blend)
    table = matplotlib.colormaps["RdBu_r" if signed else "inferno"]
    for y in range(7):
        for x in range(9):
            level = int(HEAT[y, x] * 256)  # heat is taken in 256 steps
            strength = abs(2 * level / 255 - 1) if signed else level / 255
            weight = alpha ** (3 ** (1 - 2 * strength)) if blend == "heat" else alpha
            colour = np.array(table(level, bytes=True)[:3])
            expected = (1 - weight) * PHOTO[y, x] + weight * colour
            np.testing.assert_allclose(painted[y, x], expected, rtol=0, atol=0.5001)


def test_weights_at_the_default_alpha():
    black = np.zeros((1, 2, 3), np.uint8)
    grey_map = plots.overlay(black, np.float32([[0, 1]]), colormap="gray_r")
    hot = plots.overlay(black, np.float32([[0, 1]]), colormap="gray")
    assert grey_map[0, 0, 0] == round(255 / 8)
    assert hot[0, 1, 0] == round(255 * 0.5 ** (1 / 3))


def test_zero_of_a_signed_map_is_white_and_nearly_transparent():
    zero = np.full((1, 1), 0.5, np.float32)
    assert plots.overlay(None, zero, signed=True).min() > 240
    black = np.zeros((1, 1, 3), np.uint8)
    assert plots.overlay(black, zero, signed=True).max() <= 32


def test_equal_heat_has_equal_colour_whatever_the_maximum_of_the_map():
    weak = np.float32([[0.1, 0.3]])
    strong = np.float32([[1.0, 0.3]])
    image = np.full((1, 2, 3), 120, np.uint8)
    np.testing.assert_array_equal(
        plots.overlay(image, weak)[0, 1], plots.overlay(image, strong)[0, 1]
    )
    drawn = [pictures(explained(h, image).plot())[1] for h in (weak, strong)]
    np.testing.assert_array_equal(drawn[0][0, 1], drawn[1][0, 1])


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1)])
def test_greyscale_pictures_are_three_equal_channels(shape):
    grey = PHOTO[..., :1].reshape(shape)
    three = np.repeat(PHOTO[..., :1], 3, axis=2)
    np.testing.assert_array_equal(plots.overlay(grey, HEAT), plots.overlay(three, HEAT))


def test_overlay_is_the_same_in_blocks_of_rows():
    image = RNG.integers(0, 256, (900, 700, 3), dtype=np.uint8)
    heat = RNG.random((900, 700), dtype=np.float32)
    whole = plots.overlay(image, heat)
    for rows in (slice(0, 5), slice(370, 380), slice(890, 900)):
        np.testing.assert_array_equal(whole[rows], plots.overlay(image[rows], heat[rows]))


def test_overlay_leaves_its_arguments_alone():
    image, heat = PHOTO.copy(), HEAT.copy()
    plots.overlay(image, heat)
    np.testing.assert_array_equal(image, PHOTO)
    np.testing.assert_array_equal(heat, HEAT)


def test_unknown_colour_map_offers_the_nearest():
    with pytest.raises(MethodError, match=r"'infreno'.*'inferno'"):
        plots.overlay(PHOTO, HEAT, colormap="infreno")
    assert {"inferno", "viridis", "jet"} <= set(plots.colormap_names())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(MethodError, match=r"outside \[0, 1\]"):
        plots.overlay(PHOTO, HEAT, alpha=alpha)


def test_unknown_blend_is_refused():
    with pytest.raises(MethodError, match="heat or even"):
        plots.overlay(PHOTO, HEAT, blend="screen")


def test_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ImageError, match=r"\(7, 9\).*\(7, 8\)"):
        plots.overlay(PHOTO, HEAT[:, :8])
    with pytest.raises(ImageError, match="float64"):
        plots.overlay(PHOTO / 255, HEAT)
    with pytest.raises(ImageError, match=r"\(7, 9, 2\)"):
        plots.overlay(PHOTO[..., :2], HEAT)


# ---- figure --------------------------------------------------------------------------------------


def test_figure_shows_picture_and_overlay_with_title():
    figure = plots.figure(explained(notes=("the map is zero",)))
    shown = pictures(figure)
    np.testing.assert_array_equal(shown[0], PHOTO)
    np.testing.assert_array_equal(shown[1], plots.overlay(PHOTO, HEAT))
    assert texts(figure) == ["tabby — 0.91", "grad-cam at layer4", "the map is zero"]
    bare = plots.figure(explained(notes=("the map is zero",)), notes=False)
    assert "the map is zero" not in texts(bare)


@pytest.mark.parametrize(("signed", "ends"), [(False, ["0", "0.5", "1"]), (True, ["−1", "0", "1"])])  # noqa: RUF001
def test_colour_bar_spans_the_whole_scale(signed, ends):
    bar = plots.figure(explained(signed=signed)).axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == ends
    assert bar.get_ylim() == (0, 1)


@pytest.mark.parametrize(
    "shape", [(32, 32), (20, 512), (512, 12), (1, 300), (300, 1), (1, 1), (64, 48)]
)
def test_everything_lies_on_the_sheet_whatever_the_shape(shape):
    heat = np.zeros(shape, np.float32)
    label = "a label with very many words, " * 12
    layer = "features." * 30 + "conv"
    item = explained(heat, np.zeros((*shape, 3), np.uint8), label=label, layer=layer)
    for figure in (plots.figure(item), plots.grid([item, explained()])):
        figure.canvas.draw()
        sheet, renderer = figure.bbox, figure.canvas.get_renderer()
        for artist in (*figure.texts, *figure.axes):
            box = artist.get_tightbbox(renderer)
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= sheet.x1 + 1
            assert box.y1 <= sheet.y1 + 1
        assert any(text.endswith("… — 0.91") for text in texts(figure))


def test_texts_do_not_overlap():
    figure = plots.figure(explained(label="word " * 60, notes=("note " * 80,)))
    figure.canvas.draw()
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in figure.texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_wide_pictures_are_stacked():
    for shape, side_by_side in (((30, 40), True), ((20, 90), False)):
        item = explained(np.zeros(shape, np.float32), np.zeros((*shape, 3), np.uint8))
        first, second = (axes.get_position() for axes in plots.figure(item).axes[:2])
        assert bool(first.x0 < second.x0) is side_by_side
        assert bool(first.y0 > second.y0) is not side_by_side


def test_labels_are_not_read_as_formulas():
    figure = plots.figure(explained(label=r"$\frac{$ and _x^2$"))
    figure.canvas.draw()
    assert texts(figure)[0] == r"$\frac{$ and _x^2$ — 0.91"


def test_large_pictures_are_reduced_before_drawing():
    heat = np.zeros((2500, 3700), np.float32)
    shown = pictures(plots.figure(explained(heat, np.full((2500, 3700, 3), 7, np.uint8))))
    assert shown[0].shape == shown[1].shape == (834, 1234, 3)
    assert (shown[0] == 7).all()


def test_reduction_averages_blocks():
    array = RNG.random((12, 8), dtype=np.float32)
    small = reduced(array, 4)
    slow = [[array[y : y + 3, x : x + 3].mean() for x in (0, 3, 6)] for y in (0, 3, 6, 9)]
    np.testing.assert_allclose(small, slow, rtol=1e-6)


def test_explanation_without_picture_shows_the_map_alone():
    shown = pictures(plots.figure(explained(image=None)))
    assert len(shown) == 1
    np.testing.assert_array_equal(shown[0], plots.overlay(None, HEAT))


def test_curve_is_filled_up_to_the_heat():
    heat = np.float32([0, 0.5, 1, 0.25])
    axes = plots.figure(explained(heat, None)).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), heat)
    np.testing.assert_array_equal(axes.images[0].get_array(), plots.overlay(None, heat)[None])
    assert axes.images[0].get_clip_path() is not None


def test_signal_line_wears_the_colours_of_the_heat():
    heat = np.float32([0, 0, 1, 1])
    axes = plots.figure(explained(heat, None), signal=np.float32([3, 1, 4, 1])).axes[0]
    segments = axes.collections[0]
    np.testing.assert_array_equal(segments.get_segments()[1], [[1, 1], [2, 4]])
    expected = plots.overlay(None, np.float32([0, 0.5, 1])) / 255
    np.testing.assert_allclose(segments.get_colors()[:, :3], expected)


def test_volume_is_drawn_as_slices():
    heat = RNG.random((5, 6, 6), dtype=np.float32)
    figure = plots.figure(explained(heat, None))
    assert [t.get_text() for t in figure.axes[0].texts] == [f"slice {z}" for z in range(5)]
    sheet = pictures(figure)[0]
    np.testing.assert_array_equal(sheet[:6, 7:13], plots.overlay(None, heat[1]))
    deep = plots.figure(explained(np.zeros((40, 3, 3), np.float32), None)).axes[0].texts
    assert len(deep) == 12
    assert (deep[0].get_text(), deep[-1].get_text()) == ("slice 0", "slice 39")


def test_volume_lies_over_its_signal():
    heat = np.zeros((1, 2, 2), np.float32)
    signal = np.float32([[[0, 1], [2, 4]]])
    sheet = pictures(plots.figure(explained(heat, None), signal=signal, alpha=0))[0]
    np.testing.assert_array_equal(sheet[..., 0], [[0, 64], [128, 255]])


def test_signal_of_another_shape_is_refused():
    with pytest.raises(ImageError, match=r"\(3,\).*\(4,\)"):
        plots.figure(explained(np.zeros(4, np.float32), None), signal=np.zeros(3, np.float32))


# ---- grid ----------------------------------------------------------------------------------------


def test_grid_places_pairs_row_by_row():
    items = [explained(label=name) for name in "abcde"]
    figure = plots.grid(items, columns=2)
    shown = pictures(figure)
    assert len(shown) == 10
    np.testing.assert_array_equal(shown[0], PHOTO)
    np.testing.assert_array_equal(shown[1], plots.overlay(PHOTO, HEAT))
    places = [a.get_position() for a in figure.axes if a.images][::2]
    rows = [round(p.y0, 6) for p in places]
    assert rows[0] == rows[1] > rows[2] == rows[3] > rows[4]
    assert places[0].x0 < places[1].x0
    assert [t for t in texts(figure) if "—" in t] == [f"{name} — 0.91" for name in "abcde"]


def test_grid_without_originals_and_of_mixed_kinds():
    assert len(pictures(plots.grid([explained()] * 3, originals=False))) == 3
    curve = explained(np.zeros(4, np.float32), None)
    volume = explained(np.zeros((2, 3, 3), np.float32), None)
    figure = plots.grid([explained(), curve, volume, explained(signed=True)])
    assert len(pictures(figure)) == 6
    assert len(figure.axes) == 6 + 2  # a colour bar for each kind of map


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_default_grid_is_neither_strip_nor_tower(count):
    width, height = plots.grid([explained()] * count).get_size_inches()
    assert 1 / 2.5 < width / height < 3.2


def test_grid_refuses_nothing_and_no_columns():
    with pytest.raises(MethodError, match="at least one explanation"):
        plots.grid([])
    with pytest.raises(MethodError, match="columns=0"):
        plots.grid([explained()], columns=0)


# ---- files and state -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")]
)
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix, magic):
    files = [plots.save_figure(explained().plot(), tmp_path / f"{i}{suffix}") for i in range(2)]
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(magic)
    assert first == second


def test_png_has_the_size_of_the_sheet(tmp_path):
    figure = explained().plot()
    path = plots.save_figure(figure, tmp_path / "a.png", dpi=100)
    with Image.open(path) as image:
        np.testing.assert_allclose(image.size, figure.get_size_inches() * 100, atol=1)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"\.png, \.pdf, \.svg, not as \.bmp"):
        plots.save_figure(explained().plot(), tmp_path / "a.bmp")
    with pytest.raises(PellucidError, match="make the folder"):
        plots.save_figure(explained().plot(), tmp_path / "no" / "a.png")


def test_figures_are_freed():
    references = []
    for _ in range(6):
        figure = explained().plot()
        figure.savefig(io.BytesIO(), format="png", dpi=20)
        references.append(weakref.ref(figure))
    del figure
    gc.collect()
    assert [reference() for reference in references] == [None] * 6


def test_pyplot_is_never_imported(tmp_path):
    code = f"""
import sys
import numpy as np
from pellucid import plots
from pellucid.explanation import Explanation
assert "matplotlib" not in sys.modules
heat = np.zeros((4, 4), np.float32)
item = Explanation(attribution=heat, heatmap=heat, method="m", score=1.0)
item.save({str(tmp_path / "a.json")!r})
Explanation.load(item.save({str(tmp_path / "a.npz")!r}))
assert "matplotlib" not in sys.modules
item.save({str(tmp_path / "a.png")!r})
item._repr_png_()
plots.save_figure(plots.grid([item, item]), {str(tmp_path / "g.svg")!r})
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_changes_no_matplotlib_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in plots.FIGURE_SUFFIXES:
            explained().save(tmp_path / f"a{suffix}")
    assert dict(matplotlib.rcParams) == before

"""Explanations by superpixels: regions, files, figures, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

import pellucid
from pellucid.cli import main
from pellucid.errors import MethodError
from pellucid.plots import save_figure
from pellucid.plots.regions import boundaries, kept_regions
from pellucid.region_explanation import RegionExplanation

SEGMENTS = np.repeat(np.repeat(np.arange(6).reshape(2, 3), 20, 0), 20, 1)
WEIGHTS = np.array([0.5, -2.0, 0.1, 1.0, -0.2, 0.0])


def explanation(**changes) -> RegionExplanation:
    given = {
        "attribution": WEIGHTS[SEGMENTS].astype(np.float32),
        "heatmap": ((1 + WEIGHTS[SEGMENTS] / 2) / 2).astype(np.float32),
        "image": data.astronaut()[:40, :60].copy(),
        "method": "lime",
        "score": 3.25,
        "target": 7,
        "label": "tabby",
        "signed": True,
        "segments": SEGMENTS.astype(np.int32),
        "weights": WEIGHTS,
        "standard_errors": np.full(6, 0.05),
        "intercept": 0.75,
        "r2": 0.8,
        "local_prediction": 0.15,
        "rank_stability": 0.93,
        "certainty": 0.97,
        "settled": True,
        "predictions": 201,
        "facts": {"samples": 200, "top_segments": 5},
    }
    return RegionExplanation(**{**given, **changes})


def test_ranking_and_regions():
    one = explanation()
    assert one.ranking() == [1, 3, 0, 4, 2, 5]
    assert one.ranking("positive") == [3, 0, 2]
    assert one.ranking("negative") == [1, 4]
    np.testing.assert_array_equal(one.regions(top=2), np.isin(SEGMENTS, [3, 0]))
    np.testing.assert_array_equal(one.regions(minimum=0.6), SEGMENTS == 3)
    np.testing.assert_array_equal(one.regions(top=1, sign="both"), SEGMENTS == 1)
    with pytest.raises(MethodError, match="sign='up'"):
        one.ranking("up")
    with pytest.raises(MethodError, match="no superpixels"):
        explanation(segments=None, weights=None).ranking()


def test_everything_comes_back_from_a_file(tmp_path):
    one = explanation()
    again = pellucid.Explanation.load(one.save(tmp_path / "one.npz"))
    assert type(again) is RegionExplanation
    for name in ("segments", "weights", "standard_errors", "heatmap", "image"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))
    for name in ("intercept", "r2", "local_prediction", "rank_stability", "certainty", "settled",
                 "predictions", "facts", "label", "score"):  # fmt: skip
        assert getattr(again, name) == getattr(one, name)
    with pytest.raises(MethodError, match="read from a file"):
        again.of("dog")
    document = json.loads(one.save(tmp_path / "one.json").read_text())
    assert document["weights"] == WEIGHTS.tolist()
    assert document["certainty"] == 0.97
    assert document["segments"] == 6


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        explanation().weights[0] = 1


def test_the_summary_says_how_sure_it_is():
    assert explanation().summary() == [
        "201 predictions",
        "the top 5 regions are the top 5 with 97% certainty",
        "rank correlation with another seed about 0.93",
        "the weights explain 80% of the score's changes",
    ]
    assert "more than 99%" in explanation(certainty=1.0).summary()[1]
    assert explanation(facts={"reused": 200}).summary()[0] == "201 predictions, 200 of them known"


def test_kept_regions_show_the_picture_and_fade_the_rest():
    image = np.full((40, 60, 3), (200, 100, 0), np.uint8)
    shown = kept_regions(image, SEGMENTS.astype(np.int32), [3])
    assert (shown[30, 5] == (200, 100, 0)).all()
    assert shown[5, 50].min() > 200  # faded
    assert len(set(shown[5, 50])) == 1  # to grey
    edge = boundaries(SEGMENTS.astype(np.int32))
    assert edge.sum() == 40 * 2 + 60 - 2
    assert edge[19].all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": None},
        {"signed": False, "weights": np.abs(WEIGHTS), "standard_errors": None},
        {"weights": -np.abs(WEIGHTS) - 1},  # nothing speaks for it
        {"notes": ("The ranking is not settled.",), "certainty": None},
    ],
)
def test_figures(changes, tmp_path):
    one = explanation(**changes)
    figure = one.plot()
    words = " ".join(text.get_text() for text in figure.texts)
    assert "tabby" in words
    assert "201 predictions" in words
    assert len(figure.axes) == 3 + (one.image is not None)
    chart = figure.axes[-1]
    order = sorted(range(6), key=lambda k: -abs(one.weights[k]))
    assert [bar.get_width() for bar in chart.patches] == pytest.approx(one.weights[order].tolist())
    save_figure(figure, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 900


def test_a_figure_numbers_what_a_sparse_model_has_kept():
    errors = np.where(WEIGHTS == 0, 0, 0.05)
    chart = explanation(standard_errors=errors).plot().axes[-1]
    widths = [bar.get_width() for bar in chart.patches]
    assert widths == pytest.approx([-2, 1, 0.5, -0.2, 0.1])


def test_maps_without_superpixels_have_the_usual_figure():
    one = explanation(segments=None, weights=None, standard_errors=None, signed=False)
    assert len(one.plot().axes) == 3  # picture, overlay, colour bar


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from tests.twins import TWINS

    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.onnx").write_bytes(TWINS["plain"].onnx().SerializeToString())
    for name, picture in (("cat", data.chelsea()), ("cup", data.coffee())):
        Image.fromarray(picture).save(tmp_path / f"{name}.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lime", ["num_samples=40"]),
        ("kernel-shap", ["num_samples=60", "num_segments=9"]),
        ("shapley-sampling", ["num_segments=9", "budget=60"]),
        ("rise", ["num_samples=40"]),
        ("occlusion", ["window=8"]),
        ("hierarchical-occlusion", ["budget=40"]),
        ("sobol", ["designs=4", "num_segments=9"]),
        ("meaningful-perturbation", ["steps=5", "cells=4"]),
    ],
)
def test_the_command_draws_every_method(folder, capsys, method, options):
    given = [f"--option={option}" for option in options]
    assert main(["explain", "network.onnx", "cat.jpg", "--method", method, *given]) == 0
    assert (folder / f"cat-{method}.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "found by" in said
    assert "predictions" in said


def test_the_command_gives_numbers_and_grids(folder, capsys):
    given = ["explain", "network.onnx", "cat.jpg", "cup.jpg", "--method", "lime", "--json"]
    assert main([*given, "--option", "num_samples=30", "--like", "lime", "--out", "out/"]) == 0
    document = json.loads(capsys.readouterr().out)
    for entry in document["explanations"]:
        assert len(entry["weights"]) == entry["segments"]
        assert entry["predictions"] == 31
        assert entry["options"]["like"] == "lime"
    assert (folder / "out" / "grid-lime.png").is_file()


def test_the_command_says_what_is_wrong(folder, capsys):
    given = ["explain", "network.onnx", "cat.jpg", "--method"]
    assert main([*given, "rise", "--like", "lime"]) == 2
    assert main([*given, "lime", "--option", "num_samples=none"]) == 2
    assert main([*given, "occlusion", "--option", "window=99"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "rise gives the paper's array alone" in said[0]
    assert "num_samples='none' must be a whole number" in said[1]
    assert "larger than the image 32 x 32" in said[2]

import copy
import functools
import hashlib
import json
import math
import os
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pellucid import plots
from pellucid.errors import ImageError, LoadError, MethodError, PellucidError, UnsupportedError
from pellucid.explanation import Explanation, replacing

RNG = np.random.default_rng(0)
ARRAYS = ("attribution", "heatmap", "image")


def explained(**given):
    defaults = {
        "attribution": RNG.standard_normal((3, 4), dtype=np.float32),
        "heatmap": RNG.random((6, 8), dtype=np.float32),
        "image": RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8),
        "method": "grad-cam",
        "score": 0.9123456789012345,
        "target": 281,
        "label": "tabby",
        "space": "probability",
        "layer": "layer4",
        "layer_reason": "the last convolution",
        "options": {"samples": 3, "sigma": 0.1},
        "provenance": {"model": "résnet", "versions": {"numpy": "2"}, "seed": 0},
        "top": ((281, "tabby", 0.91), (282, None, 0.05)),
        "notes": ("preprocessing was assumed",),
    }
    return Explanation(**defaults | given)


# ---- what it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "<Explanation grad-cam of 'tabby' 0.91 at layer4>"),
        ({"label": None}, "<Explanation grad-cam of class 281 0.91 at layer4>"),
        ({"label": "", "target": (1, 2)}, "<Explanation grad-cam of output (1, 2) 0.91 at layer4>"),
        ({"label": None, "target": None}, "<Explanation grad-cam of custom target 0.91 at layer4>"),
        ({"layer": None, "method": "rise"}, "<Explanation rise of 'tabby' 0.91>"),
        ({"layer": ("a", "b")}, "<Explanation grad-cam of 'tabby' 0.91 at a, b>"),
        (
            {"space": "logit", "score": 12.345},
            "<Explanation grad-cam of 'tabby' logit 12.3 at layer4>",
        ),
        ({"score": 0.0002}, "<Explanation grad-cam of 'tabby' 2.0e-04 at layer4>"),
    ],
)  # fmt: skip
def test_repr_names_method_target_score_and_layer(given, words):
    assert repr(explained(**given)) == words


def test_it_is_frozen_and_its_arrays_read_only():
    mine = np.zeros((2, 2), np.float32)
    item = explained(heatmap=mine, image=None)
    with pytest.raises(FrozenInstanceError):
        item.score = 1.0
    with pytest.raises(ValueError, match="read-only"):
        item.heatmap[0, 0] = 1
    mine[0, 0] = 1  # the caller's own array stays writable


def test_it_hashes_by_identity_and_survives_pickle_and_copy():
    item = explained()
    assert item == item
    assert item != replace(item)
    assert len({item, item}) == 1
    for twin in (pickle.loads(pickle.dumps(item)), copy.deepcopy(item)):
        np.testing.assert_array_equal(twin.heatmap, item.heatmap)
        assert repr(twin) == repr(item)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf])
def test_heatmap_outside_zero_one_is_refused(bad):
    with pytest.raises(MethodError, match=r"outside \[0, 1\]"):
        explained(heatmap=np.float32([[0, bad]]), image=None)


def test_misshapen_arrays_are_refused():
    with pytest.raises(MethodError, match=r"\(0, 3\)"):
        explained(heatmap=np.zeros((0, 3)), image=None)
    with pytest.raises(MethodError, match=r"\(1, 2, 3, 4\)"):
        explained(heatmap=np.zeros((1, 2, 3, 4)), image=None)
    with pytest.raises(ImageError, match=r"\(6, 8, 3\) uint8.*\(6, 7, 3\)"):
        explained(image=np.zeros((6, 7, 3), np.uint8))
    with pytest.raises(ImageError, match="float64"):
        explained(image=np.zeros((6, 8, 3)))
    with pytest.raises(MethodError, match="logit or probability"):
        explained(space="odds")


# ---- arrays --------------------------------------------------------------------------------------


def test_asarray_is_the_heatmap():
    item = explained()
    assert np.shares_memory(np.asarray(item), item.heatmap)
    np.testing.assert_array_equal(np.asarray(item), item.heatmap)
    assert np.asarray(item, np.float64).dtype == np.float64
    mine = np.array(item)
    assert mine.flags.writeable
    assert not np.shares_memory(mine, item.heatmap)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="copy= came with NumPy 2")
def test_asarray_keeps_the_copy_protocol():
    item = explained()
    assert np.shares_memory(np.asarray(item, copy=False), item.heatmap)
    assert not np.shares_memory(np.asarray(item, copy=True), item.heatmap)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(item, np.float64, copy=False)


# ---- pictures ------------------------------------------------------------------------------------


def test_overlay_is_that_of_plots():
    item = explained()
    np.testing.assert_array_equal(item.overlay(alpha=0), item.image)
    expected = plots.overlay(item.image, item.heatmap, colormap="jet", alpha=0.3)
    np.testing.assert_array_equal(item.overlay("jet", 0.3), expected)
    signed = replace(item, signed=True).overlay(alpha=1)
    np.testing.assert_array_equal(signed, plots.overlay(None, item.heatmap, colormap="RdBu_r"))


def test_plot_draws_on_given_axes():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    item = explained()
    assert item.plot(axes[1], colormap="magma") is figure
    assert not axes[0].images
    np.testing.assert_array_equal(axes[1].images[0].get_array(), item.overlay("magma"))


def test_notebooks_receive_a_png():
    assert explained()._repr_png_().startswith(b"\x89PNG\r\n")


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"image": None, "label": None, "target": None, "layer": None, "layer_reason": None},
        {"target": (1, 2, 3), "layer": ("a", "b"), "notes": (), "top": (), "signed": True},
        {"attribution": np.float32([np.nan, np.inf, -0.0, 1e-45])},
        {"heatmap": np.float32([0, 0.1, 1]), "image": None},
        {"heatmap": np.full((2, 3, 4), 0.3, np.float32), "image": None},
        {"score": -1e-300, "space": "logit"},
    ],
)
def test_npz_comes_back_bit_for_bit(tmp_path, given):
    item = explained(**given)
    twin = Explanation.load(item.save(tmp_path / "a.npz"))
    for name in ARRAYS:
        before, after = getattr(item, name), getattr(twin, name)
        if before is None:
            assert after is None
        else:
            assert (before.dtype, before.shape) == (after.dtype, after.shape)
            assert before.tobytes() == after.tobytes()
    for name in {field.name for field in fields(item)} - set(ARRAYS):
        assert getattr(twin, name) == getattr(item, name), name
    assert repr(twin) == repr(item)


def test_nan_score_comes_back(tmp_path):
    assert math.isnan(Explanation.load(explained(score=math.nan).save(tmp_path / "a.npz")).score)


def test_the_same_explanation_gives_the_same_npz_bytes(tmp_path):
    item = explained()
    first, second = (item.save(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert first.read_bytes() == second.read_bytes()


def test_json_holds_everything_but_pixels(tmp_path):
    item = explained(attribution=np.float32([[0.1, 1 / 3], [-2, 16777216]]))
    held = json.loads(item.save(tmp_path / "a.json").read_text())
    assert held == item.to_dict()
    assert held["top"][1] == {"index": 282, "label": None, "score": 0.05}
    assert held["provenance"]["model"] == "résnet"
    assert held["attribution"]["values"][0] == [0.1, 0.33333334]
    assert (held["attribution"]["minimum"], held["attribution"]["maximum"]) == (-2, 16777216)
    assert held["image"] == {"shape": [6, 8, 3]}
    read = np.array(held["heatmap"]["values"], np.float32)
    np.testing.assert_array_equal(read, item.heatmap)


def test_large_arrays_are_described_and_not_written_out():
    described = explained(attribution=np.ones((64, 65), np.float32)).to_dict()["attribution"]
    assert described == {
        "shape": [64, 65], "dtype": "float32", "minimum": 1.0, "maximum": 1.0, "values": None,
    }  # fmt: skip


def test_options_become_plain_values():
    options = {
        "a": np.float32(0.1), "b": np.int64(3), "c": (1, [2.5, None]), "d": np.arange(3),
        "e": Path("x/y"), "f": math.inf, "g": {2, 1}, 7: True, "h": np.zeros(5000), "i": np.mean,
        "j": functools.partial(print), "k": np.bool_(True), "l": b"raw",
    }  # fmt: skip
    plain = explained(options=options).to_dict()["options"]
    assert plain["h"].pop("sha256") == hashlib.sha256(bytes(40_000)).hexdigest()
    assert plain == {
        "a": 0.1, "b": 3, "c": [1, [2.5, None]], "d": [0, 1, 2], "e": str(Path("x/y")),
        "f": None, "g": [1, 2], "7": True, "h": {"shape": [5000], "dtype": "float64"},
        "i": "numpy.mean", "j": "<partial>", "k": True, "l": "<bytes>",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.npy"])
def test_other_suffixes_are_refused_with_those_that_work(tmp_path, name):
    with pytest.raises(UnsupportedError, match=r"\.png, \.pdf, \.svg, \.npz, \.json"):
        explained().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json", ".PNG"])
def test_missing_folder_is_named(tmp_path, suffix):
    with pytest.raises(PellucidError, match=r"make the folder .*missing"):
        explained().save(tmp_path / "missing" / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json"])
def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(PellucidError, match="No space left on device"):
        explained().save(str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(PellucidError, match=r"a\.json cannot be written"):
        explained().save(tmp_path / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_the_permissions_of_ordinary_files(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    saved = explained().save(tmp_path / "a.json")
    assert saved.stat().st_mode == ordinary.stat().st_mode


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(LoadError, match="There is no file"):
        Explanation.load(tmp_path / "none.npz")
    text = tmp_path / "a.json"
    explained().save(text)
    torn = explained().save(tmp_path / "torn.npz")
    torn.write_bytes(torn.read_bytes()[:-200])
    other = tmp_path / "other.npz"
    np.savez(other, heatmap=np.zeros((2, 2)))
    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros(3))
    (tmp_path / "empty.npz").touch()
    for path in (text, torn, other, bare, tmp_path / "empty.npz", tmp_path):
        with pytest.raises(LoadError, match=r"holds no explanation.*\.npz"):
            Explanation.load(path)


def test_load_runs_no_pickle(tmp_path):
    path = tmp_path / "a.npz"
    explanation = np.array([print], dtype=object)
    np.savez(path, explanation=explanation, heatmap=np.zeros(3), attribution=np.zeros(3))
    with pytest.raises(LoadError, match="holds no explanation"):
        Explanation.load(path)


def test_load_refuses_a_later_format(tmp_path):
    path = explained().save(tmp_path / "a.npz")
    with np.load(path) as archive:
        held = dict(archive)
    facts = json.loads(str(held["explanation"])) | {"format": 99}
    np.savez(path, **held | {"explanation": np.array(json.dumps(facts))})
    with pytest.raises(LoadError, match="another version"):
        Explanation.load(path)

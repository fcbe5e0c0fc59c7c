"""The engine: superpixels, replacements, batches, layouts, frameworks."""

from __future__ import annotations

import io

import numpy as np
import pytest
from skimage import data, measure

import pellucid
from pellucid.errors import InputError, MethodError
from pellucid.methods.batching import chunks
from pellucid.methods.perturbation.composing import HiddenSegments
from pellucid.methods.perturbation.replacement import mean_of_segments, replacement
from pellucid.methods.perturbation.segments import SEGMENTERS, _doubled, segmented
from pellucid.methods.progress import progress_bar, showing_passes
from tests.methods.perturbation.scenes import SEGMENTS
from tests.twins import TWINS


@pytest.mark.parametrize("how", sorted(SEGMENTERS))
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_superpixels_of_any_number_of_channels(how, channels):
    grey = data.camera()[100:164, 200:264]
    picture = np.stack([np.roll(grey, c, axis=0) for c in range(channels)], axis=-1) / 255
    labels = segmented(picture, how, 20)
    assert labels.shape == (64, 64)
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    assert 4 <= labels.max() + 1 <= 200, labels.max()


def test_a_grid_of_any_number_of_axes():
    assert segmented(np.zeros((40, 2)), "grid", 8).tolist() == np.repeat(range(8), 5).tolist()
    assert segmented(np.zeros((40, 2)), "slic", 8).tolist() == np.repeat(range(8), 5).tolist()
    cube = segmented(np.zeros((8, 8, 8, 1)), "grid", 8)
    assert (np.bincount(cube.ravel()) == 64).all()
    assert len(np.unique(segmented(np.zeros((2, 2, 1)), "grid", 50))) == 4


def test_noise_in_which_slic_finds_nothing_is_cut_by_a_grid():
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    np.testing.assert_array_equal(segmented(noise), segmented(noise, "grid"))


def test_large_pictures_are_cut_at_half_their_size_with_smooth_borders():
    rows, columns = np.indices((301, 225))
    disc = (rows - 140) ** 2 + (columns - 100) ** 2 < 70**2
    picture = np.where(disc[..., None], [200, 40, 30], [20, 90, 160]).astype(np.uint8)
    labels = segmented(picture, "slic", 50)
    assert labels.shape == disc.shape
    count = labels.max() + 1
    assert measure.label(labels + 1, connectivity=1).max() == count  # each hangs together
    share = np.bincount(labels.ravel(), disc.ravel()) / np.bincount(labels.ravel())
    wrong = disc != (share > 0.5)[labels]
    border = np.abs(np.hypot(rows - 140, columns - 100) - 70)
    assert border[wrong].max() < 3  # pixels
    whole = segmented(picture, "slic", 50, {"mask": np.ones(disc.shape, bool)})
    assert whole.shape == disc.shape


def test_a_doubled_label_image_has_no_stairs():
    corner = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]])
    rounded = np.repeat(np.repeat(corner, 2, 0), 2, 1)
    rounded[2, 2] = 0
    np.testing.assert_array_equal(_doubled(corner), rounded)
    stripes = np.array([[0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(_doubled(stripes), np.repeat(np.repeat(stripes, 2, 0), 2, 1))


def test_labels_may_be_any_numbers():
    labels = np.array([[5, -3], [900, 5]])
    assert segmented(np.zeros((2, 2, 3)), labels).tolist() == [[1, 0], [2, 1]]
    assert segmented(np.zeros((2, 2, 3)), lambda picture: labels).tolist() == [[1, 0], [2, 1]]


def test_replacements():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *SEGMENTS.shape)).astype(np.float32)

    def never(how):
        raise AssertionError(how)

    means = replacement(image, "mean", SEGMENTS, 0, never)
    for k in range(12):
        inside = k == SEGMENTS
        expected = image[:, inside].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(means[:, inside], np.repeat(expected, 16, 1), atol=1e-6)
    whole = replacement(image, "mean", None, 0, never)
    np.testing.assert_allclose(whole[:, 0, 0], image.mean(axis=(1, 2)), atol=1e-6)
    noise = replacement(np.repeat(image, 3, 0), "noise", None, 1, never)
    assert noise.std() == pytest.approx(image.std(), rel=0.15)
    assert np.abs(replacement(image, "blur", None, 0, never)).mean() < np.abs(image).mean() / 2
    with pytest.raises(MethodError, match="inpaint"):
        replacement(image, "inpaint", None, 0, never)


def test_inpainting_continues_a_slope():
    slope = np.add.outer(np.arange(12.0), 2 * np.arange(16.0)).astype(np.float32)
    filled = replacement(slope[None], "inpaint", SEGMENTS, 0, lambda how: how)[0]
    inside = SEGMENTS == 5  # a superpixel in the middle: the slope is harmonic
    np.testing.assert_allclose(filled[inside], slope[inside], atol=1e-4)


def test_a_colour_goes_through_the_preprocessing():
    network = TWINS["plain"].torch()
    preprocess = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7), "size": (32, 32)}
    picture = data.astronaut()[:64, :64]
    model = pellucid.load(network, preprocess=preprocess)
    asked = []
    original = model._run
    model._run = lambda x, *rest: asked.append(x[0].copy()) or original(x, *rest)
    colour = {
        "replacement": (255, 0, 51),
        "engine": "native",
    }  # auto takes an export, if there is one
    pellucid.explain(model, picture, "lime", num_samples=8, **colour)
    red = (np.array([1.0, 0.0, 0.2]) - (0.2, 0.3, 0.4)) / (0.5, 0.6, 0.7)
    hidden = np.abs(asked[-1] - red[:, None, None]).max(axis=1) < 1e-5  # (n, h, w)
    assert 0.2 < hidden.mean() < 0.8
    shown = model.prepare(picture).batch[0]
    np.testing.assert_array_equal(
        np.where(hidden[:, None], 0, asked[-1]), np.where(hidden[:, None], 0, shown)
    )


@pytest.mark.parametrize(
    "shape", [(40,), (12, 16), (12, 16, 1), (12, 16, 3), (12, 16, 7), (6, 8, 8, 2)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_a_function_gets_images_as_they_are(shape, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, shape).astype(dtype)
    seen = []

    def predict(batch):
        seen.append((batch.shape[1:], batch.dtype))
        return batch.reshape(len(batch), -1).mean(axis=1)

    found = pellucid.explain(
        predict, image, "lime", segments="grid", num_segments=8, num_samples=40, replacement=0
    )
    assert set(seen) == {(shape, np.dtype(dtype))}
    spatial = shape if len(shape) < 3 else shape[:-1]
    assert found.heatmap.shape == spatial
    # The mean is linear in the superpixels: a weight is what a superpixel adds to it.
    sums = np.bincount(found.segments.ravel(), image.reshape(*spatial, -1).sum(-1).ravel())
    np.testing.assert_allclose(found.weights, sums / image.size, atol=1e-3)


def test_images_for_a_function_share_a_shape():
    with pytest.raises(InputError, match="differ in shape"):
        pellucid.explain(lambda b: b, [np.zeros((4, 4)), np.zeros((5, 4))], "lime")


def test_memory_bounds_the_batch():
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return batch.mean(axis=(1, 2))

    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    pellucid.explain(predict, image, "lime", num_samples=40, memory=5 * image.nbytes * 5)
    assert max(sizes) == 5
    sizes.clear()
    pellucid.explain(predict, image + 1, "lime", num_samples=40, memory=1)
    assert max(sizes) == 1


@pytest.mark.parametrize("name", ["plain", "conv1d", "conv3d", "two_by_two"])
def test_the_frameworks_agree(name):
    twin = TWINS[name]
    inputs = tuple(array[:1] for array in twin.inputs(1))

    def explained(model, channels_last):
        given = [np.moveaxis(a, 1, -1) for a in inputs] if channels_last else list(inputs)
        given = tuple(given) if len(given) > 1 else given[0]
        return pellucid.explain(
            model, given, "lime", target=0, segments="grid", num_segments=12, num_samples=60, seed=3
        )

    [torch, keras, onnx] = [
        explained(twin.torch(), False), explained(twin.keras(), True), explained(twin.onnx(), False)
    ]  # fmt: skip
    torch, keras, onnx = (r[0] if isinstance(r, list) else r for r in (torch, keras, onnx))
    scale = np.abs(torch.weights).max()
    np.testing.assert_allclose(keras.weights, torch.weights, atol=1e-4 * scale)
    np.testing.assert_allclose(onnx.weights, torch.weights, atol=1e-4 * scale)


def test_superpixels_are_carried_onto_a_picture_of_another_size():
    network = TWINS["plain"].torch()
    model = pellucid.load(network, preprocess={"name": "0-1", "size": (32, 32), "fit": "crop"})
    labels = np.repeat(np.repeat(np.arange(16).reshape(4, 4), 8, 0), 8, 1)
    found = pellucid.explain(model, data.coffee(), "lime", segments=labels, num_samples=40)
    assert found.segments.shape == data.coffee().shape[:2] == found.heatmap.shape
    assert (found.segments[:, 0] == -1).all()  # cropped
    assert set(np.unique(found.segments)) == set(range(-1, 16))
    middle = found.segments[200, 300]
    expected = (1 + found.weights[middle] / np.abs(found.weights).max()) / 2
    assert found.heatmap[200, 300] == pytest.approx(expected, abs=1e-6)
    assert found.heatmap[0, 0] == 0.5


def test_means_are_those_of_each_superpixel_and_channel():
    image = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    labels = np.array([[0, 0], [1, 0]], np.int32)
    means = mean_of_segments(image, labels)
    np.testing.assert_allclose(means[0], [[4 / 3, 4 / 3], [2, 4 / 3]])
    np.testing.assert_allclose(means[1], [[16 / 3, 16 / 3], [6, 16 / 3]])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_hidden_superpixels_show_the_replacement_bit_for_bit(channels_last, pairs):
    rng = np.random.default_rng(0)
    image, other = rng.standard_normal((2, 3, 8, 8), np.float32)
    image[:, 0, :4] = other[:, 7, :4] = [np.nan, np.inf, -0.0, 1e-42]
    labels = np.repeat(np.arange(8), 8).reshape(8, 8).astype(np.int32)
    codes = rng.random((6, 8)) < 0.5
    codes[1::2] = ~codes[::2] if pairs else codes[1::2]
    shape = (6, 8, 8, 3) if channels_last else (6, 3, 8, 8)
    copies = np.full(shape, 7, np.float32)
    copies = np.moveaxis(copies, -1, 1) if channels_last else copies
    HiddenSegments(image, other, labels)(codes, copies)
    for code, copy in zip(codes, copies, strict=True):
        expected = np.where(code[labels], image, other)
        assert np.ascontiguousarray(copy).tobytes() == expected.tobytes()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_passes_show_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr("pellucid.methods.progress._PATIENCE", -1.0)

    def shown(stream):
        with showing_passes(stream, "explaining"):
            for size in (2, 3):  # a method may go through the network in more than one sequence
                list(chunks(6, size))
        return stream.getvalue()

    assert "6/6" in shown(Terminal())
    assert shown(io.StringIO()) == ""


def test_a_bar_shows_on_a_terminal_only():
    def steps(stream, show):
        with progress_bar(stream if show is None else show, "lime", 3) as bar:
            for _ in range(3):
                bar(1)
        return stream.getvalue()

    import pellucid.methods.progress as progress

    before, progress._PATIENCE = progress._PATIENCE, -1.0
    try:
        assert "lime" in steps(Terminal(), None)
        assert "3/3" in steps(Terminal(), None)
        assert steps(io.StringIO(), None) == ""
        assert steps(Terminal(), False) == ""
    finally:
        progress._PATIENCE = before

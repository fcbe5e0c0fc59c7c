"""RISE, occlusion, Sobol indices, meaningful perturbation: known maps and slow oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from torch import nn

import pellucid
from pellucid.errors import MethodError, TargetError, UnsupportedError
from pellucid.methods.perturbation.detection import overlaps, similar_detection
from pellucid.methods.perturbation.rise import SmoothGrids
from tests.methods.perturbation.scenes import SEGMENTS, image, network
from tests.twins import TWINS

RNG = np.random.default_rng(0)
SLOPE = RNG.normal(size=(12, 16)).astype(np.float32)
GREY = RNG.uniform(0.5, 1.5, (12, 16)).astype(np.float32)
PARTS = SLOPE * GREY  # what each pixel adds to the score


def linear(batch):
    return (batch * SLOPE).sum(axis=(1, 2))


# ---- occlusion -------------------------------------------------------------------------------


def test_occlusion_of_a_linear_model():
    found = pellucid.explain(linear, GREY, "occlusion", window=(3, 4), stride=3, replacement=0.0)
    total, covered = np.zeros((12, 16)), np.zeros((12, 16))
    for top in (0, 3, 6, 9):
        for left in (0, 3, 6, 9, 12):
            box = slice(top, top + 3), slice(left, left + 4)
            total[box] += PARTS[box].sum()
            covered[box] += 1
    np.testing.assert_allclose(found.attribution, total / covered, atol=1e-4)
    assert found.predictions == 1 + 20


def test_occlusion_reaches_the_far_edge():
    found = pellucid.explain(linear, GREY, "occlusion", window=5, stride=5, replacement=0.0)
    assert found.predictions == 1 + 3 * 4  # starts 0, 5, 7 and 0, 5, 10, 11
    assert found.attribution[-1, -1] == pytest.approx(PARTS[7:, 11:].sum(), abs=1e-4)


def test_occlusion_equals_captum():
    twin = TWINS["residual"]
    module, batch = twin.torch(), twin.inputs(1)[0]
    theirs = Occlusion(module).attribute(
        torch.from_numpy(batch),
        sliding_window_shapes=(3, 8, 8),
        strides=(3, 4, 4),
        target=1,
        baselines=0,
    )
    ours = pellucid.explain(
        module, batch, "occlusion", target=1, space="probability", window=8, stride=4,
        replacement="zero",
    )  # fmt: skip
    ours = ours[0] if isinstance(ours, list) else ours
    np.testing.assert_allclose(ours.attribution, theirs[0, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(24,), (12, 16), (6, 8, 8, 2)])
def test_occlusion_of_any_number_of_axes(shape):
    signal = np.random.default_rng(1).uniform(1, 2, shape).astype(np.float32)

    def predict(batch):
        return batch.reshape(len(batch), -1).sum(axis=1)

    spatial = shape if len(shape) < 3 else shape[:-1]
    found = pellucid.explain(predict, signal, "occlusion", window=2, stride=2, replacement=0)
    assert found.attribution.shape == spatial
    blocks = signal.reshape(*spatial, -1).sum(-1)
    first = blocks[(slice(2),) * len(spatial)].sum()  # of two or four or eight
    assert found.attribution.flat[0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 13}, "window 13 x 13 is larger than the image 12 x 16"),
        ({"window": 4, "stride": 5}, "would never be hidden"),
        ({"window": (3, 3, 3)}, "or 2 of them"),
        ({"window": 0}, "above 0"),
        ({"replacement": "inpaint"}, "has none"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        pellucid.explain(linear, GREY, "occlusion", **options)


def test_hierarchical_occlusion_looks_closely_where_it_matters():
    parts = np.zeros((16, 16), np.float32)
    parts[3, 12] = 5.0
    parts[8:, :8] = 0.01

    def predict(batch):
        return (batch * parts).sum(axis=(1, 2))

    found = pellucid.explain(
        predict, np.ones((16, 16), np.float32), "hierarchical-occlusion", budget=60, first=2,
        smallest=1, replacement=0.0,
    )  # fmt: skip
    assert found.attribution[3, 12] == pytest.approx(5, abs=1e-5)
    assert found.attribution[12, 4] == pytest.approx(0.01, abs=1e-5)
    assert found.attribution.sum() == pytest.approx(parts.sum(), abs=1e-4)
    assert found.predictions <= 61  # every pixel by itself would take 256


def test_hierarchical_occlusion_of_a_linear_model_is_exact_at_the_end():
    found = pellucid.explain(
        linear, GREY, "hierarchical-occlusion", budget=1000, smallest=1, replacement=0.0
    )
    np.testing.assert_allclose(found.attribution, PARTS, atol=1e-4)
    assert found.facts["boxes"] == 192
    with pytest.raises(MethodError, match="first 16 boxes take as many"):
        pellucid.explain(linear, GREY, "hierarchical-occlusion", budget=15)


# ---- RISE ------------------------------------------------------------------------------------


def test_masks_of_rise_are_enlarged_and_shifted_grids():
    grids = SmoothGrids((12, 16), 4)
    codes = grids.draw(20, 0.5, np.random.default_rng(0))
    masks = grids(codes)
    assert masks.shape == (20, 12, 16)
    from skimage.transform import resize

    for code, mask in zip(codes, masks, strict=True):
        down, across = code[:2]
        assert 0 <= down < 3
        assert 0 <= across < 4
        grid = code[2:].reshape(4, 4).astype(float)
        large = resize(grid, (15, 20), order=1, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(mask, large[down : down + 12, across : across + 16], atol=1e-5)


def test_rise_of_a_constant_score_is_that_score_everywhere():
    found = pellucid.explain(
        lambda batch: np.full(len(batch), 3.0), GREY, "rise", num_samples=40, cells=3, keep=0.4
    )
    np.testing.assert_allclose(found.attribution, 3, rtol=1e-5)
    assert not found.signed


def test_rise_finds_the_spot_and_is_the_mean_of_masks_weighed_by_their_scores():
    def predict(batch):
        return batch[:, 2:4, 12:14].mean(axis=(1, 2))

    options = {"num_samples": 300, "cells": 4, "seed": 7}
    found = pellucid.explain(predict, np.ones((12, 16), np.float32), "rise", **options)
    grids = SmoothGrids((12, 16), 4)
    codes = np.concatenate(
        [
            grids.draw(min(128, 300 - start), 0.5, np.random.default_rng([7, start // 128]))
            for start in range(0, 300, 128)
        ]
    )
    masks = grids(codes)
    scores = predict(masks)[:, None, None]
    expected = scores.mean() + np.mean((scores - scores.mean()) * masks, axis=0) / 0.5
    np.testing.assert_allclose(found.attribution, expected, atol=1e-5)
    row, column = np.unravel_index(found.attribution.argmax(), (12, 16))
    assert abs(row - 2.5) < 3
    assert abs(column - 12.5) < 3
    assert 0.5 < found.rank_stability <= 1


@pytest.mark.parametrize("options", [{"cells": 13}, {"keep": 1}, {"num_samples": 1}])
def test_rise_options_out_of_range_are_refused(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        pellucid.explain(linear, GREY, "rise", **options)


# ---- Sobol -----------------------------------------------------------------------------------


def test_sobol_indices_of_a_linear_model():
    slopes = np.array([3.0, -2, 0, 0, 1, 1, 0.5, 0, -0.25, 0, 0, 0.1])
    found = pellucid.explain(
        network(lambda z: z @ slopes), image(), "sobol", segments=SEGMENTS, designs=256
    )
    np.testing.assert_allclose(found.weights, slopes**2 / (slopes**2).sum(), atol=0.03)
    assert found.predictions == 1 + 256 * 14
    assert not found.signed
    assert (found.weights[[2, 3, 7, 9, 10]] == 0).all()


def test_sobol_indices_count_interactions_for_both():
    found = pellucid.explain(
        network(lambda z: (z[:, 0] - 0.5) * (z[:, 1] - 0.5)), image(), "sobol",
        segments=SEGMENTS, designs=512,
    )  # fmt: skip
    np.testing.assert_allclose(found.weights[:2], 1, atol=0.15)
    np.testing.assert_allclose(found.weights[2:], 0, atol=1e-6)


# ---- meaningful perturbation -----------------------------------------------------------------


class Corner(nn.Module):
    def forward(self, x):
        corner = x[:, :, :8, 8:].mean(dim=(1, 2, 3))
        return torch.stack([corner, -corner], dim=1)


def test_the_mask_hides_what_the_score_rests_on():
    found = pellucid.explain(
        Corner(), np.full((1, 3, 16, 16), 2, np.float32), "meaningful-perturbation", target=0,
        cells=8, steps=60, replacement="zero",
    )  # fmt: skip
    found = found[0] if isinstance(found, list) else found
    hidden = found.attribution
    assert hidden[:8, 8:].mean() > 0.8
    assert hidden[8:, :].mean() < 0.15
    assert hidden[:, :6].mean() < 0.15
    assert found.facts["left_of_score"] < 0.2
    assert found.facts["hidden_share"] < 0.4


def test_meaningful_perturbation_hides_no_more_than_the_score_is_worth():
    """Half of what speaks for it outweighs what speaks against it; more would be no loss."""

    class Halves(nn.Module):
        def forward(self, x):
            return (2 * x[..., :8] - x[..., 8:]).mean((1, 2, 3))[:, None]

    found = pellucid.explain(
        Halves(),
        np.ones((1, 3, 16, 16), np.float32),
        "meaningful-perturbation",
        target=0,
        replacement=0.0,
        sparsity=0.1,
    )[0]
    assert abs(found.facts["left_of_score"]) < 0.1
    assert 0.2 < found.facts["hidden_share"] < 0.3


def test_meaningful_perturbation_wants_gradients():
    with pytest.raises(UnsupportedError, match="no gradients"):
        pellucid.explain(linear, GREY, "meaningful-perturbation")


# ---- detectors -------------------------------------------------------------------------------


def test_overlaps_by_hand():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 0, 0]], float)
    np.testing.assert_allclose(overlaps(boxes, np.array([0, 0, 2, 2.0])), [1, 1 / 7, 0, 0])


def detector(batch):
    """Two boxes whose objectness is the light in them: (N, 2, 4 + 1 + 2)."""
    lights = np.stack([batch[:, :6, :6].mean((1, 2)), batch[:, 6:, 10:].mean((1, 2))], axis=1)
    fixed = np.array([[0, 0, 6, 6, 0, 1, 0], [10, 6, 16, 12, 0, 0.6, 0.8]])
    out = np.repeat(fixed[None], len(batch), axis=0)
    out[:, :, 4] = lights
    return out


def read(output):
    return output[..., :4], output[..., 5:], output[..., 4]


def test_a_detection_is_explained_by_its_own_box():
    light = np.ones((12, 16), np.float32)
    target = similar_detection((10, 6, 16, 12), (0, 1), read)
    assert target(detector(light[None]))[0] == pytest.approx(0.8)  # IoU 1, cosine 0.8
    found = pellucid.explain(detector, light, "rise", target=target, num_samples=600, cells=4)
    assert found.attribution[6:, 10:].mean() > 1.1 * found.attribution[:6, :6].mean()
    falls = pellucid.explain(
        detector, light, "occlusion", target=target, window=2, stride=2, replacement=0.0
    ).attribution
    assert (falls[6:, 10:] > 0).all()
    assert np.abs(falls[:6, :6]).max() == 0


def test_detections_that_do_not_fit_are_refused():
    with pytest.raises(TargetError, match="x1 < x2"):
        similar_detection((3, 0, 1, 1), (1,), read)
    target = similar_detection((0, 0, 1, 1), (1, 0, 0), read)
    with pytest.raises(TargetError, match=r"classes .* are wanted"):
        pellucid.explain(detector, GREY, "rise", target=target)

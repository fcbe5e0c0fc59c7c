"""Contrasts, counterfactuals, regions and boxes, each against the functional written by hand."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pellucid
from pellucid import Contrast, Counterfactual, Detection, Region
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.cli.target import read_target
from pellucid.errors import TargetError
from pellucid.methods.objective import Objective

NAMES = ["cat", "cow", "dog"]
LOGITS = np.array([[1.0, 3.0, -2.0], [0.5, 0.0, 2.0]], np.float32)


def network(positions=0, labels=NAMES, channels=3):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, channels, 1)

        def forward(self, x):
            x = self.layer(x)
            return x.mean((2, 3)) if positions == 0 else x.flatten(2) if positions == 1 else x

    torch.manual_seed(0)
    return TorchAdapter(Head(), labels=labels)


@pytest.mark.parametrize(
    ("target", "expected", "scores"),
    [
        (Contrast("cat", "dog"), [[1, 0, -1], [1, 0, -1]], [3, -1.5]),
        (Contrast(), [[-1, 1, 0], [-1, 0, 1]], [2, 1.5]),
        (Contrast(None, 2), [[0, 1, -1]] * 2, [5, -2]),
        (Counterfactual("cow"), [[0, -1, 0]] * 2, [-3, 0]),
        (Counterfactual(), [[0, -1, 0], [0, 0, -1]], [-3, -2]),
        (["dog", Contrast("dog", "cat")], [[0, 0, 1], [-1, 0, 1]], [-2, 1.5]),
    ],
)
def test_of_classes(target, expected, scores):
    if target == Contrast(None, 2):  # the second image's top class is 2 itself
        with pytest.raises(TargetError, match="contrast of class 2 with itself"):
            Objective(network(), target)({"logits": LOGITS})
        return
    objective = Objective(network(), target)
    np.testing.assert_array_equal(objective({"logits": LOGITS})["logits"], expected)
    np.testing.assert_allclose(objective.scores, scores)


def test_a_contrast_stays_what_it_was_on_the_image():
    objective = Objective(network(), Contrast())
    first = objective({"logits": LOGITS})["logits"]
    np.testing.assert_array_equal(objective({"logits": -LOGITS})["logits"], first)


def test_of_two_classes_the_map_is_the_difference_of_their_maps():
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)

    def gradient(target):
        return np.stack(
            [e.attribution for e in pellucid.explain(network(), x, "deconvnet", target=target)]
        )

    np.testing.assert_allclose(
        gradient(Contrast("cow", "cat")), gradient("cow") - gradient("cat"), atol=1e-7
    )
    np.testing.assert_allclose(gradient(Counterfactual("cow")), -gradient("cow"), atol=1e-7)
    (explained, _) = pellucid.explain(network(), x, "saliency", target=Contrast("cow", "cat"))
    assert explained.label == "cow rather than cat"
    assert explained.probability is None


def test_the_region_of_an_only_class_is_where_it_is_likelier_than_not():
    logits = np.array([[[2.0], [-1.0], [4.0], [-3.0]]])  # (1, 4 positions, 1 class)
    for scores in (logits[0], 1 / (1 + np.exp(-logits[0]))):
        functional = np.zeros_like(scores)
        Region().write(scores, functional, lambda *_: (0, 1.0))
        np.testing.assert_allclose(functional[:, 0], [0.5, 0, 0.5, 0])


def test_region_is_the_mean_of_a_class_inside():
    values = {"logits": np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)}
    mask = np.zeros((8, 12))
    mask[2:6, 4:12] = 1  # of the output, rows 1 to 2 and columns 2 to 5
    objective = Objective(network(2), Region("dog", mask))
    cotangent = objective(values)["logits"]
    expected = np.zeros((2, 3, 4, 6))
    expected[:, 2, 1:3, 2:6] = 1 / 8
    np.testing.assert_allclose(cotangent, expected)
    np.testing.assert_allclose(
        objective.scores, values["logits"][:, 2, 1:3, 2:6].mean((1, 2)), rtol=1e-5
    )
    own = Objective(network(2), Region("dog"))
    top = values["logits"].argmax(axis=1) == 2
    cotangent = own(values)["logits"]
    np.testing.assert_array_equal(cotangent[:, 2] > 0, top)
    np.testing.assert_allclose(cotangent.sum(axis=(1, 2, 3)), 1, rtol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_detection_is_the_best_box_of_a_class(turned):
    rows = np.random.default_rng(0).standard_normal((2, 20, 7)).astype(np.float32)
    rows[0, 13, 4 + 2] = rows[1, 5, 4 + 2] = 9
    values = {"logits": np.moveaxis(rows, 1, 2) if turned else rows}
    model = network(1, channels=7)
    objective = Objective(model, Detection("dog", offset=4))
    cotangent = objective(values)["logits"]
    cotangent = np.moveaxis(cotangent, 1, 2) if turned else cotangent
    assert [tuple(i) for i in np.argwhere(cotangent)] == [(0, 13, 6), (1, 5, 6)]
    np.testing.assert_array_equal(objective.scores, [9, 9])
    by_number = Objective(model, Detection(1, box=3, offset=4))
    by_number(values)
    np.testing.assert_array_equal(by_number.scores, rows[:, 3, 5])
    assert by_number.wording[0] == ("{} in box 3", (1,))


def test_detections_are_explained_by_name():
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)
    (one,) = pellucid.explain(
        network(1, channels=7), x, "saliency", target=Detection("cow", offset=4)
    )
    assert one.label.startswith("cow in box ")
    box = int(one.label.rpartition(" ")[2])
    assert list(np.flatnonzero(one.attribution.sum(axis=0))) == [box]  # the network is 1 x 1
    assert one.top == ()


def test_variants_of_one_image_have_its_target():
    objective = Objective(network(), [Contrast("cat", "dog"), "cow"])
    objective({"logits": LOGITS})
    variants = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(
        objective.score({"logits": variants}, 0)[0], variants[:, 0] - variants[:, 2]
    )
    np.testing.assert_allclose(objective.score({"logits": variants}, 1)[0], variants[:, 1])


@pytest.mark.parametrize(
    ("positions", "target", "message"),
    [
        (0, Region("cat"), "this output has no positions"),
        (2, Region("cat", np.zeros((4, 4))), "covers none"),
        (2, Region("cat", np.ones(4)), r"The region has shape \(4,\)"),
        (0, Detection("cat"), "an output with many boxes"),
        (2, Detection("cat", box=99), "no box 99"),
        (0, Contrast("cat", "cat"), "with itself"),
        (0, Contrast("cat", "wolf"), "No class is called 'wolf'"),
    ],
)
def test_targets_that_fit_no_output_are_refused(positions, target, message):
    x = np.ones((1, 3, 4, 4), np.float32)
    with pytest.raises(TargetError, match=message):
        pellucid.explain(network(positions), x, "saliency", target=target)


def arguments(**given):
    options = {"target": None, "against": None, "counterfactual": False}
    return Namespace(**options | {"region": None, "box": None, "box_offset": 0} | given)


def test_command_line_targets(tmp_path):
    assert read_target(arguments()) is None
    assert read_target(arguments(target="3")) == 3
    assert read_target(arguments(target="cat", against="7")) == Contrast("cat", 7)
    assert read_target(arguments(against="runner-up")) == Contrast(None, None)
    assert read_target(arguments(target="cat", counterfactual=True)) == Counterfactual("cat")
    assert read_target(arguments(box="best", box_offset=4)) == Detection(None, None, 4)
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    region = read_target(arguments(region=str(tmp_path / "mask.png")))
    np.testing.assert_array_equal(region.where > 0, np.eye(4, dtype=bool))
    assert read_target(arguments(region="top")).where is None
    with pytest.raises(TargetError, match="--against and --box exclude each other"):
        read_target(arguments(against="1", box="2"))
    with pytest.raises(TargetError, match="give the number of a box, or best"):
        read_target(arguments(box="first"))

"""Targets: classes, labels, arrays, functions, spaces; each against numbers worked out apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pellucid.adapters.base import Port
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import TargetError
from pellucid.methods.objective import Objective, probabilities

LOGITS = np.array([[1.0, 3.0, -2.0], [0.5, 0.0, 2.0]], np.float32)


class Head(nn.Module):
    def __init__(self, ending=None, flat=True):
        super().__init__()
        self.layer, self.ending, self.flat = nn.Conv2d(3, 3, 1), ending, flat

    def forward(self, x):
        x = self.layer(x)
        x = x.mean((2, 3)) if self.flat else x
        return x if self.ending is None else self.ending(x)


def model(ending=None, labels=None, flat=True):
    return TorchAdapter(Head(ending, flat), labels=labels)


def test_no_target_is_the_top_class_and_stays_it():
    objective = Objective(model())
    cotangent = objective({"logits": LOGITS})["logits"]
    np.testing.assert_array_equal(cotangent, [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(objective.scores, [3, 2])
    later = objective({"logits": -LOGITS})["logits"]
    np.testing.assert_array_equal(later, cotangent)
    assert objective.indices == (1, 2)
    np.testing.assert_array_equal(objective.scores, [3, 2])


@pytest.mark.parametrize("target", [2, -1, "dog", [2, 2], ["dog", 2], np.array([2, 2])])
def test_ways_to_name_a_class(target):
    objective = Objective(model(labels=["cat", "cow", "dog"]), target)
    np.testing.assert_array_equal(objective({"logits": LOGITS})["logits"], [[0, 0, 1]] * 2)
    assert objective.indices == (2, 2)


def test_array_over_the_output_is_a_linear_functional():
    weights = np.array([1.0, -1.0, 0.5])
    objective = Objective(model(), weights)
    cotangent = objective({"logits": LOGITS})["logits"]
    np.testing.assert_array_equal(cotangent, [weights, weights])
    np.testing.assert_allclose(objective.scores, LOGITS @ weights)
    assert objective.indices == ()


def test_function_gives_score_and_cotangent():
    objective = Objective(model(), lambda out: ((out**2).sum(axis=1) / 2, out))
    np.testing.assert_array_equal(objective({"logits": LOGITS})["logits"], LOGITS)
    np.testing.assert_allclose(objective.scores, (LOGITS**2).sum(axis=1) / 2)


@pytest.mark.parametrize("ending", [None, nn.Softmax(-1), nn.Sigmoid(), nn.LogSoftmax(-1)])
@pytest.mark.parametrize("target", [0, np.array([1.0, 2.0, -1.0])])
def test_probability_space_is_differentiated_through_the_activation(ending, target):
    objective = Objective(model(ending), target, space="probability")
    cotangent = objective({"logits": LOGITS})["logits"]

    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(z) if isinstance(ending, nn.Sigmoid) else torch.softmax(z, -1)
    weights = torch.eye(3)[0] if isinstance(target, int) else torch.tensor(target)
    score = p @ weights.double()
    (expected,) = torch.autograd.grad(score.sum(), z)
    np.testing.assert_allclose(cotangent, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(objective.scores, score.detach(), rtol=1e-5)


@pytest.mark.parametrize("space", ["logit", "probability"])
@pytest.mark.parametrize(
    "target",
    [None, 2, [0, 2], np.array([1.0, -1.0, 0.5]), lambda out: (out[:, 0] ** 2, np.zeros((7, 3)))],
)
def test_variants_of_an_image_score_as_with_their_cotangents(target, space):
    objective = Objective(model(nn.Softmax(dim=1)), target, space)
    if not callable(target):
        objective({"logits": LOGITS})
    varied = {"logits": np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)}
    np.testing.assert_allclose(
        objective.variants(varied, image=1), objective.score(varied, image=1)[0], rtol=1e-6
    )


def test_dense_output_takes_the_mean_of_a_class_or_a_region():
    values = {"logits": np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)}
    by_class = Objective(model(flat=False), 1)
    cotangent = by_class(values)["logits"]
    assert by_class.scores[0] == values["logits"][0, 1].mean()
    np.testing.assert_array_equal(cotangent[0, 1], np.full((2, 4), 1 / 8))
    assert not cotangent[0, [0, 2]].any()
    region = np.zeros((3, 2, 4), np.float32)
    region[2, 0, 1:3] = 1
    by_region = Objective(model(flat=False), region)
    np.testing.assert_array_equal(by_region(values)["logits"][0], region)
    assert by_region.scores[0] == 17 + 18


def test_one_sigmoid_unit_with_two_labels_has_a_negative_class():
    class Binary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return torch.sigmoid(self.layer(x).mean((2, 3)))

    values = {"logits": np.array([[2.0]], np.float32)}
    for label, sign in (("healthy", -1), ("ill", 1)):
        objective = Objective(TorchAdapter(Binary(), labels=["healthy", "ill"]), label)
        assert objective(values)["logits"].tolist() == [[sign]]
        assert objective.scores[0] == 2 * sign


def test_targets_of_several_outputs_add_up():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            z = self.layer(x).mean((2, 3))
            return z, 2 * z

    objective = Objective(TorchAdapter(Two()), {"output": 0, "output:1": 1})
    values = {n: np.array([[1.0, 5.0]], np.float32) for n in ("logits", "logits:1")}
    cotangents = objective(values)
    assert {n: c.tolist() for n, c in cotangents.items()} == {
        "logits": [[1, 0]],
        "logits:1": [[0, 1]],
    }
    assert objective.scores[0] == 6


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "out of range: the model has 3 classes"),
        ("wolf", "No class is called 'wolf'"),
        ([0, 1, 2], "3 targets were given for 2 images"),
        (np.zeros(4), r"shape \(4,\); an array over the output has \(3,\)"),
        ({"output:3": 0}, "no output 'output:3'"),
        (True, "neither a class index"),
        (1.5, "neither a class index"),
    ],
)
def test_targets_that_name_nothing_are_refused(target, message):
    with pytest.raises(TargetError, match=message):
        Objective(model(labels=["cat", "cow", "dog"]), target)({"logits": LOGITS})


def test_label_without_labels_and_unknown_space_are_refused():
    with pytest.raises(TargetError, match="no labels are known"):
        Objective(model(), "cat")({"logits": LOGITS})
    with pytest.raises(TargetError, match="'logit' or 'probability'"):
        Objective(model(), 0, space="odds")


def test_probabilities_do_not_overflow_and_leave_a_distribution_alone():
    port = Port("output", (None, 3), activation="softmax")
    huge = np.array([[1000.0, 0.0, -1000.0]], np.float32)
    np.testing.assert_allclose(probabilities(huge, port), [[1, 0, 0]])
    sigmoid = Port("output", (None, 3), activation="sigmoid")
    np.testing.assert_allclose(probabilities(huge, sigmoid), [[1, 0.5, 0]])
    already = np.array([[0.2, 0.5, 0.3]], np.float32)
    np.testing.assert_array_equal(probabilities(already, Port("output", (None, 3))), already)

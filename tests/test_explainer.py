"""The public call: one image or many, batches in the model's layout, live models, provenance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import TargetError
from pellucid.explainer import adapter_of


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def picture(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_one_image_gives_one_explanation_and_a_list_gives_a_list():
    model = pellucid.load(network(), preprocess={"size": 32})
    one = pellucid.explain(model, picture())
    several = pellucid.explain(model, [picture(), picture(50, 30, seed=1)])
    assert isinstance(one, pellucid.Explanation)
    assert [e.heatmap.shape for e in several] == [(40, 60), (50, 30)]
    np.testing.assert_allclose(several[0].attribution, one.attribution, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(several[1].image, picture(50, 30, seed=1))


def test_scores_and_probabilities_are_those_of_the_prediction():
    model = pellucid.load(network(), labels=["a", "b", "c"], preprocess="0-1")
    logits = model.predict(picture())[0]
    explanation = pellucid.explain(model, picture(), target="b")
    expected = np.exp(logits) / np.exp(logits).sum()
    assert explanation.score == pytest.approx(logits[1], rel=1e-5)
    assert explanation.probability == pytest.approx(expected[1], rel=1e-5)
    assert [label for _, label, _ in explanation.top] == ["abc"[i] for i in np.argsort(-expected)]
    assert len(pellucid.explain(model, picture(), top=2).top) == 2
    in_probability = pellucid.explain(model, picture(), target="b", space="probability")
    assert in_probability.score == pytest.approx(expected[1], rel=1e-5)


def test_float_batch_is_taken_as_already_preprocessed():
    module = network()
    batch = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    explanations = pellucid.explain(module, batch)
    expected = module(torch.from_numpy(batch)).detach().numpy()
    np.testing.assert_allclose([e.score for e in explanations], expected.max(axis=1), rtol=1e-5)
    assert explanations[0].provenance["preprocessing"] == "given as a batch"
    tensor = pellucid.explain(module, torch.from_numpy(batch))
    np.testing.assert_array_equal(tensor[1].attribution, explanations[1].attribution)


def test_adapter_of_a_live_model_is_kept_and_sees_new_weights():
    module = network()
    assert adapter_of(module) is adapter_of(module)
    before = pellucid.explain(module, picture(), target=0)
    with torch.no_grad():
        module[4].weight.mul_(2)
    after = pellucid.explain(module, picture(), target=0)
    np.testing.assert_allclose(after.attribution, 2 * before.attribution, rtol=1e-5)
    assert after.provenance["model_sha256"] != before.provenance["model_sha256"]


def test_labels_and_preprocessing_may_come_with_the_call():
    module, names = network(), ["a", "b", "c"]
    loaded = pellucid.load(module, labels=names, preprocess="0-1")
    expected = pellucid.explain(loaded, picture(), target="b")
    for model in (module, loaded, pellucid.load(module)):
        made = pellucid.explain(model, picture(), target="b", labels=names, preprocess="0-1")
        np.testing.assert_array_equal(made.attribution, expected.attribution)
        assert made.label == "b"
    raw = pellucid.explain(loaded, picture(), target="b", preprocess="raw")
    assert raw.provenance["preprocessing"]["name"] == "raw"
    again = pellucid.explain(loaded, picture(), target="b")  # only that call was changed
    np.testing.assert_array_equal(again.attribution, expected.attribution)
    assert adapter_of(module, names, "0-1") is adapter_of(module, names, "0-1")
    assert adapter_of(module).labels is None
    compiled = pellucid.compile(module, target="b", labels=names, preprocess="0-1")
    assert compiled.facts["labels"] == names
    assert compiled.facts["preprocess"]["name"] == expected.provenance["preprocessing"]["name"]


def test_same_call_gives_the_same_bits_and_a_drawing_network_draws_the_same():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x):
            return self.layers(nn.functional.dropout(x, 0.5, training=True))

    module = Noisy()
    one, other = (pellucid.explain(module, picture(), target=0) for _ in range(2))
    np.testing.assert_array_equal(one.attribution, other.attribution)


def test_provenance_says_how_to_repeat_it():
    model = pellucid.load(network(), preprocess="imagenet")
    provenance = pellucid.explain(model, picture(), seed=3).provenance
    assert provenance["framework"] == "torch"
    assert provenance["seed"] == 3
    assert provenance["model_sha256"] == model.fingerprint
    assert {"pellucid", "torch", "numpy"} <= provenance["versions"].keys()
    assert provenance["preprocessing"]["name"] == "imagenet"
    assert provenance["seconds"] > 0
    json.dumps(provenance)


def test_guessed_preprocessing_is_noted_and_a_given_one_is_not():
    assumed = pellucid.explain(pellucid.load(network()), picture())
    given = pellucid.explain(pellucid.load(network(), preprocess="imagenet"), picture())
    assert any("assumed" in note for note in assumed.notes)
    assert given.notes == ()


def test_labels_of_another_network_are_refused():
    with pytest.raises(TargetError, match="2 labels, but the model has 3 classes"):
        pellucid.explain(pellucid.load(network(), labels=["a", "b"]), picture())


def test_nan_in_the_network_is_said_in_words():
    module = network()
    with torch.no_grad():
        module[0].weight.fill_(float("nan"))
    explanation = pellucid.explain(TorchAdapter(module), picture(), target=0)
    assert not explanation.heatmap.any()
    assert "NaN" in explanation.notes[0]


def test_output_without_a_class_axis_is_explained():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x):
            return self.layers(x)[:, 0]

    module = Regression()
    batch = np.random.default_rng(2).standard_normal((2, 3, 16, 16)).astype(np.float32)
    ours = pellucid.explain(module, batch)
    theirs = pellucid.explain(module.layers, batch, target=0)
    for one, other in zip(ours, theirs, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-6)
        np.testing.assert_allclose(one.attribution, other.attribution, rtol=1e-6)

"""`like="lime"` gives the weights of the `lime` package on real networks, by its own defaults.

The number of samples is less than its 1000 here, so that the tests are quick; the benchmark has
the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lime.lime_image import LimeImageExplainer
from PIL import Image
from skimage import data

import pellucid
from tests.test_real_models import efficientnet, emotions


def theirs(picture: np.ndarray, predict: Any, samples: int, seed: int) -> Any:
    return LimeImageExplainer(random_state=seed).explain_instance(
        picture, predict, num_samples=samples, top_labels=3
    )


def assert_same(ours: Any, explanation: Any) -> None:
    label = explanation.top_labels[0]
    assert ours.target == label
    np.testing.assert_array_equal(ours.segments, explanation.segments)
    expected = dict(explanation.local_exp[label])
    weights = np.array([expected[k] for k in range(len(expected))])
    np.testing.assert_allclose(ours.weights, weights, atol=1e-6)
    assert ours.intercept == pytest.approx(explanation.intercept[label], abs=1e-6)


@pytest.mark.parametrize("size", [(224, 224), (451, 300)])
def test_efficientnet_in_pytorch(size: tuple[int, int]) -> None:
    picture = np.asarray(Image.fromarray(data.chelsea()).resize(size, Image.Resampling.BILINEAR))
    model = efficientnet()

    def predict(batch: np.ndarray) -> np.ndarray:
        logits = model.predict(list(batch)).astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    expected = theirs(picture, predict, 20, seed=4)
    options = {"like": "lime", "num_samples": 20, "seed": 4}
    ours = pellucid.explain(model, picture, "lime", space="probability", **options)
    assert_same(ours, expected)
    assert ours.r2 == pytest.approx(expected.score, abs=1e-5)
    other = ours.of(expected.top_labels[2])  # from the same predictions
    expected.top_labels = expected.top_labels[2:]
    assert_same(other, expected)


def test_the_emotion_network_in_keras() -> None:
    face = data.astronaut()[60:200, 155:295]
    grey = np.asarray(Image.fromarray(face).convert("L").resize((64, 64)))
    picture = np.repeat(grey[..., None], 3, axis=-1)  # the package takes three channels only
    model = emotions()
    expected = theirs(picture, lambda batch: model.predict(list(batch)), 200, seed=0)
    ours = pellucid.explain(
        model, picture, "lime", space="probability", like="lime", num_samples=200, seed=0
    )
    assert ours.label == "happy"
    assert_same(ours, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_plain_function_at_the_package_s_own_defaults(dtype: type) -> None:
    picture = data.astronaut()[::8, ::8]
    picture = picture if dtype == np.uint8 else picture / 255.0

    def predict(batch: np.ndarray) -> np.ndarray:
        means = batch.reshape(len(batch), 8, 8, 8, 8, 3).mean(axis=(2, 4, 5)).reshape(-1, 64)
        scores = np.exp(3 * means / picture.max() * np.sin(np.arange(64)))[:, :5]
        return scores / scores.sum(axis=1, keepdims=True)

    expected = LimeImageExplainer(random_state=11).explain_instance(picture, predict)
    ours = pellucid.explain(predict, picture, "lime", like="lime", seed=11)
    assert ours.predictions == 1001
    assert_same(ours, expected)


@pytest.mark.parametrize(
    ("features", "how"),
    [
        (3, "auto"),
        (6, "auto"),
        (7, "auto"),
        (12, "forward_selection"),
        (4, "highest_weights"),
        (4, "none"),
        (1000, "auto"),
    ],
)
def test_the_superpixels_that_the_package_chooses(features: int, how: str) -> None:
    picture = data.astronaut()[::4, ::4]

    def predict(batch: np.ndarray) -> np.ndarray:
        means = batch.reshape(len(batch), 8, 16, 8, 16, 3).mean(axis=(2, 4, 5)).reshape(-1, 64)
        score = 1 / (1 + np.exp(means @ np.cos(np.arange(64)) / 100))
        return np.stack([score, 1 - score], axis=1)

    expected = LimeImageExplainer(random_state=2, feature_selection=how).explain_instance(
        picture, predict, num_samples=150, top_labels=1, num_features=features
    )
    ours = pellucid.explain(
        predict, picture, "lime", like="lime", seed=2, num_samples=150,
        num_features=features, feature_selection=how,
    )  # fmt: skip
    label = expected.top_labels[0]
    weights = np.zeros(len(ours.weights))
    kept, values = zip(*expected.local_exp[label], strict=True)
    weights[list(kept)] = values
    assert len(kept) == (len(weights) if how == "none" else min(features, len(weights)))
    np.testing.assert_allclose(ours.weights, weights, atol=1e-6)
    assert set(np.flatnonzero(ours.weights)) == set(kept)
    assert ours.intercept == pytest.approx(expected.intercept[label], abs=1e-6)
    assert ours.r2 == pytest.approx(expected.score, abs=1e-6)
    assert ours.local_prediction == pytest.approx(float(expected.local_pred[0]), abs=1e-6)

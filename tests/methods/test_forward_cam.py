"""Maps without gradients and maps from singular vectors, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pellucid
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import MethodError
from pellucid.graph.placement import neighbourhoods
from pellucid.images import resize_map
from pellucid.methods.baselines import baselines_of
from pellucid.methods.batching import rows_within
from pellucid.methods.conductance import layer_conductance
from pellucid.methods.forward_cam import ablation_cam, recipro_cam, score_cam
from pellucid.methods.matrix_cam import eigen_cam, eigengrad_cam
from pellucid.methods.objective import Objective
from tests.twins import TWINS

from .test_cam import Paper

X = np.array([[[[1.0, -2.0], [3.0, 0.0]]]], np.float32)
POSITIVE, NEGATIVE = np.maximum(X[0, 0], 0), np.maximum(-X[0, 0], 0)


def twin_of(name, n=2):
    twin = TWINS[name]
    model, x = TorchAdapter(twin.torch()), twin.inputs(n)
    model.batch(x)  # shows the shape of the input
    return model, x


def test_ablation_of_a_linear_head_takes_away_a_channels_share():
    model = TorchAdapter(Paper())
    (found,) = ablation_cam(model, X, Objective(model, 0), ["relu"])
    # The score 3.5 is 3 * mean(1, 0, 3, 0) = 3 and 1 * mean(0, 2, 0, 0) = 0.5.
    np.testing.assert_allclose(found[0], 3 / 3.5 * POSITIVE + 0.5 / 3.5 * NEGATIVE, rtol=1e-6)


def test_ablation_divides_by_the_magnitude_of_a_negative_score():
    model = TorchAdapter(Paper())
    x = np.abs(X)  # class 1 scores -2 * 1.5 = -3
    (found,) = ablation_cam(model, x, Objective(model, 1), ["relu"], relu=False)
    np.testing.assert_allclose(found[0], -1 * x[0, 0], rtol=1e-6)
    (signed,) = ablation_cam(model, x, Objective(model, 1), ["relu"], relu=False, magnitude=False)
    np.testing.assert_allclose(signed[0], x[0, 0], rtol=1e-6)


def test_recipro_cam_of_a_linear_head_is_the_evidence_smoothed():
    model = TorchAdapter(Paper())
    (found,) = recipro_cam(model, X, Objective(model, 0), ["relu"])
    evidence = (3 * POSITIVE + NEGATIVE) / 4
    smooth = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            for a in range(2):
                for b in range(2):
                    weight = (2 - abs(i - a)) * (2 - abs(j - b)) / 16
                    smooth[i, j] += weight * evidence[a, b]
    np.testing.assert_allclose(found[0], smooth - smooth.min(), rtol=1e-5, atol=1e-7)


def test_score_cam_equals_its_definition_channel_by_channel():
    twin = TWINS["separable"]
    model, (x,) = TorchAdapter(twin.torch()), twin.inputs(2)
    layer, targets = "depthwise1_relu", [1, 3]
    (found,) = score_cam(model, x, Objective(model, targets), [layer], memory=2**20)
    values = model.run(x, [layer])[layer]
    for image, activation, target, one in zip(x, values, targets, found, strict=True):
        scores = []
        for channel in activation:
            mask = resize_map(channel, (32, 32))
            mask = (mask - mask.min()) / max(np.ptp(mask), 1e-30)
            scores.append(model.run((image * mask)[None], ["logits"])["logits"][0, target])
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = np.maximum((weights[:, None, None] * activation).sum(axis=0), 0)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_score_cam_answers_for_dead_channels_by_the_empty_image():
    model = TorchAdapter(Paper())
    (found,) = score_cam(model, np.abs(X), Objective(model, 0), ["relu"])  # relu(-x) is dead
    own = 3 * (np.abs(X) * np.abs(X) / 3).mean()
    share = np.exp(own) / (np.exp(own) + 1)
    np.testing.assert_allclose(found[0], share * np.abs(X[0, 0]), rtol=1e-5)


def test_score_cam_of_few_channels_takes_those_that_vary_most():
    model, (x,) = twin_of("plain", 1)
    activation = model.run(x, ["conv3"])["conv3"][0]
    best = int(activation.std(axis=(1, 2)).argmax())
    (found,) = score_cam(model, x, Objective(model, 1), ["conv3"], channels=1, relu=False)
    np.testing.assert_allclose(found[0], activation[best], rtol=1e-6)
    with pytest.raises(MethodError, match="channels=0"):
        pellucid.explain(model, x, "score-cam", layer="conv3", channels=0)


@pytest.mark.parametrize("method", ["score-cam", "ablation-cam", "recipro-cam"])
@pytest.mark.parametrize("name", ["residual", "vit", "two_by_two", "conv1d"])
def test_a_small_budget_of_memory_changes_nothing_but_the_batches(method, name):
    model, x = twin_of(name)
    layer = {"residual": "stage", "vit": "block1.norm1", "two_by_two": "conv", "conv1d": "pool1"}
    most = []
    run = model._run

    def counted(batch, fetch, replace):
        most.append(max(len(batch[0]), *(len(a) for a in replace.values()), 0))
        return run(batch, fetch, replace)

    model._run = counted
    maps = {}
    for memory in (2**17, 2**28):
        most.clear()
        found = pellucid.explain(model, x if len(x) > 1 else x[0], method, target=1,
                                 layer=layer[name], memory=memory, engine="native")  # fmt: skip
        maps[memory] = np.stack([e.attribution for e in found])
        if memory == 2**17:
            assert max(most) <= max(2, rows_within(model, x[0], memory, after=layer[name]))
    scale = np.abs(maps[2**28]).max()
    np.testing.assert_allclose(maps[2**17], maps[2**28], atol=1e-5 * scale)
    with pytest.raises(MethodError, match="whole number of bytes"):
        pellucid.explain(model, x if len(x) > 1 else x[0], method, memory=1.5)


def test_rows_follow_from_the_largest_layer():
    model, (x,) = twin_of("plain", 1)
    largest = max(np.prod(layer.shape[1:]) for layer in model.layers)
    assert rows_within(model, x, 4 * 10 * (3 * largest + 2 * x.size)) == 10
    assert rows_within(model, x, 1) == 1
    assert rows_within(model, x, 2**20, after="dense2") > rows_within(model, x, 2**20)


@pytest.mark.parametrize("name", ["residual", "inception", "vit", "conv1d", "conv3d"])
@pytest.mark.parametrize("method", [eigen_cam, eigengrad_cam])
@pytest.mark.parametrize("centred", [False, True])
def test_eigen_cams_are_the_first_singular_vector_with_the_sign_of_the_mean(name, method, centred):
    layer = {"residual": "stage.block1", "inception": "norm", "vit": "block1.norm1",
             "conv1d": "relu1", "conv3d": "conv2"}[name]  # fmt: skip
    model, (x,) = twin_of(name)
    objective = Objective(model, 2)
    (found,) = method(model, x, objective, [layer], relu=False, centred=centred)
    values, gradients = model.pullback(x, objective, [layer], fetch=["logits", layer])
    product = values[layer] if method is eigen_cam else values[layer] * gradients[layer]
    if name == "vit":
        product = product[:, 1:].transpose(0, 2, 1).reshape(2, 24, 4, 4)
    for own, one in zip(product.astype(np.float64), found, strict=True):
        matrix = own.reshape(len(own), -1).T
        matrix = matrix - matrix.mean(axis=0) if centred else matrix
        expected = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
        flat = one.reshape(-1)
        sign = np.sign(flat @ expected)
        np.testing.assert_allclose(flat, sign * expected, atol=1e-5 * np.abs(expected).max())
        assert np.corrcoef(flat, own.reshape(len(own), -1).mean(axis=0))[0, 1] > 0


def test_eigen_cam_of_a_flat_layer_is_positive_and_of_a_dark_one_zero():
    model = TorchAdapter(Paper())
    (flat,) = eigen_cam(model, np.full((1, 1, 3, 3), 2, np.float32), Objective(model, 0), ["relu"])
    np.testing.assert_allclose(flat[0], np.full((3, 3), 2), rtol=1e-6)
    (dark,) = eigen_cam(model, np.zeros((1, 1, 3, 3), np.float32), Objective(model, 0), ["relu"])
    np.testing.assert_array_equal(dark, 0)


@pytest.mark.parametrize("baseline", ["zero", "blurred"])
@pytest.mark.parametrize(
    ("name", "layer"),
    [("residual", "stage.block1"), ("plain", "pool:1"), ("conv1d", "pool1"), ("conv3d", "conv2")],
)
def test_conductance_of_a_layer_on_all_paths_sums_to_the_difference_of_scores(
    name, layer, baseline
):
    model, (x,) = twin_of(name)
    objective = Objective(model, 1)
    (found,) = layer_conductance(model, x, objective, [layer], baseline=baseline, steps=200)
    (origin,) = baselines_of(x, baseline)
    before = objective.score(model.run(origin, objective.fetch))[0]
    total = found.reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(total, objective.scores - before, rtol=2e-2, atol=2e-3)


def test_conductance_of_a_linear_network_is_its_evidence():
    model = TorchAdapter(Paper())
    (found,) = layer_conductance(model, X, Objective(model, 0), ["relu"], steps=7)
    np.testing.assert_allclose(found[0], (3 * POSITIVE + NEGATIVE) / 4, rtol=1e-5)


def test_conductance_approaches_captums():
    from captum.attr import LayerConductance

    twin = TWINS["plain"]
    network, (x,) = twin.torch(), twin.inputs(2)
    model = TorchAdapter(network)
    (found,) = layer_conductance(model, x, Objective(model, [1, 3]), ["conv2"], steps=300)
    peer = LayerConductance(network, network.conv2)
    theirs = peer.attribute(torch.from_numpy(x), target=[1, 3], n_steps=600)
    theirs = theirs.sum(dim=1).detach().numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-2 * np.abs(theirs).max())


def test_the_sign_of_eigen_cam_is_the_same_in_keras():
    twin = TWINS["channels_first"]
    x = twin.inputs(2)
    maps = []
    for model in (TorchAdapter(twin.torch()), KerasAdapter(twin.keras())):
        found = pellucid.explain(model, x[0], "eigen-cam", layer="conv2")
        maps.append(np.stack([e.attribution for e in found]))
    np.testing.assert_allclose(*maps, atol=1e-4 * maps[0].max())


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4)])
def test_neighbourhoods_are_products_of_their_axes_and_come_in_parts(grid):
    expected = np.ones((1, 1))
    for n in grid:
        near = np.eye(n) / 2 + (np.eye(n, k=1) + np.eye(n, k=-1)) / 4
        expected = np.kron(expected, near)
    count = len(expected)
    np.testing.assert_array_equal(neighbourhoods(grid).reshape(count, -1), expected)
    some = slice(count // 2, count)
    np.testing.assert_array_equal(neighbourhoods(grid, some).reshape(-1, count), expected[some])
    assert neighbourhoods((2000, 2000), slice(7, 9)).nbytes == 2 * 4 * 2000**2  # not all of them

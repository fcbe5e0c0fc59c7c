"""The same network gives the same numbers in every framework: values, gradients, Grad-CAM."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pellucid.adapters.base import Adapter
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.methods.cam import grad_cam
from pellucid.methods.objective import Objective
from tests.twins import TWINS

TOLERANCE = 1e-5
NAMES = sorted(TWINS)
OTHERS = ["keras", "tf_keras"]


@cache
def adapter(name: str, framework: str) -> Adapter:
    network = getattr(TWINS[name], framework)()
    return TorchAdapter(network) if framework == "torch" else KerasAdapter(network)


@cache
def answers(name: str, framework: str, rule: str) -> tuple[dict, dict]:
    """Values and gradients at every matched layer, under PyTorch's names."""
    twin, model = TWINS[name], adapter(name, framework)
    x = twin.inputs(3)
    own_names = {ours: ours if framework == "torch" else own for ours, own in twin.matched.items()}
    model.batch(x)  # a PyTorch module learns its input's shape from it
    ends = [p.logits for p in model.outputs] + [p.name for p in (*model.outputs, *model.inputs)]

    def seed(values):
        cotangents = {}
        for name, value in values.items():
            if name.startswith(("logits", "output")):
                rng = np.random.default_rng(7)
                cotangents[name] = rng.standard_normal(value.shape).astype(np.float32)
        return cotangents

    names = own_names | {end: end for end in ends}
    values, gradients = model.pullback(x, seed, names.values(), fetch=names.values(), relu=rule)
    return (
        {ours: values[own] for ours, own in names.items()},
        {ours: gradients[own] for ours, own in names.items()},
    )


def assert_close(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape, name
    scale = np.abs(ours).max()
    assert scale > 0, f"{name} is zero everywhere, so it proves nothing"
    assert np.abs(ours - theirs).max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_values_of_every_matched_layer_agree(name, framework):
    ours, theirs = answers(name, "torch", "exact")[0], answers(name, framework, "exact")[0]
    for layer, value in ours.items():
        assert_close(layer, value, theirs[layer])


@pytest.mark.parametrize("rule", ["exact", "guided", "deconv"])
@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_at_every_matched_layer_agree(name, framework, rule):
    ours, theirs = answers(name, "torch", rule)[1], answers(name, framework, rule)[1]
    for layer, gradient in ours.items():
        assert_close(layer, gradient, theirs[layer])


@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_matched_layers_are_described_alike(name, framework):
    answers(name, "torch", "exact"), answers(name, framework, "exact")  # shapes are seen now
    ours, theirs = adapter(name, "torch"), adapter(name, framework)
    for torch_name, keras_name in TWINS[name].matched.items():
        one, other = ours.layer(torch_name), theirs.layer(keras_name)
        assert one.layout == other.layout, torch_name
        assert one.shape[1:2] == other.shape[1:2], torch_name
        if not (one.container or other.container or one.kind == "Upsample"):
            assert one.kind == other.kind, torch_name
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert (one.name, one.activation, one.layout) == (
            other.name,
            other.activation,
            other.layout,
        )


@pytest.mark.parametrize("framework", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_agrees_at_every_matched_grid(name, framework):
    x = TWINS[name].inputs(2)
    ours, theirs = adapter(name, "torch"), adapter(name, framework)
    ours.batch(x), theirs.batch(x)
    layers = {
        one: other
        for one, other in TWINS[name].matched.items()
        if len(theirs.layer(other).shape) > 2 and 1 not in theirs.layer(other).grid
    }
    objectives = Objective(ours, 1), Objective(theirs, 1)
    cams = grad_cam(ours, x, objectives[0], list(layers), relu=False)
    others = grad_cam(theirs, x, objectives[1], list(layers.values()), relu=False)
    np.testing.assert_allclose(objectives[0].scores, objectives[1].scores, rtol=1e-5, atol=1e-6)
    for layer, one, other in zip(layers, cams, others, strict=True):
        if one.any() or other.any():  # a layer beside the path to the first output is zero
            assert_close(layer, one, other)
    assert any(cam.any() for cam in cams)

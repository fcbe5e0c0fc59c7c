"""Gradients of ONNX files: those of the PyTorch network that the file was exported from.

Layers are matched by their values: an exported graph has other names than the network, and some
layers fewer where the exporter folds normalisations into convolutions.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pellucid
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import LayerError, UnsupportedError
from pellucid.methods.cam import grad_cam
from pellucid.methods.layer_choice import choose_layer
from pellucid.methods.objective import Objective
from tests.adapters.test_onnx import batch, network, weights
from tests.twins import TWINS

TOLERANCE = 1e-5
VALUES = 2e-5  # of the scale; convolutions that are summed in another order differ by so much
NAMES = sorted(TWINS)
OPTIMIZED = pytest.mark.parametrize("optimize", [True, False], ids=["folded", "whole"])
TWIN = pytest.mark.parametrize("name", NAMES)


@cache
def torch_adapter(name: str) -> TorchAdapter:
    model = TorchAdapter(TWINS[name].torch())
    model.batch(TWINS[name].inputs(3))  # it learns its input's shape from it
    return model


@cache
def onnx_adapter(name: str, optimize: bool) -> OnnxAdapter:
    return OnnxAdapter(TWINS[name].onnx(optimize))


def ends(model) -> list[str]:
    return [p.logits for p in model.outputs] + [p.name for p in (*model.outputs, *model.inputs)]


def seed(values):
    rng = np.random.default_rng(7)
    return {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in values.items()
        if name.startswith(("logits", "output"))
    }


@cache
def in_torch(name: str, rule: str) -> tuple[dict, dict]:
    model = torch_adapter(name)
    names = [*ends(model), *TWINS[name].matched]
    return model.pullback(TWINS[name].inputs(3), seed, names, fetch=names, relu=rule)


@cache
def matches(name: str, optimize: bool) -> dict[str, str]:
    """PyTorch layer -> the first layer of the file that has its values."""
    model = onnx_adapter(name, optimize)
    values = model.run(TWINS[name].inputs(3), [layer.name for layer in model.layers])
    found = {}
    for ours in TWINS[name].matched:
        one = in_torch(name, "exact")[0][ours]
        for own, other in values.items():
            if one.shape == other.shape and np.abs(one - other).max() <= VALUES * np.abs(one).max():
                found[ours] = own
                break
    return found


@cache
def in_onnx(name: str, optimize: bool, rule: str) -> tuple[dict, dict]:
    model = onnx_adapter(name, optimize)
    own = {end: end for end in ends(model)} | matches(name, optimize)
    values, gradients = model.pullback(
        TWINS[name].inputs(3), seed, own.values(), fetch=own.values(), relu=rule
    )
    return ({n: values[o] for n, o in own.items()}, {n: gradients[o] for n, o in own.items()})


def assert_close(
    name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float = TOLERANCE
) -> None:
    assert ours.shape == theirs.shape, name
    scale = np.abs(ours).max()
    assert scale > 0, f"{name} is zero everywhere, so it proves nothing"
    assert np.abs(ours - theirs).max() <= tolerance * scale, name


@OPTIMIZED
@TWIN
def test_every_layer_is_found_in_the_file_but_what_the_exporter_folds(name, optimize):
    missing = TWINS[name].matched.keys() - matches(name, optimize).keys()
    kinds = [torch_adapter(name).layer(layer).kind for layer in missing]
    if not optimize:
        assert not missing
    # a convolution with its normalisation folded into it gives the normalisation's values
    assert all(kind.startswith(("Conv", "Depthwise", "Pad")) for kind in kinds)


@pytest.mark.parametrize("rule", ["exact", "guided", "deconv"])
@OPTIMIZED
@TWIN
def test_values_and_gradients_at_every_layer_are_pytorchs(name, optimize, rule):
    ours, theirs = in_torch(name, rule), in_onnx(name, optimize, rule)
    for layer in theirs[1]:
        assert_close(layer, ours[0][layer], theirs[0][layer], VALUES)
        assert_close(layer, ours[1][layer], theirs[1][layer])


@OPTIMIZED
@TWIN
def test_grad_cam_is_pytorchs_at_every_grid(name, optimize):
    x = TWINS[name].inputs(2)
    ours, theirs = torch_adapter(name), onnx_adapter(name, optimize)
    pairs = {
        one: other
        for one, other in matches(name, optimize).items()
        if theirs.layer(other).layout != "features" and 1 not in theirs.layer(other).grid
    }
    objectives = Objective(ours, 1), Objective(theirs, 1)
    cams = grad_cam(ours, x, objectives[0], list(pairs), relu=False)
    others = grad_cam(theirs, x, objectives[1], list(pairs.values()), relu=False)
    np.testing.assert_allclose(objectives[0].scores, objectives[1].scores, rtol=1e-5, atol=1e-6)
    for layer, one, other in zip(pairs, cams, others, strict=True):
        if one.any() or other.any():  # a layer beside the path to the first output is zero
            assert_close(layer, one, other)
    assert any(cam.any() for cam in cams)


@OPTIMIZED
@TWIN
def test_the_layer_chosen_in_the_file_has_the_values_of_the_one_chosen_in_pytorch(name, optimize):
    x = TWINS[name].inputs(3)
    ours, theirs = torch_adapter(name), onnx_adapter(name, optimize)
    one, other = choose_layer(ours).name, choose_layer(theirs).name
    expected = ours.run(x, [one])[one]
    if name in ("fused", "inception", "plain"):  # rectified by a function, which is no module
        expected = np.maximum(expected, 0)
    assert_close(other, expected, theirs.run(x, [other])[other])


# ---- one small graph, written by hand ---------------------------------------------------------


def expected(x: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of `network` by PyTorch, under the names of the file."""
    import torch

    w = {k: torch.from_numpy(v) for k, v in weights().items()}
    f = torch.nn.functional
    image = torch.from_numpy(x).requires_grad_()
    conv = f.conv2d(image, w["w1"], w["b1"], padding=1)
    pool = f.max_pool2d(conv.relu(), 2)
    mean = f.conv2d(pool, w["w2"], w["b2"], padding=1).relu().mean((2, 3))
    score = ((mean @ w["w3"] + w["b3"]) * torch.from_numpy(cotangent)).sum()
    names = ["input", "conv1", "pool", "mean"]
    found = torch.autograd.grad(score, [image, conv, pool, mean])
    return {name: gradient.numpy() for name, gradient in zip(names, found, strict=True)}


COTANGENT = np.random.default_rng(3).standard_normal((5, 5)).astype(np.float32)


def at_logits(values):
    return {"logits": COTANGENT[: len(values["logits"])].reshape(values["logits"].shape)}


@pytest.mark.parametrize(
    "options",
    [{}, {"channels_last": True}, {"tail": ""}, {"batch": 2}, {"element": TensorProto.UINT8}],
    ids=["softmax", "channels last", "no softmax", "fixed batch", "integers"],
)
def test_gradients_come_back_channels_first_whatever_the_graph_takes(options):
    x = np.abs(batch(5)) * 40
    x = np.rint(x).clip(0, 255) if "element" in options else x
    wanted = expected(x, COTANGENT)
    _, gradients = OnnxAdapter(network(**options)).pullback(x, at_logits, wanted)
    for name, gradient in wanted.items():
        assert_close(name, gradient, gradients[name])


def test_half_precision_is_differentiated():
    x = batch(2)
    model = OnnxAdapter(network(element=TensorProto.FLOAT16))
    _, gradients = model.pullback(x, at_logits, ["input"])
    close = expected(x.astype(np.float16).astype(np.float32), COTANGENT[:2])["input"]
    assert_close("input", close, gradients["input"], 2e-3)


def test_the_seed_is_called_once_and_the_layer_it_seeds_is_remembered():
    model, x, calls = OnnxAdapter(network()), batch(2), []

    def seed(values):
        calls.append(sorted(values))
        return at_logits(values)

    for _ in range(2):  # the layer that is seeded is not the last one that is fetched
        values, gradients = model.pullback(x, seed, ["input"], fetch=["logits", "conv1"])
        assert_close("input", expected(x, COTANGENT[:2])["input"], gradients["input"])
        assert values.keys() == {"logits", "conv1"}
    assert calls == [["conv1", "logits"]] * 2
    assert len(model._pullbacks) == 2  # the guess of the first call, and the answer
    model.pullback(x, seed, ["input"], fetch=["logits", "conv1"], relu="guided")
    assert len(model._pullbacks) == 3


def test_cotangents_at_two_names_of_one_tensor_add_up():
    model, x = OnnxAdapter(network(tail="")), batch(2)
    ones = np.ones((2, 5), np.float32)
    _, twice = model.pullback(
        x, lambda v: {"dense": ones, "logits": 2 * ones}, ["input"], fetch=["dense", "logits"]
    )
    _, once = model.pullback(x, lambda v: {"logits": 3 * ones}, ["input"])
    assert_close("input", once["input"], twice["input"])


def test_what_the_seed_does_not_depend_on_has_gradient_zero():
    model, x = OnnxAdapter(network()), batch(2)
    _, gradients = model.pullback(x, lambda v: dict(v), ["dense", "conv1"], fetch=["conv1"])
    assert gradients["dense"].shape == (2, 5)
    assert not gradients["dense"].any()
    np.testing.assert_array_equal(gradients["conv1"], model.run(x, ["conv1"])["conv1"])
    values, own = model.pullback(x, lambda v: dict(v), ["input"], fetch=["input"])
    np.testing.assert_array_equal(own["input"], x)
    np.testing.assert_array_equal(values["input"], x)


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["read", "left in their file"])
def test_weights_beside_the_file_are_differentiated(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("pellucid.adapters.onnx.files._IN_MEMORY", limit)
    monkeypatch.setattr("pellucid.adapters.onnx.files._SMALL", 100)
    path, x = tmp_path / "m.onnx", batch(2)
    onnx.save_model(network(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    _, gradients = OnnxAdapter.from_file(path).pullback(x, at_logits, ["input"])
    assert_close("input", expected(x, COTANGENT[:2])["input"], gradients["input"])


def test_an_operator_without_a_rule_is_named_with_the_next_layer_that_can_be_explained():
    model = network(batch=2)
    model.graph.node[2].CopyFrom(  # in place of the pooling, of both images as a whole
        helper.make_node("MaxRoiPool", ["r1", "rois"], ["p1"], "odd pool", pooled_shape=[8, 8])
    )
    rois = np.array([[0, 0, 0, 15, 15], [1, 0, 0, 15, 15]], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rois, "rois"))
    model, x = OnnxAdapter(model), batch(2)
    with pytest.raises(UnsupportedError, match=r"RoiPool \(node 'odd pool'.*tensor 'c2'") as error:
        model.pullback(x, at_logits, ["input"])
    assert "\n" not in str(error.value)
    _, gradients = model.pullback(x, at_logits, ["c2"])  # as the message says
    assert gradients["c2"].any()


def test_parameters_and_unknown_layers_have_no_gradient():
    model, x = OnnxAdapter(network()), batch(2)
    with pytest.raises(LayerError, match="conv1"):
        model.pullback(x, at_logits, ["conv"])
    with pytest.raises(LayerError, match="no layer 'w1'"):
        model.pullback(x, at_logits, ["w1"])


def test_a_file_is_explained_by_its_path(tmp_path):
    path, x = tmp_path / "m.onnx", batch(2)
    onnx.save(network(), path)
    one, other = pellucid.explain(path, x, target=[1, 3])
    assert one.layer == "relu:1"
    gradients = expected(x, np.eye(5, dtype=np.float32)[[1, 3]])
    values = OnnxAdapter(network()).run(x, ["relu:1"])["relu:1"]
    # the mean of the activation has that gradient, spread evenly over the grid
    weights_of = gradients["mean"][:, :, None, None] / 64
    maps = np.maximum((weights_of * values).sum(1), 0)
    assert_close("first", maps[0], one.attribution)
    assert_close("second", maps[1], other.attribution)

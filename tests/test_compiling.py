"""Compiled explanations: run by plain onnxruntime, they equal what PyTorch's gradients give."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cli import main
from pellucid.compiling.compile import CAMS, COMPILED, DEFAULTS, SIGNED
from pellucid.errors import (
    InputError,
    LayerError,
    LoadError,
    MethodError,
    TargetError,
    UnsupportedError,
)
from pellucid.images import resize_map
from pellucid.methods.layer_choice import as_grid, choose_layer
from pellucid.methods.objective import Objective
from pellucid.methods.registry import METHODS
from tests.adapters.test_onnx import batch, network
from tests.adapters.test_onnx_gradients import matches, onnx_adapter, torch_adapter
from tests.graph.networks import adapter
from tests.twins import TWINS

NAMES = ["conv1d", "conv3d", "nested_shared", "plain", "residual", "separable", "vit"]
TOLERANCE = 2e-5


@cache
def session(name: str, method: str) -> onnxruntime.InferenceSession:
    explainer = pellucid.compile(onnx_adapter(name, True), method, layer=layer(name, method))
    return onnxruntime.InferenceSession(explainer.model.SerializeToString())


def layer(name: str, method: str) -> str | None:
    """The layer of the file that a map is drawn at, one that PyTorch has too."""
    if method not in CAMS and method != "guided-grad-cam":
        return None
    return list(grids(name).values())[-1]


@cache
def grids(name: str) -> dict[str, str]:
    """PyTorch layer -> layer of the file, for those with a grid and on the way to the score."""
    model, x = torch_adapter(name), TWINS[name].inputs(1)
    found = {}
    for ours, own in matches(name, True).items():
        shape = model.layer(ours).shape
        if len(shape) > 2 and 1 not in shape[2:] and model.layer(ours).layout != "features":
            _, gradients = model.pullback(x, Objective(model), [ours])
            (gradient,) = as_grid(model, ours, gradients[ours])  # without the class token
            if gradient.any():
                found[ours] = own
    return found


def outputs(name: str, method: str, x: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    plain = session(name, method)
    feeds = dict(zip((i.name for i in plain.get_inputs()), x, strict=True))
    return dict(zip((o.name for o in plain.get_outputs()), plain.run(None, feeds), strict=True))


# ---- the methods, slowly and from PyTorch's gradients ------------------------------------------


def by_hand(name: str, method: str, x: tuple[np.ndarray, ...]) -> np.ndarray:
    model = torch_adapter(name)
    objective = Objective(model)

    def gradient(image, relu="exact"):
        return model.pullback((image, *x[1:]), objective, ["input"], relu=relu)[1]["input"]

    def cam(kind):
        at = list(grids(name))[-1]
        values, gradients = model.pullback(x, objective, [at], fetch=[*objective.fetch, at])
        a, g = as_grid(model, at, values[at], gradients[at])
        positions = tuple(range(2, a.ndim))
        if kind == "eigen-cam":
            maps = [projected(one) for one in a]  # below zero everywhere: lifted to zero
            return np.stack([np.maximum(m, 0) if m.max() > 0 else m - m.min() for m in maps])
        if kind == "recipro-cam":
            return neighbourhood_scores(name, at, values[at], a.shape[2:], objective, x)
        if kind == "grad-cam++":
            under = 2 * g**2 + a.sum(positions, keepdims=True) * g**3
            alpha = np.divide(g**2, under, out=np.zeros_like(g), where=np.abs(under) > 1e-12)
            g = (alpha * np.maximum(g, 0)).sum(positions, keepdims=True)
        if kind == "grad-cam":
            g = g.mean(positions, keepdims=True)
        elif kind == "layer-cam":
            g = np.maximum(g, 0)
        elif kind == "xgrad-cam":
            g = (g * a).sum(positions, keepdims=True) / (a.sum(positions, keepdims=True) + 1e-7)
        return np.maximum((g * a).sum(1), 0)

    objective.settle(x)  # the class
    if method in CAMS:
        return cam(method)
    if method == "saliency":
        return np.abs(gradient(x[0]))
    if method == "deconvnet":
        return gradient(x[0], "deconv")
    if method == "input-x-gradient":
        return x[0] * gradient(x[0])
    if method == "guided-backprop":
        return gradient(x[0], "guided")
    if method == "guided-grad-cam":
        size = x[0].shape[2:]
        drawn = np.stack([resize_map(one, size) for one in cam("grad-cam")])
        return gradient(x[0], "guided") * drawn[:, None]
    if method == "smoothgrad":
        noise = np.random.default_rng(0).standard_normal((25, *x[0].shape[1:]), np.float32)
        axes = tuple(range(1, x[0].ndim))
        spread = np.ptp(x[0], axis=axes, keepdims=True)
        copies = [x[0] + np.float32(0.15) * n * spread for n in noise]
        return np.mean([np.abs(gradient(copy)) for copy in copies], axis=0)
    nodes, weights = np.polynomial.legendre.leggauss(50)
    points = [np.float32((a + 1) / 2) for a in nodes]
    return x[0] * sum(w / 2 * gradient(x[0] * a) for a, w in zip(points, weights, strict=True))


def projected(a: np.ndarray) -> np.ndarray:
    """Eigen-CAM of one image's `(C, *grid)` by a plain SVD, its sign by correlation."""
    matrix = a.reshape(len(a), -1).T.astype(np.float64)  # (P, C)
    _, _, rows = np.linalg.svd(matrix, full_matrices=False)
    found = matrix @ rows[0]
    sign = np.sign(np.corrcoef(found, matrix.mean(1))[0, 1])
    return (sign * found).reshape(a.shape[1:]).astype(np.float32)


def neighbourhood_scores(name, layer, own, grid, objective, x):
    """Recipro-CAM by one run of the PyTorch network for each position, the layer hooked."""
    import torch

    network, scores = TWINS[name].torch(), np.zeros((len(own), *grid), np.float32)
    if hasattr(network, "softmax"):
        network.softmax = torch.nn.Identity()  # so that it gives its logits
    base, _, call = layer.partition(":")
    module, cells, calls = network.get_submodule(base), int(np.prod(grid)), Counter()
    for position in np.ndindex(*grid):
        mask = np.ones(())
        for at, size in zip(position, grid, strict=True):
            near = np.maximum(0.5 - 0.25 * np.abs(np.arange(size) - at), 0)
            mask = np.multiply.outer(mask, near)
        if name == "vit":  # (N, T, C), and the class token is kept
            mask = np.concatenate([np.ones(own.shape[1] - cells), mask.reshape(-1)])[:, None]
        masked = torch.tensor(np.asarray(own * mask, np.float32))

        def replace(_module, _inputs, output, masked=masked):
            calls["all"] += 1
            return masked if calls["all"] == int(call or 0) + 1 else output

        calls.clear()
        hook = module.register_forward_hook(replace)
        with torch.no_grad():
            values = network(*map(torch.tensor, x))
        hook.remove()
        scores[(slice(None), *position)] = values.numpy()[np.arange(len(own)), objective.indices]
    return scores - scores.min(axis=tuple(range(1, scores.ndim)), keepdims=True)


@pytest.mark.parametrize("method", COMPILED)
@pytest.mark.parametrize("name", ["conv3d", "plain", "vit"])
def test_the_attribution_is_the_formulas_over_pytorchs_gradients(name, method):
    x = TWINS[name].inputs(3)
    ours, theirs = by_hand(name, method, x), outputs(name, method, x)["attribution"]
    assert ours.shape == theirs.shape
    assert np.abs(ours).max() > 0
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(ours).max()


@pytest.mark.parametrize("method", [method for method in COMPILED if method in METHODS])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_explanation_is_what_explain_gives(name, method):
    x = TWINS[name].inputs(1)
    model = onnx_adapter(name, True)
    given = x if len(x) > 1 else x[0]
    options = {"layer": layer(name, method)} if layer(name, method) else {}
    (one,) = pellucid.explain(model, given, method, **options)
    found = outputs(name, method, x)
    scale = np.abs(one.attribution).max()
    assert np.abs(found["attribution"][0] - one.attribution).max() <= TOLERANCE * scale
    np.testing.assert_allclose(found["heatmap"][0], one.heatmap, atol=1e-4)
    assert found["target"][0] == one.target
    assert found["score"][0] == pytest.approx(one.score, rel=1e-5)


@pytest.mark.parametrize("method", COMPILED)
def test_the_batch_is_dynamic_and_the_models_own_outputs_are_untouched(method):
    name = "residual"
    x = TWINS[name].inputs(4)[0]
    together = outputs(name, method, (x,))
    alone = [outputs(name, method, (image[None],)) for image in x]
    own = onnx_adapter(name, True).run(x)["output"]
    np.testing.assert_allclose(next(iter(together.values())), own, rtol=1e-5, atol=1e-6)
    for key, value in together.items():
        rows = np.concatenate([one[key] for one in alone])
        np.testing.assert_allclose(rows, value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_integrated_gradients_add_up_to_the_change_of_the_score():
    x, model = TWINS["residual"].inputs(3)[0], onnx_adapter("residual", True)
    gaps = []
    for steps in (5, 500):
        found = pellucid.compile(model, "integrated-gradients", steps=steps)(x)
        rows = np.arange(3), [one.target for one in found]
        scores = [model.run(image, ["logits"])["logits"][rows] for image in (x, 0 * x)]
        sums = [one.attribution.sum() for one in found]
        gaps.append(np.abs(sums - (scores[0] - scores[1])).max() / np.abs(scores[0]).max())
    assert gaps[1] < 0.003
    assert gaps[1] < 0.2 * gaps[0]


@pytest.mark.parametrize("method", COMPILED)
def test_the_file_is_valid_and_standard_throughout(method):
    model = pellucid.compile(onnx_adapter("residual", True), method).model
    onnx.checker.check_model(model, full_check=True)
    domains = set()

    def visit(graph):
        for node in graph.node:
            domains.add(node.domain)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(model.graph)
    assert domains == {""}
    assert {opset.domain for opset in model.opset_import} == {""}
    assert all(value.type.tensor_type.HasField("shape") for value in model.graph.output)


def test_averages_share_the_weights_with_the_network_and_do_not_repeat_them():
    model = onnx_adapter("residual", True)
    once = pellucid.compile(model, "saliency").model.ByteSize()
    few, many = (
        pellucid.compile(model, "integrated-gradients", steps=steps).model.ByteSize()
        for steps in (2, 64)
    )
    assert many - few < 1000  # the steps are a loop
    assert few < 1.6 * once


def test_defaults_and_signs_are_those_of_the_methods():
    for name in (name for name in COMPILED if name in METHODS):
        known = METHODS[name].parameters
        for option, default in DEFAULTS.get(name, {}).items():
            assert option == "fuse" or known[option] == default
        assert METHODS[name].signed == (name in SIGNED)


# ---- models of the frameworks -------------------------------------------------------------------


def test_the_layers_that_an_export_marks_do_not_break_the_runtimes_layout():
    """A mask by comparison would cost a reordering of the tensor there and one back."""
    from torch import nn

    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
    body = [first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU()]
    module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    explained = pellucid.load(module)
    explained.prepare(np.zeros((1, 3, 12, 12), np.float32))
    kinds = Counter(
        node.op_type
        for node in pellucid.compile(explained, "guided-backprop", target=1).model.graph.node
    )
    assert kinds["HardSigmoid"] == kinds["Relu"] / 2 == 2  # one of two is the guided rule's own


def test_recipro_cam_of_a_fine_layer_is_refused_before_its_masks_fill_the_memory():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    model = pellucid.load(network, preprocess={"size": 200})
    with pytest.raises(UnsupportedError, match="has 200 x 200 of them: choose a later"):
        pellucid.compile(model, "recipro-cam", layer="0")


@pytest.mark.parametrize("framework", ["torch", "keras", "tf_keras"])
@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "recipro-cam", "guided-backprop"])
def test_a_model_of_a_framework_is_compiled_under_its_own_names(framework, method, tmp_path):
    model, x = adapter("residual", framework), TWINS["residual"].inputs(3)[0]
    where = {"layer": TWINS["residual"].matched["stage.block1"]} if method in CAMS else {}
    if framework == "torch" and where:
        where = {"layer": "stage.block1"}
    explainer = pellucid.compile(model, method, **where)
    assert explainer.facts["model_sha256"] == model.fingerprint
    assert explainer.facts["framework"] == model.framework
    explainer = pellucid.load_explainer(explainer.save(tmp_path / "e.onnx"))
    own = model.inputs[0].own_layout(x)
    found = explainer(own)
    if method == "recipro-cam":
        expected = pellucid.compile(TWINS["residual"].onnx(False), method, layer=block(x))(x)
    else:
        expected = pellucid.explain(model, own, method, **where)
    for one, other in zip(expected, found, strict=True):
        assert (one.target, other.layer) == (other.target, where.get("layer"))
        assert other.score == pytest.approx(one.score, rel=1e-5)
        scale = np.abs(one.attribution).max()
        np.testing.assert_allclose(other.attribution, one.attribution, atol=TOLERANCE * scale)
        np.testing.assert_allclose(other.heatmap, one.heatmap, atol=1e-4)


def block(x):
    """The layer of the exported file that holds what PyTorch's `stage.block1` gives."""
    return matches("residual", False)["stage.block1"]


def test_several_layers_are_fused_as_explain_does():
    model, x = adapter("residual", "torch"), TWINS["residual"].inputs(3)[0]
    layers = ["block1", "stage.block1", "stage.block2"]
    for fuse in ("mean", "max"):
        expected = pellucid.explain(model, x, layer=layers, fuse=fuse)
        found = pellucid.compile(model, layer=layers, fuse=fuse)(x)
        for one, other in zip(expected, found, strict=True):
            assert one.layer == other.layer == tuple(layers)
            np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "conv1d", "plain"])  # softmax, sigmoid, neither
@pytest.mark.parametrize("method", ["grad-cam", "saliency", "integrated-gradients", "recipro-cam"])
def test_probabilities_are_explained_too(name, method):
    model, x = adapter(name, "torch"), TWINS[name].inputs(2)[0]
    found = pellucid.compile(model, method, space="probability", target=1)(x)
    if method in METHODS:
        expected = pellucid.explain(model, x, method, space="probability", target=1)
        for one, other in zip(expected, found, strict=True):
            scale = np.abs(one.attribution).max()
            np.testing.assert_allclose(other.attribution, one.attribution, atol=TOLERANCE * scale)
    for one in found:
        assert one.space == "probability"
        assert one.score == pytest.approx(one.probability, rel=1e-5)


@pytest.mark.parametrize("baseline", ["mean", "blurred", "array"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_integrated_gradients_begin_where_they_are_told(framework, baseline):
    model, x = adapter("residual", framework), TWINS["residual"].inputs(2)[0]
    given = TWINS["residual"].inputs(1, seed=5)[0][0] if baseline == "array" else baseline
    own = model.inputs[0].own_layout(x)
    options = {"baseline": given, "steps": 8}
    expected = pellucid.explain(model, own, "integrated-gradients", **options)
    found = pellucid.compile(model, "integrated-gradients", **options)(own)
    for one, other in zip(expected, found, strict=True):
        scale = np.abs(one.attribution).max()
        np.testing.assert_allclose(other.attribution, one.attribution, atol=TOLERANCE * scale)


@pytest.mark.parametrize("method", COMPILED)
def test_a_network_in_half_precision_is_compiled(method):
    x = batch(2)
    half = pellucid.compile(network(element=onnx.TensorProto.FLOAT16), method, target=2)(x)
    full = pellucid.compile(network(), method, target=2)(x.astype(np.float16).astype(np.float32))
    for one, other in zip(full, half, strict=True):
        difference = np.linalg.norm(other.attribution - one.attribution)
        assert difference < 1e-2 * np.linalg.norm(one.attribution)
        assert other.score == pytest.approx(one.score, rel=1e-2, abs=1e-2)


# ---- targets, sizes, layouts ------------------------------------------------------------------


def test_the_class_can_be_an_input_one_for_all_or_one_each():
    model, x = onnx_adapter("residual", True), TWINS["residual"].inputs(3)[0]
    plain = onnxruntime.InferenceSession(
        pellucid.compile(model, target="input").model.SerializeToString()
    )
    image = plain.get_inputs()[0].name
    assert [i.name for i in plain.get_inputs()] == [image, "class_index"]
    for classes in ([7], [1, 4, 9]):
        feeds = {image: x, "class_index": np.array(classes, np.int64)}
        attribution, target = plain.run(["attribution", "target"], feeds)
        targets = classes * 3 if len(classes) == 1 else classes
        expected = pellucid.explain(model, x, target=targets)
        assert target.tolist() == targets
        for one, other in zip(expected, attribution, strict=True):
            np.testing.assert_allclose(other, one.attribution, atol=1e-5 * one.attribution.max())


def test_many_images_are_explained_a_few_at_a_time(monkeypatch):
    explainer = pellucid.compile(onnx_adapter("plain", True), "saliency", target="input")
    x = TWINS["plain"].inputs(5)[0]
    together = explainer(x, target=[0, 1, 2, 0, 1])
    sizes = []
    run = type(explainer._adapter).run

    def counted(self, batch, *rest):
        sizes.append(len(batch[0]))
        return run(self, batch, *rest)

    monkeypatch.setattr(type(explainer._adapter), "run", counted)
    monkeypatch.setattr("pellucid.compiling.compiled._MEMORY", 1)
    one_by_one = explainer(x, target=[0, 1, 2, 0, 1])
    assert sizes == [1] * 5
    for ours, other in zip(together, one_by_one, strict=True):
        assert ours.target == other.target
        assert np.allclose(ours.attribution, other.attribution, rtol=1e-5, atol=1e-7)


def test_a_class_or_a_label_can_be_fixed_in_the_file():
    labels = [f"class {index}" for index in range(10)]
    model = pellucid.load(TWINS["residual"].onnx(), labels=labels)
    x = TWINS["residual"].inputs(2)[0]
    by_index, by_label = (
        pellucid.compile(model, target=4),
        pellucid.compile(model, target="class 4"),
    )
    for explainer in (by_index, by_label):
        one = explainer(x)[0]
        assert (one.target, one.label) == (4, "class 4")
    with pytest.raises(InputError, match="10 classes"):
        pellucid.compile(model, target=10)
    with pytest.raises(TargetError, match="target='input'"):
        by_index(x, target=3)


def test_a_dense_output_is_explained_by_its_mean():
    x = batch(2)
    model = network(tail="")
    del model.graph.node[-2:]  # the mean and the dense layer
    model.graph.output[0].name = "relu"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("N", 8, 8, 8):
        dim = model.graph.output[0].type.tensor_type.shape.dim.add()
        dim.dim_param, dim.dim_value = (size, 0) if size == "N" else ("", size)
        if size == "N":
            dim.dim_param = "N"
    expected = pellucid.explain(pellucid.load(model), x, layer="pool")
    found = pellucid.compile(model, layer="pool")(x)
    for one, other in zip(expected, found, strict=True):
        assert one.target == other.target
        assert one.score == pytest.approx(other.score, rel=1e-5)
        np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-7)


def test_a_channels_last_model_gives_its_attribution_channels_first():
    x = batch(2)
    last, first = (pellucid.compile(network(channels_last=c), "input-x-gradient") for c in (1, 0))
    for one, other in zip(last(x.transpose(0, 2, 3, 1)), first(x), strict=True):
        np.testing.assert_allclose(one.attribution, other.attribution, atol=1e-6)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


def test_the_heatmap_has_the_size_that_was_asked_for():
    model, x = onnx_adapter("residual", True), TWINS["residual"].inputs(2)[0]
    compiled = pellucid.compile(model, size=(50, 70)).model
    plain = onnxruntime.InferenceSession(compiled.SerializeToString())
    heat, raw = plain.run(["heatmap", "attribution"], {plain.get_inputs()[0].name: x})
    for drawn, one in zip(heat, raw, strict=True):
        np.testing.assert_allclose(drawn, resize_map(one / one.max(), (50, 70)), atol=1e-5)


def test_an_empty_map_is_zero_and_no_nan():
    model = onnx_adapter("residual", True)
    found = pellucid.compile(model)
    plain = onnxruntime.InferenceSession(found.model.SerializeToString())
    feeds = {plain.get_inputs()[0].name: np.zeros((1, 3, 32, 32), np.float32)}
    (heat,) = plain.run(["heatmap"], feeds)
    assert np.isfinite(heat).all()


# ---- files ------------------------------------------------------------------------------------


def test_a_saved_explainer_says_what_it_is_and_explains_pictures(tmp_path):
    labels = [f"class {index}" for index in range(10)]
    settings = {"mean": (0.5, 0.4, 0.3), "std": (0.2,), "scale": 1 / 255, "size": (32, 32)}
    model = pellucid.load(TWINS["residual"].onnx(), labels=labels, preprocess=settings)
    path = pellucid.compile(model).save(tmp_path / "cam.onnx")
    explainer = pellucid.load_explainer(path)
    assert explainer.facts["model_sha256"] == model.fingerprint
    assert explainer.facts["method"] == "grad-cam"
    assert explainer.facts["layer"] == choose_layer(model).name
    assert explainer.facts["labels"] == labels
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    one, other = explainer(noise), pellucid.explain(model, noise)
    np.testing.assert_allclose(one.attribution, other.attribution, rtol=1e-4, atol=1e-6)
    assert one.heatmap.shape == (60, 90)
    assert (one.label, one.layer) == (other.label, other.layer)
    assert one.probability == pytest.approx(other.probability, rel=1e-4)
    assert [index for index, _, _ in one.top] == [index for index, _, _ in other.top]


def test_the_command_compiles(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "model.onnx")
    assert main(["compile", "model.onnx", "--method", "saliency", "-o", "saliency.onnx"]) == 0
    assert "saliency.onnx" in capfd.readouterr().out
    x = batch(1)
    one = pellucid.load_explainer("saliency.onnx")(x)[0]
    assert one.method == "saliency"
    assert main(["compile", "model.onnx", "--target", "3", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["file"], said["layer"], said["target"]) == ("model-grad-cam.onnx", "relu:1", 3)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("picture.png")
    assert pellucid.load_explainer("model-grad-cam.onnx")("picture.png").target == 3
    assert main(["compile", "model.onnx", "-o", "model.onnx"]) == 2
    assert main(["compile", "model.onnx", "--method", "grad-cum"]) == 2
    assert main(["compile", "model.onnx", "--method", "integrated-gradients", "--option",
                 "steps=4"]) == 0  # fmt: skip


# ---- what it refuses --------------------------------------------------------------------------


def test_what_cannot_be_compiled_is_said():
    model = onnx_adapter("residual", True)
    with pytest.raises(MethodError, match="Did you mean 'saliency'"):
        pellucid.compile(model, "saliencey")
    with pytest.raises(MethodError, match=r"no option 'step'.*Did you mean 'steps'"):
        pellucid.compile(model, "integrated-gradients", step=3)
    with pytest.raises(MethodError, match="steps=0"):
        pellucid.compile(model, "integrated-gradients", steps=0)
    with pytest.raises(MethodError, match="leave layer= out"):
        pellucid.compile(model, "saliency", layer="node_relu")
    with pytest.raises(LayerError, match="no spatial grid"):
        pellucid.compile(model, layer="node_linear")
    with pytest.raises(LayerError, match="does not depend"):
        pellucid.compile(onnx_adapter("two_by_two", True), layer="node_upsample_nearest2d")
    with pytest.raises(MethodError, match="empty list"):
        pellucid.compile(model, layer=[])
    with pytest.raises(MethodError, match="relu=1"):
        pellucid.compile(model, relu=1)
    with pytest.raises(MethodError, match="'mean' or 'max'"):
        pellucid.compile(model, fuse="sum")
    with pytest.raises(MethodError, match="'uniform' cannot be compiled"):
        pellucid.compile(model, "integrated-gradients", baseline="uniform")
    with pytest.raises(MethodError, match=r"shape \(2,\), an image \(3, 32, 32\)"):
        pellucid.compile(model, "integrated-gradients", baseline=np.zeros(2))
    with pytest.raises(InputError, match="space='softmax'"):
        pellucid.compile(model, space="softmax")


def contrib(operator):
    """A network whose last but one node is an operator of onnxruntime's own."""
    model = network()
    model.graph.node[-2].op_type, model.graph.node[-2].domain = operator, "com.microsoft"
    model.graph.node[-2].ClearField("attribute")
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def test_an_operator_that_is_not_standard_is_named():
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.Inverse"):
        pellucid.compile(contrib("Inverse"))


def test_an_operator_that_a_tool_fused_becomes_standard():
    x = batch(2)
    compiled = pellucid.compile(contrib("QuickGelu"), "saliency")
    assert {node.domain for node in compiled.model.graph.node} == {""}
    expected = pellucid.explain(pellucid.load(contrib("QuickGelu")), x, method="saliency")
    for one, other in zip(expected, compiled(x), strict=True):
        np.testing.assert_allclose(other.attribution, one.attribution, rtol=1e-4, atol=1e-6)


def test_a_file_that_is_no_explainer_is_refused(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    with pytest.raises(LoadError, match="no compiled explanation"):
        pellucid.load_explainer(tmp_path / "m.onnx")

"""`like="torch-cam"` and `like="xplique"` against what these libraries define.

Neither can be installed beside the TensorFlow used here, or without torchvision. So their
definitions are written out below, in torch and in TensorFlow's own operations, and compared with:
torch-cam 0.5.0.dev0, xplique 2.0.0.
"""

from __future__ import annotations

import re
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import pellucid
from pellucid.errors import LayerError, MethodError
from pellucid.methods.registry import METHODS
from tests.twins import TWINS

from .test_grad_cam import TARGETS, assert_same, explained
from .test_gradient_methods import noise_of


def activations_and_gradients(network, layers, x):
    """Values of layers and the gradient of each image's target at them."""
    kept = {}

    def keep(name):
        return lambda module, given, output: kept.setdefault(name, output)

    handles = [network.get_submodule(n).register_forward_hook(keep(n)) for n in layers]
    scores = network(torch.from_numpy(x))[range(len(x)), TARGETS]
    for handle in handles:
        handle.remove()
    values = [kept[name] for name in layers]
    return values, torch.autograd.grad(scores.sum(), values)


# ---- torch-cam -----------------------------------------------------------------------------------


def weights_of_torch_cam(method, a, g):
    if method == "grad-cam":
        return g.mean((2, 3), keepdim=True)
    if method == "xgrad-cam":
        return (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-8)
    if method == "layer-cam":
        return g.clamp(min=0)
    alpha, usable = g**2, g**2 > 0
    divisor = 2 * alpha + (g**3 * a).sum((2, 3), keepdim=True)
    alpha[usable].div_(divisor[usable] + 1e-8)  # of a copy: alpha stays what it is
    return (alpha * g.clamp(min=0)).sum((2, 3), keepdim=True)


def torch_cam(method, network, layers, x):
    maps = []
    for a, g in zip(*activations_and_gradients(network, layers, x), strict=True):
        cam = (weights_of_torch_cam(method, a, g) * a).sum(1).clamp(min=0)
        cam = cam - cam.amin((1, 2), keepdim=True)
        maps.append(cam / (cam.amax((1, 2), keepdim=True) + 1e-8))
    if len(maps) > 1:
        size = tuple(max(m.shape[axis] for m in maps) for axis in (1, 2))
        maps = [torch.tanh(2 * m) for m in maps] if method == "layer-cam" else maps
        maps = [functional.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in maps]
    return torch.stack(maps).amax(0).detach().numpy()


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "xgrad-cam", "layer-cam"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [("plain", ["conv3"]), ("separable", ["depthwise2_relu"]), ("plain", ["conv1", "conv2"])],
)
def test_like_torch_cam(method, name, layers):
    network, (x,) = TWINS[name].torch(), TWINS[name].inputs()
    options = {"method": method, "layer": layers, "target": TARGETS, "like": "torch-cam"}
    assert_same(explained(network, x, **options), torch_cam(method, network, layers, x))


@torch.no_grad()
def score_cam_of_torch_cam(network, layers, x):
    """Channels are scaled on their own grid, and then enlarged; the scores are differences."""
    tensor, maps = torch.from_numpy(x), []
    with torch.enable_grad():
        activations, _ = activations_and_gradients(network, layers, x)
    for a in activations:
        masks = a - a.amin((2, 3), keepdim=True)
        masks = masks / (masks.amax((2, 3), keepdim=True) + 1e-8)
        masks = functional.interpolate(masks, x.shape[2:], mode="bilinear", align_corners=False)
        scores = torch.stack([
            network(own[:, None] * image)[:, target] - network(image[None])[:, target]
            for own, image, target in zip(masks, tensor, TARGETS, strict=True)
        ])  # fmt: skip
        cam = (torch.softmax(scores, 1)[:, :, None, None] * a).sum(1).clamp(min=0)
        cam = cam - cam.amin((1, 2), keepdim=True)
        maps.append(cam / (cam.amax((1, 2), keepdim=True) + 1e-8))
    size = tuple(max(m.shape[axis] for m in maps) for axis in (1, 2))
    drawn = [functional.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in maps]
    return torch.stack(drawn).amax(0).numpy()


@pytest.mark.parametrize(
    ("name", "layers"),
    [("plain", ["conv3"]), ("separable", ["depthwise2_relu"]), ("plain", ["conv1", "conv2"])],
)
def test_score_cam_like_torch_cam(name, layers):
    network, (x,) = TWINS[name].torch(), TWINS[name].inputs()
    options = {"method": "score-cam", "layer": layers, "target": TARGETS}
    theirs = score_cam_of_torch_cam(network, layers, x)
    assert_same(explained(network, x, like="torch-cam", **options), theirs)


# ---- xplique -------------------------------------------------------------------------------------


def xplique_weights(method, a, g):
    if method == "grad-cam":
        return g.mean((2, 3), keepdim=True)
    divisor = 2 * g**2 + g**3 * a.mean((2, 3), keepdim=True)
    divisor = divisor + 1e-4 * (divisor == 0)
    return (g**2 / divisor * g.clamp(min=0)).mean((2, 3), keepdim=True)


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++"])
@pytest.mark.parametrize(("name", "layer"), [("plain", "conv3"), ("plain", "conv2")])
def test_class_activation_maps_like_xplique(method, name, layer):
    import tensorflow as tf

    network, (x,) = TWINS[name].torch(), TWINS[name].inputs()
    model = TWINS[name].keras()
    ((a,), (g,)) = activations_and_gradients(network, [layer], x)
    cam = (xplique_weights(method, a, g) * a).sum(1).clamp(min=0).detach().numpy()
    theirs = tf.image.resize(cam[..., None], (32, 32), method="bicubic")[..., 0]
    images = np.moveaxis(x, 1, -1)
    options = {"method": method, "layer": layer, "target": TARGETS, "like": "xplique"}
    assert_same(explained(model, images, **options), theirs)


@pytest.mark.parametrize(
    ("old", "new"), [((7, 7), (224, 224)), ((5, 9), (33, 70)), ((6, 6), (4, 3))]
)
def test_cubic_resizing_is_tensorflow_s(old, new):
    import tensorflow as tf

    from pellucid.methods.libraries import style_of

    maps = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    theirs = tf.image.resize(maps[..., None], new, method="bicubic")[..., 0]
    assert_same(style_of("xplique", "grad-cam").finish([maps], new), theirs)


def gradients(network, images, targets):
    tensor = torch.from_numpy(images).requires_grad_()
    score = network(tensor)[range(len(images)), targets].sum()
    return torch.autograd.grad(score, tensor)[0].numpy()


def xplique(method, network, x, statistic="mean"):
    if method == "saliency":
        return np.abs(gradients(network, x, TARGETS)).max(axis=1)
    if method == "input-x-gradient":
        return (x * gradients(network, x, TARGETS)).mean(axis=1)
    if method == "integrated-gradients":
        path = [gradients(network, np.float32(t) * x, TARGETS) for t in np.linspace(0, 1, 50)]
        trapezia = [(one + other) / 2 for one, other in pairwise(path)]
        return (x * np.mean(trapezia, axis=0)).mean(axis=1)
    noisy = x + np.float32(0.2) * noise_of(1, 50, x)
    found = np.stack([gradients(network, one, TARGETS) for one in noisy])
    if statistic == "mean":
        return found.mean(axis=0).mean(axis=1)
    statistics = {"square": (found**2).mean(axis=0), "variance": found.var(axis=0, ddof=1)}
    return statistics[statistic].mean(axis=1)


@pytest.mark.parametrize(
    ("method", "statistic"),
    [("saliency", None), ("input-x-gradient", None), ("integrated-gradients", None),
     ("smoothgrad", "mean"), ("smoothgrad", "square"), ("smoothgrad", "variance")],
)  # fmt: skip
def test_pixel_methods_like_xplique(method, statistic):
    network, (x,) = TWINS["plain"].torch(), TWINS["plain"].inputs()
    options = {} if statistic is None else {"statistic": statistic}
    theirs = xplique(method, network, x, **options)
    if method == "smoothgrad":
        options["seed"] = 1
    options |= {"method": method, "target": TARGETS, "like": "xplique"}
    assert_same(explained(network, x, **options), theirs)


@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet"])
def test_rectified_gradients_like_xplique_are_means_over_the_channels(method):
    network, (x,) = TWINS["plain"].torch(), TWINS["plain"].inputs()
    options = {"method": method, "target": TARGETS}
    plain = explained(network, x, **options)
    assert_same(explained(network, x, like="xplique", **options), plain.mean(axis=1))


@torch.no_grad()
def occlusion_of_xplique(network, x, window=3, stride=3):
    """Windows of 0.5 that lie inside the image; what falls by them is added up."""
    found = np.zeros((len(x), *x.shape[2:]), np.float32)
    places = [range(0, length - window + 1, stride) for length in x.shape[2:]]
    for image, target, drawn in zip(x, TARGETS, found, strict=True):
        for top, left in product(*places):
            part = slice(top, top + window), slice(left, left + window)
            hidden = image.copy()
            hidden[:, *part] = 0.5
            before, after = network(torch.from_numpy(np.stack([image, hidden])))[:, target]
            drawn[part] += float(before - after)
    return found


@pytest.mark.parametrize("options", [{}, {"window": 7, "stride": 4}])
def test_occlusion_like_xplique(options):
    network, (x,) = TWINS["plain"].torch(), TWINS["plain"].inputs()
    ours = explained(network, x, method="occlusion", target=TARGETS, like="xplique", **options)
    theirs = occlusion_of_xplique(network, x, **options)
    assert not theirs[:, -1].any()  # of 32 pixels the last are in no window
    assert_same(ours, theirs)


# ---- what there is not ---------------------------------------------------------------------------


def test_what_a_library_does_not_have_is_refused_with_what_there_is():
    network, (x,) = TWINS["plain"].torch(), TWINS["plain"].inputs()
    with pytest.raises(MethodError, match=r"hires-cam .* those of 'paper', 'pytorch-grad-cam'\."):
        pellucid.explain(network, x, "hires-cam", like="torch-cam")
    with pytest.raises(MethodError, match=r"blur-ig gives the paper's array alone"):
        pellucid.explain(network, x, "blur-ig", like="captum")
    with pytest.raises(MethodError, match=r"occlusion .* 'captum', 'xplique'\."):
        pellucid.explain(network, x, "occlusion", like="torch-cam")
    with pytest.raises(LayerError, match="xplique draws one layer at a time"):
        pellucid.explain(network, x, "grad-cam", like="xplique", layer=["conv1", "conv2"])


def test_the_published_table_names_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "libraries.md").read_text()
    libraries = {library for method in METHODS.values() for library in method.like} - {"paper"}
    told = set()
    for line in page.splitlines():
        if line.startswith("| `"):
            _, methods, *_, likes, _ = line.split("|")
            names = re.findall(r"`([^`]+)`", methods)
            told |= set(names)
            there_are = {library for name in names for library in METHODS[name].like}
            assert {one for one in libraries if one in likes} == there_are - {"paper"}, names
    assert told >= {method.name for method in METHODS.values() if len(method.like) > 1}


# What each library has of the methods that Pellucid has, by Pellucid's names.
GRADIENTS = {"saliency", "input-x-gradient", "integrated-gradients", "smoothgrad"}
ASKING = {"lime", "kernel-shap", "occlusion"}
BOTH = {
    "captum": GRADIENTS | ASKING | {
        "grad-cam", "guided-grad-cam", "guided-backprop", "deconvnet", "deeplift", "lrp",
        "layer-conductance", "expected-gradients", "shapley-sampling",
    },
    "pytorch-grad-cam": {
        "grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam", "score-cam",
        "ablation-cam", "eigen-cam", "eigengrad-cam", "fullgrad", "guided-backprop",
    },
    "tf-keras-vis": {
        "grad-cam", "grad-cam++", "layer-cam", "score-cam", "saliency", "smoothgrad",
        "guided-backprop",
    },
    "torch-cam": {"grad-cam", "grad-cam++", "xgrad-cam", "layer-cam", "score-cam"},
    "xplique": GRADIENTS | ASKING | {
        "grad-cam", "grad-cam++", "guided-backprop", "deconvnet", "rise", "sobol",
    },
}  # fmt: skip


@pytest.mark.parametrize("library", BOTH)
def test_every_method_of_a_library_is_given_or_the_page_says_why_not(library):
    page = (Path(__file__).parents[2] / "docs" / "libraries.md").read_text()
    (_, missing) = page.split("## What has no `like=`")
    rows = [line.split("|") for line in missing.splitlines() if line.startswith("|")]
    told = {row[2].strip().strip("`") for row in rows if library in row[1]}
    given = {name for name, method in METHODS.items() if library in method.like}
    assert BOTH[library] == given | told


def test_xplique_takes_the_last_layer_with_filters():
    (x,) = TWINS["separable"].inputs()
    (one, _) = pellucid.explain(TWINS["separable"].keras(), np.moveaxis(x, 1, -1), like="xplique")
    assert one.layer == "separable"
    assert one.layer_reason == "the last convolution, which xplique takes"

"""Score-CAM, Ablation-CAM and the Eigen-CAMs equal their peers' with `like=`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pellucid
from tests.twins import TWINS

from .test_grad_cam import TARGETS, assert_same, explained


def peer(library: Any, name: str, network: Any, layer: str, x: np.ndarray) -> np.ndarray:
    targets = [library.utils.model_targets.ClassifierOutputTarget(index) for index in TARGETS]
    with getattr(library, name)(network, [network.get_submodule(layer)]) as cam:
        return np.asarray(cam(torch.from_numpy(x), targets))


@pytest.mark.parametrize(("name", "layer"), [("plain", "conv3"), ("separable", "depthwise2_relu")])
def test_score_cam_like_pytorch_grad_cam(pytorch_grad_cam: Any, name: str, layer: str) -> None:
    twin = TWINS[name]
    network, (x,) = twin.torch(), twin.inputs(2)
    ours = explained(network, x, method="score-cam", layer=layer, target=TARGETS,
                     like="pytorch-grad-cam")  # fmt: skip
    assert_same(ours, peer(pytorch_grad_cam, "ScoreCAM", network, layer, x))


def test_ablation_cam_like_pytorch_grad_cam(pytorch_grad_cam: Any) -> None:
    twin = TWINS["separable"]
    network, (x,) = twin.torch(), twin.inputs(2)
    layer = "depthwise2_relu"  # it is zero somewhere; elsewhere the peer ablates with -1e7
    ours = explained(network, x, method="ablation-cam", layer=layer, target=TARGETS,
                     like="pytorch-grad-cam")  # fmt: skip
    assert_same(ours, peer(pytorch_grad_cam, "AblationCAM", network, layer, x))


@pytest.mark.parametrize("method", ["eigen-cam", "eigengrad-cam"])
@pytest.mark.parametrize(("name", "layer"), [("separable", "depthwise2_relu"), ("plain", "conv2")])
def test_eigen_cams_like_pytorch_grad_cam_but_for_the_sign_that_it_leaves_to_lapack(
    pytorch_grad_cam: Any, method: str, name: str, layer: str
) -> None:
    twin = TWINS[name]
    network, (x,) = twin.torch(), twin.inputs(2)
    name = {"eigen-cam": "EigenCAM", "eigengrad-cam": "EigenGradCAM"}[method]
    theirs = peer(pytorch_grad_cam, name, network, layer, x)
    options = {"method": method, "layer": layer, "target": TARGETS}
    ours = explained(network, x, like="pytorch-grad-cam", **options)
    raw = explained(network, x, centred=True, relu=False, **options)
    from pellucid.methods.libraries import style_of

    turned = style_of("pytorch-grad-cam", method).finish([-raw], x.shape[2:])
    for one, other, expected in zip(ours, turned, theirs, strict=True):
        close = [np.abs(m - expected).max() <= 1e-5 * expected.max() for m in (one, other)]
        assert any(close)


@pytest.mark.parametrize(("name", "layer"), [("plain", "conv3"), ("separable", "separable_relu")])
@pytest.mark.parametrize("channels", [None, 6])
def test_score_cam_like_tf_keras_vis(
    tf_keras_vis: Any, name: str, layer: str, channels: int | None
) -> None:
    from tf_keras_vis.scorecam import Scorecam

    twin = TWINS[name]
    model, x = twin.keras(), np.moveaxis(twin.inputs(1)[0], 1, -1)  # it takes top channels of all
    theirs = Scorecam(model)(
        tf_keras_vis.utils.scores.CategoricalScore([1]), x, penultimate_layer=layer,
        seek_penultimate_conv_layer=False, max_N=channels,
    )  # fmt: skip
    # The peer takes a softmax of whatever the network returns: here of logits.
    ours = np.stack([e.attribution for e in pellucid.explain(
        model, x, "score-cam", layer=layer, target=[1], like="tf-keras-vis",
        space="probability", channels=channels,
    )])  # fmt: skip
    assert_same(ours, theirs)

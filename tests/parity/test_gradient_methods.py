"""Pixel methods equal their peers' where these have no limits: every rectifier an `nn.ReLU`.

Noise is drawn here and handed to the peer in place of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pellucid

from .test_grad_cam import TARGETS, assert_same, explained

captum = pytest.importorskip("captum.attr")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


CAPTUM = {
    "saliency": lambda net, x, target: captum.Saliency(net).attribute(x, target=target),
    "input-x-gradient": lambda net, x, target: captum.InputXGradient(net).attribute(
        x, target=target
    ),
    "guided-backprop": lambda net, x, target: captum.GuidedBackprop(net).attribute(
        x, target=target
    ),
    "deconvnet": lambda net, x, target: captum.Deconvolution(net).attribute(x, target=target),
    "integrated-gradients": lambda net, x, target: captum.IntegratedGradients(net).attribute(
        x, target=target
    ),
    "guided-grad-cam": lambda net, x, target: captum.GuidedGradCam(net, net[4]).attribute(
        x, target=target
    ),
}


@pytest.mark.filterwarnings("ignore:Setting")
@pytest.mark.parametrize("method", CAPTUM)
def test_equals_captum(network, method):
    x = np.random.default_rng(0).standard_normal((3, 3, 14, 14)).astype(np.float32)
    targets = [2, 0, 3]
    layer = {"layer": "4"} if method == "guided-grad-cam" else {}
    explanations = pellucid.explain(network, x, method, target=targets, like="captum", **layer)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = CAPTUM[method](network, tensor, torch.tensor(targets)).detach().numpy()
    ours = np.stack([e.attribution for e in explanations])
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def noise_of(seed: int, samples: int, x: np.ndarray) -> np.ndarray:
    """Draw what `smoothgrad` draws: `(samples, N, C, h, w)` of deviation one."""
    return np.random.default_rng(seed).standard_normal((samples, *x.shape), np.float32)


@pytest.mark.parametrize(
    ("statistic", "kind"),
    [("mean", "smoothgrad"), ("square", "smoothgrad_sq"), ("variance", "vargrad")],
)
def test_noise_tunnels_equal_captum_s(network, monkeypatch, statistic, kind):
    x = np.random.default_rng(0).standard_normal((2, 3, 14, 14)).astype(np.float32)
    drawn = torch.from_numpy(noise_of(3, 5, x)).transpose(0, 1).flatten(0, 1)  # image by image
    monkeypatch.setattr(torch, "normal", lambda mean, deviation: mean + deviation * drawn)
    tunnel = captum.NoiseTunnel(captum.Saliency(network))
    theirs = tunnel.attribute(torch.from_numpy(x), target=torch.tensor([2, 0]), nt_type=kind)
    ours = explained(network, x, method="smoothgrad", target=[2, 0], like="captum", seed=3,
                     statistic=statistic)  # fmt: skip
    assert_same(ours, theirs.detach().numpy())


@pytest.mark.parametrize(("window", "stride"), [(4, 2), (5, 4), ((3, 6), (3, 4))])
def test_occlusion_equals_captum_s(network, window, stride):
    x = np.random.default_rng(0).standard_normal((1, 3, 14, 14)).astype(np.float32)
    sides = window if isinstance(window, tuple) else (window, window)
    steps = stride if isinstance(stride, tuple) else (stride, stride)
    theirs = captum.Occlusion(network).attribute(
        torch.from_numpy(x), (3, *sides), strides=(3, *steps), target=1
    )
    (ours,) = pellucid.explain(network, x, "occlusion", target=1, like="captum", window=window,
                               stride=stride)  # fmt: skip
    for channel in theirs.numpy()[0]:  # which it hides together
        assert_same(ours.attribution, channel)


def test_guided_backprop_equals_pytorch_grad_cam_s(pytorch_grad_cam: Any, network) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 14, 14)).astype(np.float32)
    ours = explained(network, x, method="guided-backprop", target=2, like="pytorch-grad-cam")
    theirs = pytorch_grad_cam.GuidedBackpropReLUModel(network, "cpu")(torch.from_numpy(x), 2)
    assert_same(ours[0], theirs.transpose(2, 0, 1))


def test_lrp_equals_captum_s():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.dense = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(864, 4)

        def forward(self, x):
            return self.dense(self.relu(self.conv(x)).flatten(1))  # captum knows no nn.Flatten

    torch.manual_seed(0)
    net, x = Network().eval(), np.random.default_rng(0).standard_normal((2, 3, 14, 14), np.float32)
    tensor, targets = torch.from_numpy(x).requires_grad_(), torch.tensor([2, 0])
    theirs = captum.LRP(net).attribute(tensor, target=targets).detach().numpy()
    assert_same(explained(net, x, method="lrp", target=[2, 0], like="captum"), theirs)


@pytest.fixture(scope="module")
def rectified():
    """A network whose rectifiers are all where tf-keras-vis looks for them."""
    import keras

    keras.utils.set_random_seed(0)
    layers, image = keras.layers, keras.Input((12, 12, 3))
    y = layers.Activation("relu")(layers.Conv2D(6, 3)(image))
    y = layers.Conv2D(8, 3, activation="relu")(layers.MaxPooling2D()(y))
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(y)))


@pytest.mark.parametrize("method", ["saliency", "guided-backprop", "smoothgrad"])
def test_equals_tf_keras_vis(tf_keras_vis: Any, monkeypatch, rectified, method: str) -> None:
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils import model_modifiers

    first = np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)
    model, x = rectified, np.moveaxis(first, 1, -1)
    ours = explained(model, x, method=method, target=TARGETS, like="tf-keras-vis", seed=5)
    modifiers = [model_modifiers.ReplaceToLinear()]
    if method == "guided-backprop":
        modifiers.append(model_modifiers.GuidedBackpropagation())
    drawn = np.moveaxis(noise_of(5, 25, first), 2, -1)
    monkeypatch.setattr(np.random, "normal", lambda mean, sigma, shape: mean + sigma * drawn)
    theirs = Saliency(model, model_modifier=modifiers)(
        tf_keras_vis.utils.scores.CategoricalScore(TARGETS), x,
        smooth_samples=25 if method == "smoothgrad" else 0,
    )  # fmt: skip
    assert_same(ours, theirs)

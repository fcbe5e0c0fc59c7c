"""Pixel methods equal captum's where its limits allow: every rectifier an `nn.ReLU` of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pellucid

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
}


@pytest.mark.filterwarnings("ignore:Setting")
@pytest.mark.parametrize("method", CAPTUM)
def test_equals_captum(network, method):
    x = np.random.default_rng(0).standard_normal((3, 3, 14, 14)).astype(np.float32)
    targets = [2, 0, 3]
    explanations = pellucid.explain(network, x, method, target=targets, like="captum")
    tensor = torch.from_numpy(x).requires_grad_()
    expected = CAPTUM[method](network, tensor, torch.tensor(targets)).detach().numpy()
    ours = np.stack([e.attribution for e in explanations])
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()

"""Every method gives the same map in every framework and by either engine.

The reference is PyTorch's own network in float64. A map may be farther from it than 1e-5 of its
maximum only where float32 can hold no more: where rounding the weights moves it as far.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.methods.registry import METHODS
from tests.graph.networks import FRAMEWORKS, adapter
from tests.twins import TWINS

TOLERANCE = 1e-5
NAMES = sorted(TWINS)
LAYERS = {
    "plain": "conv3", "residual": "stage.block1", "inception": "conv", "fused": "pool2",
    "separable": "pointwise2_norm", "channels_first": "relu2", "two_by_two": "relu",
    "vit": "block2.norm1", "conv1d": "relu2", "conv3d": "relu2", "nested_shared": "tower.relu",
}  # fmt: skip
FEW: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 4}, "expected-gradients": {"samples": 3},
    "blur-ig": {"steps": 3}, "guided-ig": {"steps": 3}, "smoothgrad": {"samples": 2},
    "layer-conductance": {"steps": 3}, "xrai": {"steps": 2, "scales": (100.0,)},
    "lime": {"num_samples": 16, "num_segments": 6},
    "kernel-shap": {"num_samples": 16, "num_segments": 6},
    "shapley-sampling": {"budget": 24, "num_segments": 6}, "rise": {"num_samples": 8},
    "occlusion": {"window": 8, "stride": 8}, "hierarchical-occlusion": {"budget": 80},
    "sobol": {"designs": 2, "num_segments": 6}, "meaningful-perturbation": {"steps": 3},
}  # fmt: skip
RULES = ("epsilon", "gamma", "z-plus", "composite")
METHODS_AND_OPTIONS = [
    *((method, {}) for method in METHODS if method != "lrp"),
    *(("lrp", {"rule": rule}) for rule in RULES),
]
# What only asks for predictions sees of a network what every other method sees too.
ASKED = ("plain", "two_by_two", "conv1d", "vit")
CASES = [
    (name, method, options)
    for name in NAMES
    for method, options in METHODS_AND_OPTIONS
    if name in ASKED or not METHODS[method].asks
]


class Wide(torch.nn.Module):
    """A network in float64 between float32 ends."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, *x: torch.Tensor) -> Any:
        return self.network(*(one.double() for one in x))


@cache
def reference(name: str) -> Adapter:
    return TorchAdapter(Wide(TWINS[name].torch()))


@cache
def rounded(name: str, draw: int) -> Adapter:
    """The network with every weight moved by up to four units in its last place."""
    network = TWINS[name].torch()
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for weight in (*network.parameters(), *network.buffers()):
            if weight.is_floating_point():
                weight *= 1 + 2**-21 * (2 * torch.rand(weight.shape, generator=generator) - 1)
    return TorchAdapter(network)


def explained(model: Adapter, name: str, method: str, engine: Any, options: Any) -> np.ndarray:
    x = TWINS[name].inputs(2)
    model.batch(x)
    own = tuple(port.own_layout(array) for port, array in zip(model.inputs, x, strict=True))
    if METHODS[method].layer:
        layer = LAYERS[name]
        if model is reference(name):
            layer = f"network.{layer}"
        elif model.framework != "torch":
            layer = TWINS[name].matched[layer]
        options = options | {"layer": layer}
    found = pellucid.explain(
        model, own if len(own) > 1 else own[0], method, target=1, engine=engine, **options
    )
    return np.stack([one.attribution for one in found])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    assert other.any(), "a map of nothing proves nothing"
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize(("name", "method", "options"), CASES, ids=str)
def test_every_framework_and_engine_gives_the_same_map(name, method, options):
    options = FEW.get(method, {}) | options
    engines = ("onnx",) if METHODS[method].onnx else ("native", "onnx")
    if METHODS[method].onnx:
        expected = explained(adapter(name, "torch"), name, method, "onnx", options)
    else:
        expected = explained(reference(name), name, method, "native", options)
    far = {}
    for framework in FRAMEWORKS:
        for engine in engines:
            found = explained(adapter(name, framework), name, method, engine, options)
            if (off := distance(found, expected)) > TOLERANCE:
                far[framework, engine] = off
    if far:
        moved = max(
            distance(explained(rounded(name, draw), name, method, engines[0], options), expected)
            for draw in range(4)
        )
        assert max(far.values()) <= 4 * moved, far

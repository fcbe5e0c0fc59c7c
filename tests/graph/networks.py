"""Graphs of the twins, exported once per test run."""

from __future__ import annotations

from functools import cache

import numpy as np

from pellucid.adapters.base import Adapter
from pellucid.adapters.onnx.sessions import open_session
from pellucid.graph.layers import LayerGraph
from pellucid.graph.protobuf import cut
from tests.twins import TWINS

FRAMEWORKS = ("torch", "keras", "tf_keras")


@cache
def adapter(name: str, framework: str) -> Adapter:
    network = getattr(TWINS[name], framework)()
    if framework == "torch":
        from pellucid.adapters.torch.adapter import TorchAdapter

        made: Adapter = TorchAdapter(network)
    else:
        from pellucid.adapters.keras.adapter import KerasAdapter

        made = KerasAdapter(network)
    made.batch(TWINS[name].inputs(2))  # a PyTorch module learns its input's shape from it
    return made


def graph(name: str, framework: str) -> LayerGraph:
    return adapter(name, framework).graph


def values(graph: LayerGraph, x: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Every layer's value by onnxruntime, channels first."""
    inputs = [layer for layer in graph if layer.kind == "Input"]
    tensors = {layer.tensor for layer in graph if layer.kind != "Input"}
    session = open_session(cut(graph.model, sorted(tensors)), source=graph.name)
    given = {
        layer.tensor: array.transpose(layer.to_own) if layer.to_own else array
        for layer, array in zip(inputs, x, strict=True)
    }
    feed = {port.name: np.ascontiguousarray(given[port.name]) for port in session.get_inputs()}
    found = dict(zip(sorted(tensors), session.run(sorted(tensors), feed), strict=True))
    return {
        layer.name: found[layer.tensor].transpose(np.argsort(layer.to_own))
        if layer.to_own
        else found[layer.tensor]
        for layer in graph
        if layer.tensor in found
    }

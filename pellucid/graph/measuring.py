"""Values and times of all layers of a graph, by its ONNX form in onnxruntime.

Every layer has a tensor there, operations that are spelled out in a network's code too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from pellucid.errors import UnsupportedError
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.protobuf import cut
from pellucid.graph.runtime import session

__all__ = ["layer_times", "layer_values"]

Array = NDArray[np.float32]
_AT_ONCE = 256 * 2**20  # bytes of values that are held at the same time


def layer_values(graph: LayerGraph, x: Sequence[Array]) -> Iterator[tuple[GraphLayer, Array]]:
    """Yield every layer and its value, channels first, a few layers at a time.

    Parameters
    ----------
    x : one array per input, `(N, C, *spatial)`.
    """
    form, feeds = _form(graph), _feeds(graph, x)
    layers = [layer for layer in graph.layers if not layer.is_port and layer.tensor]
    for part in _parts(layers, len(x[0])):
        tensors = sorted({layer.tensor for layer in part} - set(feeds))
        opened = session(cut(form, tensors))
        wanted = {port.name for port in opened.get_inputs()}
        given = {name: array for name, array in feeds.items() if name in wanted}
        found = {**feeds, **dict(zip(tensors, opened.run(tensors, given), strict=True))}
        for layer in part:
            value = found[layer.tensor]
            axes = layer.to_own if len(layer.to_own) == value.ndim else ()
            yield layer, value.transpose(np.argsort(axes)) if axes else value


def layer_times(graph: LayerGraph, x: Sequence[Array], runs: int = 7) -> dict[str, float]:
    """Measure how many seconds each layer computes: the median over several runs.

    onnxruntime's own profiler tells the time of every node. The network runs as it is written,
    on one thread: an optimised one merges nodes of different layers, and nobody could say whose
    time it is. So the sum is more than a tuned run takes; the shares are what this is for.

    Parameters
    ----------
    x : one array per input, `(N, C, *spatial)`.
    runs : how many runs count; one more before them warms up.
    """
    import onnxruntime

    feeds = _feeds(graph, x)
    owner = {node: layer.name for layer in graph.layers for node in layer.nodes}
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        opened = onnxruntime.InferenceSession(
            _form(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        given = {port.name: feeds[port.name] for port in opened.get_inputs()}
        for _ in range(runs + 1):
            opened.run(None, given)
        events = json.loads(Path(opened.end_profiling()).read_text("utf-8"))
    return _by_layer(events, owner, runs)


def _by_layer(
    events: Sequence[dict[str, Any]], owner: dict[str, str], runs: int
) -> dict[str, float]:
    """Add up the profiler's microseconds; the n-th time that a node is met is the n-th run."""
    seconds: dict[str, list[float]] = {}
    met: dict[str, int] = {}
    for event in events:
        node = event.get("name", "").removesuffix("_kernel_time")
        if event.get("cat") != "Node" or node == event["name"] or node not in owner:
            continue
        run = met.get(node, 0)
        met[node] = run + 1
        if 0 < run <= runs:
            seconds.setdefault(owner[node], [0.0] * runs)[run - 1] += event["dur"] * 1e-6
    return {layer: median(found) for layer, found in seconds.items()}


def _form(graph: LayerGraph) -> ModelProto:
    if graph.model is None:
        raise UnsupportedError("This graph has no ONNX form that could be run.")
    return graph.model


def _feeds(graph: LayerGraph, x: Sequence[Array]) -> dict[str, Array]:
    inputs = [layer for layer in graph.layers if layer.kind == "Input"]
    return {
        layer.tensor: np.ascontiguousarray(array.transpose(layer.to_own) if layer.to_own else array)
        for layer, array in zip(inputs, x, strict=True)
    }


def _parts(layers: Sequence[GraphLayer], count: int) -> Iterator[list[GraphLayer]]:
    part: list[GraphLayer] = []
    size = 0
    for layer in layers:
        size += layer.activation_bytes * count
        if part and size > _AT_ONCE:
            yield part
            part, size = [], layer.activation_bytes * count
        part.append(layer)
    if part:
        yield part

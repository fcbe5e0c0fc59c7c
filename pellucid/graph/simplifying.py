"""The same graph with less in it: containers as one layer, only what computes, no fusion."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pellucid.graph.kinds import kind_of
from pellucid.graph.layers import GraphLayer, LayerGraph

__all__ = ["ARRANGING", "collapsed", "computing_only", "merged", "split_activations"]

# Layers that arrange what others compute, or do nothing once a network is trained.
ARRANGING = frozenset((
    "Permute", "Reshape", "Flatten", "Identity", "Dropout", "Noise", "Pad", "Select", "Crop",
    "GetItem", "SlicingOpLambda", "Cast", "Expand",
))  # fmt: skip


def collapsed(graph: LayerGraph, containers: Collection[str]) -> LayerGraph:
    """Show containers as one layer each, under the container's name.

    Its shape is that of its last layer; parameters, multiply-adds and bytes are sums.
    """
    classes = {container.name: container.framework_class for container in graph.containers}
    wanted = set(containers)
    owner: dict[str, str] = {}
    members: dict[str, list[GraphLayer]] = {}
    for layer in graph.layers:
        outermost = next((name for name in layer.path if name in wanted), None)
        if outermost is not None:
            owner[layer.name] = outermost
            members.setdefault(outermost, []).append(layer)
    whole = {
        name: merged(name, classes.get(name, ""), layers, graph) for name, layers in members.items()
    }
    layers = []
    for layer in graph.layers:
        name = owner.get(layer.name)
        if name is None:
            layers.append(layer)
        elif layer.name == members[name][-1].name:  # all that it reads has come before
            layers.append(whole[name])
    inside = {part for found in members.values() for layer in found for part in layer.path}
    left = {part for layer in layers for part in layer.path}
    kept = tuple(c for c in graph.containers if c.name not in inside - left - wanted)
    kept = tuple(c for c in kept if c.name not in wanted)
    return replace(graph, layers=_rewired(layers, owner), containers=kept)


def merged(
    name: str, framework_class: str, layers: Sequence[GraphLayer], graph: LayerGraph
) -> GraphLayer:
    """Return one layer that stands for all layers of a container."""
    inner = {layer.name for layer in layers}
    last = next(
        (layer for layer in reversed(layers) if not inner.issuperset(layer.outputs)), layers[-1]
    )
    first = layers[0].path.index(name)
    work = [layer.multiply_adds for layer in layers]
    reads = dict.fromkeys(n for layer in layers for n in layer.inputs if n not in inner)
    return replace(
        last,
        name=name,
        kind=kind_of(framework_class) if framework_class else "Block",
        framework_class=framework_class,
        input_shapes=tuple(graph.layer(n).shape for n in reads),
        parameters=sum(layer.parameters for layer in layers),
        shared_parameters=sum(layer.shared_parameters for layer in layers),
        statistics=sum(layer.statistics for layer in layers),
        multiply_adds=None if None in work else sum(w for w in work if w),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        path=last.path[:first],
        fused="",
        nodes=tuple(node for layer in layers for node in layer.nodes),
        inputs=tuple(reads),
    )


def computing_only(graph: LayerGraph, without: Collection[str] = ARRANGING) -> LayerGraph:
    """Leave out layers of some kinds; what they handed on is read from where they had it."""
    gone = {layer.name: layer for layer in graph.layers if _stem(layer.kind) in without}

    def beyond(names: Iterable[str]) -> list[str]:
        found: list[str] = []
        for name in names:
            found += beyond(gone[name].inputs) if name in gone else [name]
        return found

    layers = [
        replace(layer, inputs=tuple(dict.fromkeys(beyond(layer.inputs))))
        for layer in graph.layers
        if layer.name not in gone
    ]
    return replace(graph, layers=_rewired(layers, {}))


def split_activations(graph: LayerGraph) -> LayerGraph:
    """Show an activation that a layer holds in itself as a layer of its own."""
    layers: list[GraphLayer] = []
    owner: dict[str, str] = {}
    for layer in graph.layers:
        if not layer.fused:
            layers.append(layer)
            continue
        name = f"{layer.name} ({layer.fused})"
        layers.append(replace(layer, fused=""))
        layers.append(
            GraphLayer(
                name, layer.fused, "", layer.shape, (layer.shape,), layer.layout, layer.dtype,
                activation_bytes=layer.activation_bytes, path=layer.path, tensor=layer.tensor,
                to_own=layer.to_own, inputs=(f"{layer.name}",),
            )
        )  # fmt: skip
        owner[layer.name] = name
    fused = set(owner.values())
    rewired = [
        layer
        if layer.name in fused
        else replace(layer, inputs=tuple(owner.get(n, n) for n in layer.inputs))
        for layer in layers
    ]
    return replace(graph, layers=_rewired(rewired, {}))


def _rewired(layers: Sequence[GraphLayer], owner: Mapping[str, str]) -> tuple[GraphLayer, ...]:
    """Follow renamed inputs, and set the outputs to what is read."""
    sources = {
        layer.name: tuple(
            n for n in dict.fromkeys(owner.get(n, n) for n in layer.inputs) if n != layer.name
        )
        for layer in layers
    }
    readers: dict[str, list[str]] = {}
    for name, read in sources.items():
        for source in read:
            readers.setdefault(source, []).append(name)
    return tuple(
        replace(layer, inputs=sources[layer.name], outputs=tuple(readers.get(layer.name, ())))
        for layer in layers
    )


def _stem(kind: str) -> str:
    return kind[:-2] if kind[-2:] in ("1D", "2D", "3D") else kind

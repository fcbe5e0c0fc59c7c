"""Graphs made of nothing but their connections."""

from __future__ import annotations

from pellucid.graph.layers import Container, GraphLayer, LayerGraph


def built(edges: list[tuple[str, str]], **kinds: str) -> LayerGraph:
    """A graph from its edges, given in an order in which they can be computed."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    names.sort(key=lambda name: max([0, *(i for i, e in enumerate(edges, 1) if e[1] == name)]))
    layers = [
        GraphLayer(
            name,
            kinds.get(name.rstrip("0123456789"), "Conv2D"),
            shape=(None, 8, 16, 16),
            layout="spatial",
            path=(f"block{name[-1]}",) if name[-1].isdigit() else (),
            inputs=tuple(a for a, b in edges if b == name),
            outputs=tuple(b for a, b in edges if a == name),
        )
        for name in names
    ]
    containers = tuple(Container(n) for n in dict.fromkeys(p for x in layers for p in x.path))
    return LayerGraph(tuple(layers), containers, "built")


def residual(blocks: int) -> LayerGraph:
    """Blocks of two layers and an addition, each beside a skip connection."""
    edges, last = [], "start"
    for i in range(blocks):
        edges += [(last, f"conv{i}"), (f"conv{i}", f"deep{i}"), (f"deep{i}", f"add{i}")]
        edges += [(last, f"add{i}")]
        last = f"add{i}"
    return built([*edges, (last, "end")], add="Add", start="Input", end="Output")


def dense(count: int) -> LayerGraph:
    """Layers of which each reads all earlier ones."""
    edges = [(f"conv{i}", f"conv{j}") for j in range(count) for i in range(j)]
    return built(edges)

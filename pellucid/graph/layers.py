"""The network as a graph of layers, and what can be asked of it.

A `GraphLayer` is one call of one layer. Operations that a network spells out in its code, such as
the addition of a residual block, are layers of their own; bookkeeping (shape arithmetic, casts)
is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import LayerError, nearest

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Container", "GraphLayer", "LayerGraph"]

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """One call of one layer.

    Attributes
    ----------
    name : the framework's own name, `pool:1` for the second call; of an operation without one,
        its container and what it does: `layer1.0.add`.
    kind : the shared vocabulary of `pellucid.graph.kinds`.
    framework_class : the class as the framework names it, or "" for a plain operation.
    shape : shape of the output, channels first, `None` for the batch. Sizes that are free are
        those of the input at which the graph was read.
    input_shapes : the same of each input, in the order of `inputs`.
    layout : "spatial", "tokens" or "features", as for `pellucid.adapters.base.Layer`.
    dtype : NumPy name of the output's element type.
    parameters : number of learned numbers, counted at the layer that uses them first.
    shared_parameters : those of them that an earlier layer has counted.
    statistics : number of running means and variances, counted in the same way.
    multiply_adds : for one sample, None where the shapes do not tell.
    activation_bytes : size of the output for one sample.
    path : names of the containers that it is in, outermost first.
    fused : kind of an activation that the framework holds in this same layer, or "".
    nodes : names of its ONNX nodes.
    tensor : the ONNX tensor that is its output.
    to_own : permutation of axes from channels first to that tensor's own layout.
    inputs, outputs : names of the layers that it reads from and that read from it.
    """

    name: str
    kind: str
    framework_class: str = ""
    shape: Shape = ()
    input_shapes: tuple[Shape, ...] = ()
    layout: str = "features"
    dtype: str = "float32"
    parameters: int = 0
    shared_parameters: int = 0
    statistics: int = 0
    multiply_adds: int | None = 0
    activation_bytes: int = 0
    path: tuple[str, ...] = ()
    fused: str = ""
    nodes: tuple[str, ...] = ()
    tensor: str = ""
    to_own: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def grid(self) -> Shape:
        """Spatial extent, `()` for layers without one."""
        return self.shape[2:] if self.layout == "spatial" else ()

    @property
    def is_port(self) -> bool:
        """Whether it stands for an input or an output of the network."""
        return self.kind in ("Input", "Output")


@dataclass(frozen=True, slots=True)
class Container:
    """One call of a module or model that holds layers; its name is in their `path`."""

    name: str
    framework_class: str = ""


@dataclass(frozen=True)
class LayerGraph:
    """The layers of a network in the order in which they compute, with their connections.

    `graph[name]` is a layer, `graph[first:last]` the part of the graph between two layers.
    `print(graph)` shows a table.

    Attributes
    ----------
    layers : all layers, inputs first, in an order in which they can be computed.
    containers : what `path` names.
    name : of the network.
    model : the ONNX form in which every layer's `tensor` can be fetched.

    Examples
    --------
    >>> graph = pellucid.load("resnet50.onnx").graph  # doctest: +SKIP
    >>> graph.multiply_adds  # doctest: +SKIP
    4089184256
    >>> [layer.name for layer in graph if layer.kind == "Conv2D"]  # doctest: +SKIP
    """

    layers: tuple[GraphLayer, ...]
    containers: tuple[Container, ...] = ()
    name: str = ""
    model: ModelProto | None = field(default=None, repr=False, compare=False)

    # ---- looking up --------------------------------------------------------------------------

    @cached_property
    def _by_name(self) -> dict[str, GraphLayer]:
        return {layer.name: layer for layer in self.layers}

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[GraphLayer]:
        return iter(self.layers)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, key: str | slice) -> Any:
        """Return a layer by name, or for `[first:last]` the part between two layers."""
        if isinstance(key, slice):
            if key.step is not None:
                raise LayerError("A graph is sliced from layer to layer: graph['conv1':'fc'].")
            return self.between(key.start, key.stop)
        return self.layer(key)

    def layer(self, name: str) -> GraphLayer:
        """Look a layer up by name.

        Raises
        ------
        LayerError : there is no such layer; the message offers the nearest names.
        """
        if name not in self._by_name:
            raise LayerError(
                f"There is no layer {name!r} in this graph. {nearest(name, self._by_name)}"
            )
        return self._by_name[name]

    # ---- totals ------------------------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """Number of learned numbers; shared ones count once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        """Number of running means and variances, which are kept but not learned."""
        return sum(layer.statistics for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the convolutions and matrix products for one sample."""
        return sum(layer.multiply_adds or 0 for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all layers' outputs for one sample."""
        return sum(layer.activation_bytes for layer in self.layers if not layer.is_port)

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """All connections, from the layer that computes to the one that reads."""
        return tuple((source, layer.name) for layer in self.layers for source in layer.inputs)

    # ---- walking -----------------------------------------------------------------------------

    def ancestors(self, name: str) -> frozenset[str]:
        """Names of all layers that the layer depends on, without itself."""
        return self._reached(name, {layer.name: layer.inputs for layer in self.layers})

    def descendants(self, name: str) -> frozenset[str]:
        """Names of all layers that depend on the layer, without itself."""
        return self._reached(name, {layer.name: layer.outputs for layer in self.layers})

    def _reached(self, name: str, step: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        self.layer(name)
        found: set[str] = set()
        waiting = list(step[name])
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(step[current])
        return frozenset(found)

    def paths(self, first: str, last: str) -> Iterator[tuple[str, ...]]:
        """Yield every way from one layer to another, as the names along it.

        There may be very many: a ResNet doubles them with every block. Take the first few with
        `itertools.islice`.
        """
        inside = (self.descendants(first) | {first}) & (self.ancestors(last) | {last})
        if not {first, last} <= inside:
            return
        trail: list[str] = [first]
        branches = [iter(self._by_name[first].outputs)]
        if first == last:
            yield (first,)
            return
        while branches:
            following = next(branches[-1], None)
            if following is None:
                branches.pop()
                trail.pop()
            elif following == last:
                yield (*trail, last)
            elif following in inside:
                trail.append(following)
                branches.append(iter(self._by_name[following].outputs))

    def between(self, first: str | None, last: str | None) -> LayerGraph:
        """Return the part that lies on some way from one layer to another, both included.

        None stands for the beginning or the end of the network.
        """
        kept = set(self._by_name)
        if first is not None:
            kept &= self.descendants(first) | {first}
        if last is not None:
            kept &= self.ancestors(last) | {last}
        if first is not None and last is not None and not {first, last} <= kept:
            raise LayerError(f"No way leads from layer {first!r} to layer {last!r}.")
        return self.restricted(kept)

    def restricted(self, names: Iterable[str]) -> LayerGraph:
        """Return the graph of only these layers and the connections among them."""
        kept = set(names)
        layers = tuple(
            replace(
                layer,
                inputs=tuple(n for n in layer.inputs if n in kept),
                input_shapes=tuple(
                    shape
                    for n, shape in itertools.zip_longest(layer.inputs, layer.input_shapes)
                    if n in kept and shape is not None
                ),
                outputs=tuple(n for n in layer.outputs if n in kept),
            )
            for layer in self.layers
            if layer.name in kept
        )
        used = {name for layer in layers for name in layer.path}
        containers = tuple(c for c in self.containers if c.name in used)
        return replace(self, layers=layers, containers=containers)

    # ---- giving away -------------------------------------------------------------------------

    def to_networkx(self) -> Any:
        """Return a `networkx.DiGraph` whose nodes carry the layers' fields.

        An edge's attribute `position` says which of the reader's inputs it is.
        """
        try:
            import networkx
        except ImportError as error:
            raise LayerError("to_networkx() needs networkx: pip install networkx.") from error
        graph = networkx.DiGraph(name=self.name)
        for layer in self.layers:
            fields = {name: getattr(layer, name) for name in GraphLayer.__slots__}
            fields.pop("name")
            graph.add_node(layer.name, **fields)
        for layer in self.layers:
            for position, source in enumerate(layer.inputs):
                graph.add_edge(source, layer.name, position=position)
        return graph

    def table(self, width: int | None = None) -> str:
        """Return the layers as a table in plain text, with totals."""
        from pellucid.graph.layer_table import text_table

        return text_table(self, width)

    def draw(self, path: str | Path, style: str = "graph", **options: Any) -> Path:
        """Draw the graph into a file; see `pellucid.graph.drawing.draw`."""
        from pellucid.graph.drawing import draw

        drawn: Path = draw(self, path, style=style, **options)
        return drawn

    def __str__(self) -> str:
        """Show the table."""
        return self.table()

"""How the nodes of an ONNX graph hang together, as far as activations flow.

Three sorts of tensor are told apart. Fixed ones depend on no input: weights, and what is
computed from weights. Shape ones depend on an input's shape only: they are arithmetic that a
framework does before it computes. All others are live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property

from onnx import GraphProto, NodeProto

from pellucid.graph.protobuf import inputs_of, real_inputs

__all__ = ["Wiring"]

_SHAPE = frozenset(("Shape", "Size"))


class Wiring:
    """The nodes of a graph by index, in an order in which they can be computed."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = _ordered(graph)
        self.reads: list[tuple[str, ...]] = [tuple(inputs_of(node)) for node in self.nodes]
        self.producer: dict[str, int] = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self.inputs = [value.name for value in real_inputs(graph)]
        self.live, self.shaped = set(self.inputs), set[str]()
        for index, node in enumerate(self.nodes):
            outputs = [name for name in node.output if name]
            if node.op_type in _SHAPE:
                known = self.live | self.shaped
                self.shaped.update(outputs if known.intersection(self.reads[index]) else ())
            elif self.live.intersection(self.reads[index]):
                self.live.update(outputs)
            elif self.shaped.intersection(self.reads[index]):
                self.shaped.update(outputs)

    def is_live(self, index: int) -> bool:
        """Whether a node computes with activations."""
        return any(name in self.live for name in self.nodes[index].output)

    def sources(self, index: int) -> list[int]:
        """Indices of the nodes whose activations a node reads, in the order of its inputs."""
        live = (name for name in self.reads[index] if name in self.live)
        return [self.producer[name] for name in live if name in self.producer]

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Which nodes read a tensor."""
        found: dict[str, list[int]] = {}
        for index, names in enumerate(self.reads):
            for name in dict.fromkeys(names):
                found.setdefault(name, []).append(index)
        return found

    def following(self, index: int) -> list[int]:
        """Indices of the nodes that read a node's outputs, marks that lead nowhere left out."""
        found = {r for name in self.nodes[index].output for r in self.readers.get(name, ())}
        return sorted(r for r in found if not self._leads_nowhere(r))

    def _leads_nowhere(self, index: int) -> bool:
        node = self.nodes[index]
        return node.op_type == "Identity" and not (
            self.readers.get(node.output[0]) or node.output[0] in self.results
        )

    @cached_property
    def results(self) -> frozenset[str]:
        """The graph's outputs."""
        return frozenset(value.name for value in self.graph.output)

    def before(self, tensors: Iterable[str], stop: set[str]) -> Iterator[int]:
        """Yield the nodes that tensors are computed by, back to the tensors in `stop`."""
        waiting, seen = deque(tensors), set[int]()
        while waiting:
            name = waiting.popleft()
            index = self.producer.get(name)
            if name in stop or index is None or index in seen:
                continue
            seen.add(index)
            yield index
            waiting.extend(self.reads[index])

    def weights(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the names of the fixed tensors that nodes start from."""
        waiting = [name for index in indices for name in self.reads[index]]
        seen = set[str]()
        while waiting:
            name = waiting.pop(0)
            if name in self.live or name in seen:
                continue
            seen.add(name)
            index = self.producer.get(name)
            if index is None or self.nodes[index].op_type == "Constant":
                yield name
            elif self.nodes[index].op_type not in _SHAPE:
                waiting.extend(self.reads[index])


def _ordered(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes so that each comes after those it reads from."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{made[name] for name in inputs_of(node) if name in made} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(index)
    if all(max(sources, default=-1) < index for index, sources in enumerate(needs)):
        return list(graph.node)
    waiting = deque(i for i, sources in enumerate(needs) if not sources)
    order = []
    while waiting:
        index = waiting.popleft()
        order.append(graph.node[index])
        for reader in readers.get(index, ()):
            needs[reader].discard(index)
            if not needs[reader]:
                waiting.append(reader)
    return order  # nodes in a cycle never become ready; a valid file has none

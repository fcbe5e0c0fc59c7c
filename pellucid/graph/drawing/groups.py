"""What is drawn as one: boxes of layers, and groups of boxes that can be closed to one box.

Groups are the containers of the network and the blocks that repeat. Whatever the network is,
they nest: of two that overlap, one lies in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from pellucid.graph.drawing.colours import family_of
from pellucid.graph.drawing.layout import Arrangement, Edge, Node, arranged
from pellucid.graph.drawing.repeats import Repeat
from pellucid.graph.layers import GraphLayer, LayerGraph
from pellucid.graph.simplifying import merged

__all__ = ["Box", "Group", "Plan", "planned"]

_FOLLOWING = ("normalisation", "activation")
_ALONE = ("Dropout", "Identity", "Noise")


@dataclass(frozen=True)
class Box:
    """Layers that are drawn as one box: one, and those that only follow it."""

    layers: tuple[GraphLayer, ...]

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.layers[0].name


@dataclass
class Group:
    """Boxes and groups that are drawn in one frame.

    Attributes
    ----------
    name : of the container, or of the block's first layer; "" for the whole network.
    summary : a layer that stands for all of it when it is closed.
    times : how often it follows itself.
    depth : of the container in the network, from 1; 0 where it is only a repetition.
    layers : names of all layers in it, of repetitions that are not drawn too.
    children : names of boxes and groups, in an order in which edges run forward.
    edges : between its children, from its entries and to its exits.
    """

    name: str
    summary: GraphLayer | None = None
    times: int = 1
    depth: int = 0
    layers: tuple[str, ...] = ()
    children: list[str] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @cached_property
    def arrangement(self) -> Arrangement:
        """Rows of its children."""
        return arranged(self.children, self.edges)


@dataclass(frozen=True)
class Plan:
    """All that a drawing of a graph consists of, whichever groups are open.

    Attributes
    ----------
    boxes : by name.
    groups : by name; `groups[""]` is the whole.
    parents : of boxes and groups: the group that each is in.
    edges : between boxes.
    owner : the box of each layer, of layers that only repeat others too.
    """

    boxes: Mapping[str, Box]
    groups: Mapping[str, Group]
    parents: Mapping[str, str]
    edges: Sequence[tuple[str, str]]
    owner: Mapping[str, str]

    def fitting(self, most: int, depth: int | None = None) -> frozenset[str]:
        """Return the groups to close so that there are not too many boxes, deep ones first.

        Parameters
        ----------
        most : number of boxes.
        depth : close instead the containers at this depth.
        """
        deepest = max((group.depth for group in self.groups.values()), default=0)
        levels = range(deepest + 1, 0, -1) if depth is None else [depth]
        closed: frozenset[str] = frozenset()
        for level in levels:
            closed = frozenset(n for n, g in self.groups.items() if g.depth >= max(level, 1))
            if len(list(self.visible(closed))) <= most:
                break
        return closed

    def visible(self, closed: frozenset[str], inside: str = "") -> Iterator[str]:
        """Yield the boxes and closed groups that are to be seen."""
        for child in self.groups[inside].children:
            if child in self.groups and child not in closed:
                yield from self.visible(closed, child)
            else:
                yield child

    def shown_as(self, closed: frozenset[str]) -> dict[str, str]:
        """Map each box to what is seen of it: itself, or the outermost closed group around."""
        found = {}
        for box in self.boxes:
            seen = box
            for outer in self.around(box):
                if outer in closed:
                    seen = outer
            found[box] = seen
        return found

    def around(self, name: str) -> Iterator[str]:
        """Yield the groups around a box or group, from the inside, without the whole."""
        while name := self.parents[name]:
            yield name


def planned(
    graph: LayerGraph, repeats: Sequence[Repeat] = (), whole: LayerGraph | None = None
) -> Plan:
    """Find boxes and groups.

    Parameters
    ----------
    repeats : blocks that stand for several.
    whole : the graph with every repetition, of which groups are the sums.
    """
    boxes = {box.name: box for box in _stacked(graph)}
    owner = {layer.name: name for name, box in boxes.items() for layer in box.layers}
    edges = list(dict.fromkeys(
        (owner[a], owner[b]) for a, b in graph.edges if owner[a] != owner[b]
    ))  # fmt: skip
    same = {gone: owner[shown] for r in repeats for gone, shown in r.stands_for.items()}
    members, groups = _groups(graph, boxes, owner, repeats, whole or graph)
    while True:
        parents = _parents(boxes, members)
        tangled = _connect(boxes, groups, parents, edges)
        if not tangled:
            return Plan(boxes, groups, parents, edges, {**owner, **same})
        del groups[tangled], members[tangled]


def _stacked(graph: LayerGraph) -> list[Box]:
    """Put layers that only follow into the box of the layer that they follow."""
    stacks: dict[str, list[GraphLayer]] = {}
    head: dict[str, str] = {}
    for layer in graph.layers:
        source = graph.layer(layer.inputs[0]) if len(layer.inputs) == 1 else None
        follows = (
            source is not None
            and source.outputs == (layer.name,)
            and not source.is_port
            and (family_of(layer.kind) in _FOLLOWING or layer.kind in _ALONE)
            and source.path == layer.path
        )
        first = head[source.name] if follows and source is not None else layer.name
        head[layer.name] = first
        stacks.setdefault(first, []).append(layer)
    return [Box(tuple(stack)) for stack in stacks.values()]


def _groups(
    graph: LayerGraph,
    boxes: Mapping[str, Box],
    owner: Mapping[str, str],
    repeats: Sequence[Repeat],
    whole: LayerGraph,
) -> tuple[dict[str, frozenset[str]], dict[str, Group]]:
    """Find the groups and the boxes in each; of groups that overlap, the first found stays."""
    inside: dict[str, list[str]] = {}
    depth: dict[str, int] = {}
    for box in boxes.values():
        for level, container in enumerate(box.layers[0].path, 1):
            inside.setdefault(container, []).append(box.name)
            depth.setdefault(container, level)
    times = {frozenset(owner[n] for n in repeat.layers): repeat.times for repeat in repeats}
    classes = {container.name: container.framework_class for container in graph.containers}
    members: dict[str, frozenset[str]] = {}
    groups: dict[str, Group] = {"": Group("")}

    def add(
        name: str, found: frozenset[str], summary: GraphLayer, layers: Sequence[GraphLayer]
    ) -> None:
        clear = all(found < other or other < found or not found & other for other in known)
        if len(found) > 1 and clear:
            known.add(found)
            members[name] = found
            names = tuple(layer.name for layer in layers)
            groups[name] = Group(name, summary, times.get(found, 1), depth.get(name, 0), names)

    known: set[frozenset[str]] = set()
    named: dict[frozenset[str], str] = {}
    for name, held in inside.items():  # outer containers first
        if frozenset(held) in times:  # the innermost is what repeats
            named[frozenset(held)] = name
        named.setdefault(frozenset(held), name)
    for found in times:
        if found not in named:
            layers = [layer for name in boxes if name in found for layer in boxes[name].layers]
            add(f"repeat of {layers[0].name}", found, _sum(layers), layers)
    for name in sorted(inside, key=lambda name: -len(inside[name])):
        if named[frozenset(inside[name])] == name:
            layers = [layer for layer in whole.layers if name in layer.path]
            summary = merged(name, classes.get(name, ""), layers, whole)
            add(name, frozenset(inside[name]), summary, layers)
    return members, groups


def _sum(layers: Sequence[GraphLayer]) -> GraphLayer:
    """Return one layer for a block that has no name."""
    return replace(
        layers[-1],
        name=f"{layers[0].name} …",
        kind="Block",
        framework_class="",
        parameters=sum(layer.parameters for layer in layers),
        multiply_adds=sum(layer.multiply_adds or 0 for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        fused="",
    )


def _parents(boxes: Mapping[str, Box], members: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Return the innermost group around each box and group."""
    order = sorted(members, key=lambda name: -len(members[name]))
    parents: dict[str, str] = {}
    innermost = dict.fromkeys(boxes, "")
    for name in order:
        parents[name] = innermost[next(iter(members[name]))]
        innermost.update(dict.fromkeys(members[name], name))
    return {**parents, **innermost}


def _connect(
    boxes: Mapping[str, Box],
    groups: Mapping[str, Group],
    parents: Mapping[str, str],
    edges: Sequence[tuple[str, str]],
) -> str:
    """Fill in the groups' children and edges; return a group that must go, if there is one."""
    found: dict[str, dict[Edge, None]] = {name: {} for name in groups}
    children: dict[str, dict[str, None]] = {name: {} for name in groups}

    def ancestors(name: str) -> list[str]:  # innermost first, with the name and the whole
        chain = [name]
        while chain[-1]:
            chain.append(parents[chain[-1]])
        return chain

    lines = {box: ancestors(box) for box in boxes}
    for line in lines.values():
        for child, parent in pairwise(line):
            children[parent].setdefault(child)
    for source, target in edges:
        up, down = lines[source], lines[target]
        while len(up) > 1 and len(down) > 1 and up[-2] == down[-2]:
            up, down = up[:-1], down[:-1]
        for child, parent in pairwise(up[:-1]):  # out of the source's groups
            found[parent].setdefault(Edge(child, ("exit", source), source))
        for child, parent in pairwise(down[:-1]):
            found[parent].setdefault(Edge(("entry", source), child, source))
        found[up[-1]].setdefault(Edge(up[-2], down[-2], source))
    for name, group in groups.items():
        group.edges = list(found[name])
        order, stuck = _sorted(list(children[name]), group.edges)
        if stuck:
            return next((child for child in stuck if child in groups), "")
        group.children = order
    return ""


def _sorted(nodes: list[str], edges: Sequence[Edge]) -> tuple[list[str], list[str]]:
    """Sort so that edges run forward; return also those that are in the way of it."""
    sources: dict[Node, set[Node]] = {node: set() for node in nodes}
    for source, target, _ in edges:
        if source in sources and target in sources:
            sources[target].add(source)
    order: list[str] = []
    waiting = list(nodes)
    while waiting:
        ready = next((node for node in waiting if not sources[node]), None)
        if ready is None:
            return order, waiting
        waiting.remove(ready)
        order.append(ready)
        for left in sources.values():
            left.discard(ready)
    return order, []

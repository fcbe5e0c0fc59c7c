"""Which ONNX nodes belong together: one group per layer.

The nodes between the marks of a call are that call. What lies between calls is spelled out in
the code of a container, and is grouped by `pellucid.graph.folding`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pellucid.graph.form import Call, OnnxForm
from pellucid.graph.layers import Container
from pellucid.graph.wiring import Wiring

__all__ = ["TRANSPARENT", "Group", "Grouping", "marked_groups", "unnumbered"]

TRANSPARENT = frozenset(("Identity", "Cast", "CastLike"))  # of what no layer consists
_CALL = re.compile(r":\d+$")


@dataclass
class Group:
    """Nodes that are one layer.

    Attributes
    ----------
    nodes : indices into the wiring, ascending.
    value : the tensor that is the layer's output.
    call : what the framework says of it, or None.
    """

    kind: str
    nodes: list[int]
    value: str
    name: str = ""
    framework_class: str = ""
    path: tuple[str, ...] = ()
    call: Call | None = None


@dataclass
class Grouping:
    """The groups found so far.

    Attributes
    ----------
    owner : which group a node belongs to, by position in `groups`.
    paths : the containers that a node lies in, for nodes that belong to no group.
    shared : nodes that only arrange what several calls read.
    """

    groups: list[Group] = field(default_factory=list)
    owner: dict[int, int] = field(default_factory=dict)
    paths: dict[int, tuple[str, ...]] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)

    def add(self, group: Group) -> None:
        """Add a group and claim its nodes."""
        self.owner.update((index, len(self.groups)) for index in group.nodes)
        self.groups.append(group)


def unnumbered(name: str) -> str:
    """Take the number of the call off a name."""
    return _CALL.sub("", name)


def marked_groups(form: OnnxForm, wiring: Wiring) -> Grouping:
    """Group the nodes between the marks of each call."""
    grouping = Grouping()
    paths, holders = _nesting(form.calls, form.separator)
    marks = {name for call in form.calls for name in (*call.inputs, *call.outputs)}
    for call in form.calls:
        if call.name in holders:
            continue
        stop = _boundary(call, wiring)
        nodes = [
            index
            for index in wiring.before(call.outputs, stop)
            if index not in grouping.owner and not _is_foreign_mark(index, call, marks, wiring)
        ]
        grouping.shared |= _shared(nodes, call, wiring)
        nodes = [index for index in nodes if index not in grouping.shared]
        grouping.add(
            Group(
                call.kind, sorted(nodes), call.outputs[0], call.name, call.framework_class,
                paths[call.name], call,
            )
        )  # fmt: skip
    for call in form.calls:  # inner containers finish before outer ones
        if call.name in holders:
            grouping.containers.append(Container(call.name, call.framework_class))
            for index in wiring.before(call.outputs, _boundary(call, wiring)):
                grouping.paths.setdefault(index, (*paths[call.name], call.name))
    return grouping


def _nesting(
    calls: Sequence[Call], separator: str
) -> tuple[Mapping[str, tuple[str, ...]], set[str]]:
    """Find for each call the calls around it, outermost first, and which calls hold others."""
    parents: dict[str, str] = {}
    orphans: list[str] = []
    for call in calls:
        prefix = unnumbered(call.name) + separator
        inner = [name for name in orphans if name.startswith(prefix)]
        parents.update(dict.fromkeys(inner, call.name))
        orphans = [name for name in orphans if not name.startswith(prefix)]
        orphans.append(call.name)
    paths: dict[str, tuple[str, ...]] = {}
    for call in reversed(calls):
        parent = parents.get(call.name)
        paths[call.name] = (*paths[parent], parent) if parent else ()
    return paths, set(parents.values())


def _boundary(call: Call, wiring: Wiring) -> set[str]:
    """Return the tensors at which a call begins: its marks, and what they are copies of."""
    found = set(call.inputs)
    for name in call.inputs:
        index = wiring.producer.get(name)
        while index is not None and wiring.nodes[index].op_type in TRANSPARENT:
            source = wiring.nodes[index].input[0]
            found.add(source)
            if source in call.outputs:
                break
            index = None
    return found


def _shared(nodes: Sequence[int], call: Call, wiring: Wiring) -> set[int]:
    """Find the nodes at a call's entry that other calls read too.

    Exporters turn the axes of a tensor once for all convolutions that read it.
    """
    inside, found = set(nodes), set[int]()
    for index in sorted(nodes):
        arranges = wiring.nodes[index].op_type in (*TRANSPARENT, "Transpose")
        first = all(s not in inside or s in found for s in wiring.sources(index))
        ends = set(call.outputs).intersection(wiring.nodes[index].output)
        if arranges and first and not ends and not inside.issuperset(wiring.following(index)):
            found.add(index)
    return found


def _is_foreign_mark(index: int, call: Call, marks: set[str], wiring: Wiring) -> bool:
    """Whether a node only marks some other call: one that is around this one, say."""
    node = wiring.nodes[index]
    return (
        node.op_type == "Identity" and node.output[0] in marks
        and node.output[0] not in call.outputs
    )  # fmt: skip

"""Layers of an ONNX file of unknown origin, from the names that its exporter left in it.

PyTorch's exporter writes the module path of every node into its metadata; older exporters and
TensorFlow's put it into the node's name: `/layer1/conv1/Conv`, `model/block1_conv1/BiasAdd`.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass

from onnx import NodeProto

from pellucid.graph.groups import TRANSPARENT, Group, Grouping
from pellucid.graph.kinds import kind_of
from pellucid.graph.layers import Container
from pellucid.graph.wiring import Wiring

__all__ = ["scoped_groups"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_NAMESAKES = (  # the operation that says what a scope with several is
    "Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "RNN", "LayerNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "MatMul",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Gelu", "Erf", "Relu",
    "Sigmoid", "Resize", "Flatten", "Reshape",
)  # fmt: skip


@dataclass(frozen=True)
class _Scope:
    """Where a node stands: the modules around it, outermost first, and their classes."""

    path: tuple[str, ...]
    classes: tuple[str, ...] = ()


def scoped_groups(wiring: Wiring) -> Grouping:
    """Group nodes by the innermost module that they lie in, where that holds no other."""
    grouping = Grouping()
    scopes = {
        index: scope
        for index, node in enumerate(wiring.nodes)
        if wiring.is_live(index) and (scope := _scope(node)) and scope.path
    }
    holders = {scope.path[:depth] for scope in scopes.values() for depth in range(len(scope.path))}
    classes: dict[str, str] = {}
    for scope in scopes.values():
        classes.update(zip(scope.path, scope.classes, strict=False))
    leaves: dict[tuple[str, ...], list[int]] = {}
    for index, scope in scopes.items():
        if scope.path in holders:
            grouping.paths[index] = scope.path
        else:
            leaves.setdefault(scope.path, []).append(index)
    for path, members in leaves.items():
        for call, nodes in enumerate(_connected(wiring, members)):
            name = f"{path[-1]}:{call}" if call else path[-1]
            value = wiring.nodes[nodes[-1]].output[0]
            kind_class = classes.get(path[-1], "")
            kind = _kind(wiring, nodes, kind_class)
            grouping.add(Group(kind, nodes, value, name, kind_class, path[:-1]))
    used = dict.fromkeys(name for path in (*leaves, *grouping.paths.values()) for name in path)
    inner = {path[-1] for path in leaves}
    grouping.containers += [
        Container(name, classes.get(name, "")) for name in used if name not in inner
    ]
    return grouping


def _scope(node: NodeProto) -> _Scope | None:
    properties = {entry.key: entry.value for entry in node.metadata_props}
    if _SCOPES in properties:
        scopes, kinds = _strings(properties[_SCOPES]), _strings(properties.get(_CLASSES, "[]"))
        # The first scope is the network itself, the last the operation.
        names = tuple(name for name in scopes[1:-1] if name)
        return _Scope(names, tuple(kind.rpartition(".")[2] for kind in kinds[1:-1]))
    parts = [part for part in node.name.split("/") if part]
    if len(parts) < 2:
        return None
    if node.name.startswith("/"):  # /layer1/layer1.0/conv1/Conv: each part may repeat the path
        path: list[str] = []
        for part in parts[:-1]:
            repeats = path and part.startswith(path[-1] + ".")
            path.append(part if repeats or not path else f"{path[-1]}.{part}")
        return _Scope(tuple(path))
    return _Scope(tuple("/".join(parts[: depth + 1]) for depth in range(len(parts) - 1)))


def _strings(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(part) for part in value] if isinstance(value, list) else []


def _connected(wiring: Wiring, members: list[int]) -> list[list[int]]:
    """Split a scope's nodes into calls: nodes that activations flow between belong to one."""
    group: dict[int, int] = {}
    inside = set(members)
    for index in sorted(members):
        before = {group[s] for s in _sources(wiring, index) if s in inside and s in group}
        target = min(before, default=index)
        group[index] = target
        for other, value in group.items():
            if value in before:
                group[other] = target
    calls: dict[int, list[int]] = {}
    for index in sorted(members):
        calls.setdefault(group[index], []).append(index)
    real = [
        nodes
        for nodes in calls.values()
        if any(wiring.nodes[i].op_type not in TRANSPARENT for i in nodes)
    ]
    return real or list(calls.values())


def _sources(wiring: Wiring, index: int) -> list[int]:
    return wiring.sources(index)


def _kind(wiring: Wiring, nodes: list[int], framework_class: str) -> str:
    kinds = Counter(wiring.nodes[i].op_type for i in nodes)
    namesake = next((kind for kind in _NAMESAKES if kinds[kind]), wiring.nodes[nodes[-1]].op_type)
    if framework_class and (kind := kind_of(framework_class)) != framework_class:
        if kind.startswith("Conv") and _is_depthwise(wiring, nodes):
            return kind.replace("Conv", "DepthwiseConv", 1)
        return kind
    if framework_class:
        return framework_class
    if namesake == "Conv" and _is_depthwise(wiring, nodes):
        namesake = "DepthwiseConv"
    return kind_of(namesake, _dimensions(wiring, nodes))


def _convolution(wiring: Wiring, nodes: list[int]) -> NodeProto | None:
    return next((wiring.nodes[i] for i in nodes if wiring.nodes[i].op_type == "Conv"), None)


def _is_depthwise(wiring: Wiring, nodes: list[int]) -> bool:
    node = _convolution(wiring, nodes)
    if node is None:
        return False
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    weight = next((t for t in wiring.graph.initializer if t.name == node.input[1]), None)
    return groups > 1 and weight is not None and len(weight.dims) > 1 and weight.dims[1] == 1


def _dimensions(wiring: Wiring, nodes: list[int]) -> int | None:
    for index in nodes:
        for attribute in wiring.nodes[index].attribute:
            if attribute.name == "kernel_shape":
                return len(attribute.ints)
    return None

"""From a TensorFlow graph to ONNX. Runs in a process of its own; see `graphs`.

The graph is frozen (variables become constants), cut down to what leads from its inputs to its
outputs, and converted by tf2onnx.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import saved_model_pb2

from pellucid.adapters.keras.export import frozen_to_onnx
from pellucid.adapters.tensorflow.safety import refuse_large, refuse_unsafe
from pellucid.errors import LoadError, PellucidError, UnsupportedError, first_line, nearest

__all__ = ["Request", "converted", "main"]

_VARIABLES = frozenset((
    "Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable",
))  # fmt: skip
_ENDS = frozenset((
    "Const", "NoOp", "Assert", "Placeholder", "PlaceholderWithDefault", "PlaceholderV2", "Print",
    "VarIsInitializedOp",
))  # fmt: skip
_CHOOSING = frozenset(("ArgMax", "TopK", "TopKV2", "InTopK", "InTopKV2", "Equal", "Round"))
_SHAPING = frozenset(("Identity", "Cast", "Squeeze", "ExpandDims"))
_KEEP, _RATE = re.compile("keep", re.I), re.compile("drop|rate", re.I)
_TESTING = re.compile(r"test|infer|eval", re.I)
_OWN_NAME = re.compile(r"^[A-Z]\w*__\d+$")  # a name that tf2onnx made up
_WEIGHT = re.compile(r"(/ReadVariableOp(_\d+)?|/read|/(kernel|weights|bias|Conv2D))*(:\d+)?$")
_MOST_OUTPUTS = 8


@dataclass(frozen=True)
class Request:
    """What is to be converted, and to where."""

    path: Path
    inputs: Mapping[str, Sequence[int | None] | None] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    allow_code: bool = False


def converted(request: Request) -> tuple[Any, list[str]]:
    """Convert a frozen graph or a SavedModel.

    Returns
    -------
    model, notes : an `onnx.ModelProto`, and what was guessed.

    Raises
    ------
    LoadError : it is damaged, not frozen, refused, or its ends cannot be told.
    UnsupportedError : an operation has no ONNX form.
    """
    notes: list[str] = []
    if request.path.is_dir():
        graph, inputs, outputs = _signature(request.path, request.allow_code)
    else:
        graph, inputs, outputs = _frozen(request.path, request.allow_code), [], []
    shapes = dict(request.inputs)
    _fix_switches(graph, {_node(name) for name in (*shapes, *inputs)}, notes)
    _shape_inputs(graph, shapes, request.path)
    whole = tf.Graph()
    try:
        with whole.as_default():
            tf.import_graph_def(graph, name="")
    except Exception as error:  # TensorFlow names the node that it cannot take
        raise LoadError(
            f"{request.path} holds a graph that TensorFlow {tf.__version__} cannot import: "
            f"{first_line(error)}"
        ) from error
    ends = _Ends(request.path, whole, notes)
    given = [ends.tensor(name, "output") for name in request.outputs]
    results = given or [whole.get_tensor_by_name(name) for name in outputs] or ends.outputs()
    entries = [ends.tensor(name, "input") for name in shapes]
    entries = entries or [whole.get_tensor_by_name(name) for name in inputs] or ends.inputs(results)
    names = [t.name for t in entries], [t.name for t in results]
    model = _through_tf2onnx(whole, *names)
    _rename_nodes(model.graph)
    return model, notes


# ---- reading ---------------------------------------------------------------------------------


def _frozen(path: Path, allow_code: bool) -> Any:
    data = path.read_bytes()
    graph = graph_pb2.GraphDef()
    try:
        graph.ParseFromString(data)
    except Exception as error:
        if _is_saved_model(data):
            raise _part_of_saved_model(path) from error
        raise LoadError(
            f"{path} is no TensorFlow graph, or it is damaged or cut short ({first_line(error)})."
        ) from error
    if not graph.node or not any(node.op for node in graph.node):
        raise _no_graph(path, data)
    refuse_large(path, graph)
    if not allow_code:
        refuse_unsafe(path, [graph], frozen=True)
    if variables := [node.name for node in graph.node if node.op in _VARIABLES]:
        raise LoadError(
            f"{path} is not frozen: the values of {variables[0]!r} and {len(variables) - 1} other "
            "variables are in a checkpoint elsewhere. Give the SavedModel folder, or freeze the "
            "graph with them (tf.compat.v1.graph_util.convert_variables_to_constants)."
        )
    return graph


def _no_graph(path: Path, data: bytes) -> LoadError:
    if _is_saved_model(data):
        return _part_of_saved_model(path)
    return LoadError(f"{path} holds no TensorFlow graph: there is no operation in it.")


def _is_saved_model(data: bytes) -> bool:
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(data)
    except Exception:
        return False
    return bool(saved.meta_graphs)


def _part_of_saved_model(path: Path) -> LoadError:
    return LoadError(f"{path} is a part of a SavedModel: give its folder, {path.parent}.")


def _signature(folder: Path, allow_code: bool) -> tuple[Any, list[str], list[str]]:
    """Return the frozen graph of a SavedModel's signature with its inputs and outputs."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:
        raise LoadError(
            f"{folder} holds a damaged saved_model.pb ({first_line(error)}). Save it again."
        ) from error
    graphs = [meta.graph_def for meta in proto.meta_graphs]
    for graph in graphs:
        refuse_large(folder, graph)
    if not allow_code:
        refuse_unsafe(folder, graphs)
    try:
        loaded = tf.saved_model.load(str(folder))
        functions = dict(loaded.signatures)
        known = [name for name in functions if not name.startswith("__")]
        name = "serving_default" if "serving_default" in functions else known[0]
        frozen = convert_variables_to_constants_v2(functions[name])
    except Exception as error:
        raise LoadError(
            f"{folder} cannot be opened as a SavedModel with a signature: {first_line(error)}"
        ) from error
    inputs = [t.name for t in frozen.inputs if t.dtype != tf.resource]
    return frozen.graph.as_graph_def(), inputs, [t.name for t in frozen.outputs]


# ---- inputs and outputs ----------------------------------------------------------------------


def _node(name: str) -> str:
    return name.split(":")[0]


def _fix_switches(graph: Any, given: set[str], notes: list[str]) -> None:
    """Turn the placeholders that switch training on into constants: there is none here."""
    for node in graph.node:
        if not node.op.startswith("Placeholder") or node.name in given:
            continue
        kind = tf.as_dtype(node.attr["dtype"].type)
        dims = node.attr["shape"].shape
        if kind == tf.bool:
            value: Any = bool(_TESTING.search(node.name))
        elif kind.is_floating and not dims.dim and _KEEP.search(node.name):
            value = 1.0
        elif kind.is_floating and not dims.dim and _RATE.search(node.name):
            value = 0.0
        else:
            continue
        if node.op == "PlaceholderWithDefault":
            notes.append(f"The input {node.name!r} was fixed at {value}.")
        else:
            notes.append(f"The input {node.name!r} switches training; it was fixed at {value}.")
        node.op = "Const"
        node.ClearField("input")
        node.attr.clear()
        node.attr["dtype"].type = kind.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, kind))


def _shape_inputs(graph: Any, shapes: Mapping[str, Any], path: Path) -> None:
    nodes = {node.name: node for node in graph.node}
    for name, shape in shapes.items():
        if shape is None:
            continue
        node = nodes.get(_node(name))
        if node is None or node.op != "Placeholder":
            raise LoadError(
                f"{path}: the shape of {name!r} cannot be set, since it is no placeholder."
            )
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(list(shape)).as_proto())


class _Ends:
    """Finds what goes into a graph and what comes out."""

    def __init__(self, path: Path, graph: Any, notes: list[str]) -> None:
        self.path, self.graph, self.notes = path, graph, notes
        self.operations = {operation.name: operation for operation in graph.get_operations()}

    def tensor(self, name: str, role: str) -> Any:
        """Look a tensor up by its name, or by its operation's."""
        node, _, index = name.partition(":")
        operation = self.operations.get(node)
        if operation is None or not (index or "0").isdecimal():
            raise LoadError(
                f"{self.path} has no {role} {name!r}. {nearest(node, list(self.operations))}"
            )
        if int(index or 0) >= len(operation.outputs):
            raise LoadError(f"{self.path}: {node!r} has {len(operation.outputs)} outputs.")
        return operation.outputs[int(index or 0)]

    def outputs(self) -> list[Any]:
        """Guess the outputs: what nothing reads, and before it is reduced to a choice."""
        fed = self._fed()
        ends = [
            operation for operation in self.operations.values()
            if operation.type not in _ENDS and operation in fed and operation.outputs
            and not any(tensor.consumers() for tensor in operation.outputs)
        ]  # fmt: skip
        tensors = dict.fromkeys(
            t.ref() for end in ends for t in self._before_choice(end.outputs[0], fed)
        )
        found = [reference.deref() for reference in tensors]
        ranked = [t for t in found if t.dtype.is_floating and t.shape.rank != 0] or found
        if not ranked or len(ranked) > _MOST_OUTPUTS:
            shown = ", ".join(repr(_node(t.name)) for t in ranked[:6])
            what = f"{len(ranked)} tensors could be: {shown}, ..." if ranked else "none could be."
            raise LoadError(
                f"{self.path}: which tensors are its outputs cannot be told; {what} Name them, "
                "outputs=['name']."
            )
        self.notes.append(_guessed("output", ranked))
        return ranked

    def inputs(self, outputs: Sequence[Any]) -> list[Any]:
        """Return the placeholders that the outputs depend on."""
        needed = _ancestors([t.op for t in outputs])
        holders = [o for o in needed if o.type in ("Placeholder", "PlaceholderV2")]
        holders = holders or [o for o in needed if o.type == "PlaceholderWithDefault"]
        if not holders:
            raise LoadError(
                f"{self.path}: its outputs depend on no placeholder. Name the tensors that go in, "
                "inputs=['name']."
            )
        order = {operation: index for index, operation in enumerate(self.operations.values())}
        found = [o.outputs[0] for o in sorted(holders, key=order.__getitem__)]
        for tensor in found:
            if tensor.dtype == tf.string:
                raise LoadError(
                    f"{self.path}: its input {_node(tensor.name)!r} takes text or encoded "
                    "pictures. Name the tensor behind the decoding, inputs=['name']."
                )
            if tensor.shape.rank is None:
                raise LoadError(
                    f"{self.path} does not say the shape of its input {_node(tensor.name)!r}. Give "
                    f"it, inputs={{{_node(tensor.name)!r}: (None, 224, 224, 3)}}."
                )
        self.notes.append(_guessed("input", found))
        return found

    def _fed(self) -> set[Any]:
        """Return the operations that depend on a placeholder."""
        start = [o for o in self.operations.values() if o.type.startswith("Placeholder")]
        seen, stack = set(start), list(start)
        while stack:
            for tensor in stack.pop().outputs:
                fresh = [o for o in tensor.consumers() if o not in seen]
                seen.update(fresh)
                stack.extend(fresh)
        return seen

    def _before_choice(self, tensor: Any, fed: set[Any]) -> Iterator[Any]:
        """Walk back from a class's index, or whether it is right, to the scores."""
        seen = tensor
        while seen.op.type in _SHAPING | _CHOOSING and seen.op.inputs[:]:
            choice = seen.op.type in _CHOOSING
            seen = seen.op.inputs[0]
            if choice:
                tensor = seen
        if tensor.op in fed and not tensor.op.type.startswith("Placeholder"):
            yield tensor


def _guessed(role: str, tensors: Sequence[Any]) -> str:
    names = ", ".join(repr(_node(t.name)) for t in tensors)
    return f"The graph does not say its {role}s; taken for {role}s: {names}."


def _ancestors(operations: Sequence[Any]) -> set[Any]:
    seen, stack = set(operations), list(operations)
    while stack:
        operation = stack.pop()
        before = [t.op for t in operation.inputs] + list(operation.control_inputs)
        fresh = [o for o in before if o not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return seen


# ---- converting ------------------------------------------------------------------------------


def _through_tf2onnx(graph: Any, inputs: list[str], outputs: list[str]) -> Any:
    from tf2onnx import tf_loader

    definition = tf.compat.v1.graph_util.extract_sub_graph(
        graph.as_graph_def(add_shapes=False), [_node(name) for name in outputs]
    )
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        tf.import_graph_def(definition, name="")
        optimised = tf_loader.tf_optimize(inputs, outputs, definition)
    return frozen_to_onnx(optimised, inputs, outputs)


def _rename_nodes(graph: Any) -> None:
    """Give nodes the names of the operations they came from, without what they all begin with.

    tf2onnx makes up names where it joins operations; then the weight tells where it came from.
    """
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if _OWN_NAME.match(node.name):
            own = [name for name in node.input if name in weights and "/" in name]
            node.name = _WEIGHT.sub("", own[0]) if own else node.name
    prefix = _shared([node.name for node in graph.node if "/" in node.name])
    taken: set[str] = set()
    for node in graph.node:
        name = node.name.removeprefix(prefix) or node.name
        node.name = name if name not in taken else f"{name}/{node.op_type}"
        taken.add(node.name)


def _shared(names: Sequence[str]) -> str:
    """Return the folders that all names lie in, `StatefulPartitionedCall/model/`."""
    prefix = ""
    while names:
        first, slash, _ = names[0].removeprefix(prefix).partition("/")
        if not slash or len(names) < 2 or not all(n.startswith(f"{prefix}{first}/") for n in names):
            break
        prefix += f"{first}/"
    return prefix


def main() -> None:
    """Answer one request: JSON on stdin, the ONNX bytes into the file that it names."""
    asked = json.load(sys.stdin)
    request = Request(
        Path(asked["path"]), asked["inputs"], asked["outputs"], bool(asked["allow_code"])
    )
    answer: dict[str, Any] = {}
    try:
        model, answer["notes"] = converted(request)
        Path(asked["target"]).write_bytes(model.SerializeToString())
    except PellucidError as error:
        answer["error"] = str(error)
        answer["unsupported"] = isinstance(error, UnsupportedError)
    except Exception as error:  # a damaged graph fails anywhere
        answer["error"] = f"{request.path} cannot be converted: {first_line(error)}"
    Path(asked["answer"]).write_text(json.dumps(answer))

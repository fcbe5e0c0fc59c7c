"""Keras models in ONNX form, with every layer call marked.

The model is traced once more, and every tensor that goes into or comes out of a layer call passes
through a `Snapshot`, an operation that no optimiser looks through. tf2onnx hands these on as
marks, so the ONNX graph says where every call begins and ends.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

from pellucid.adapters.base import Port
from pellucid.adapters.keras.trace import Recorder, Trace
from pellucid.errors import UnsupportedError, first_line
from pellucid.graph.form import Call, OnnxForm, PortForm
from pellucid.graph.kinds import kind_of
from pellucid.graph.marking import finished_form

__all__ = ["MarkingRecorder", "export_trace", "frozen_to_onnx"]

_OPSET = 18
_DOMAIN = "pellucid"
_LARGE = 1 << 14  # bytes
_WITH_KERNEL = frozenset(("Conv1D", "Conv2D", "Conv3D", "MatMul", "BatchMatMulV2"))
_STATISTIC = re.compile(r"moving_(mean|variance)|(^|/)(mean|variance|count)(:\d+)?$")


@dataclass
class _Marks:
    inputs: list[Any]
    outputs: list[Any]
    operation: Any


@dataclass
class MarkingRecorder(Recorder):
    """Notes every layer call, and marks what goes in and comes out."""

    marks: dict[int, _Marks] = field(default_factory=dict)  # by identity of the call's value

    def enter(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Mark the tensors that go into a call, unless they are marked already."""
        if self.is_inside_closed():
            return args, kwargs
        marked: tuple[Any, Any] = tf.nest.map_structure(
            lambda value: value if self._is_mark(value) else self._marked(value), (args, kwargs)
        )
        return marked

    def note(self, called: Any, args: Any, kwargs: Any, outputs: Any) -> Any:
        """Mark what comes out of a call, and note the call with its marks."""
        count = len(self.noted)
        marked = tf.nest.map_structure(self._marked, outputs)
        super().note(called, args, kwargs, marked)
        if len(self.noted) == count:
            return outputs
        sources = [t for t in tf.nest.flatten((args, kwargs)) if self.is_ours(t)]
        results = [t for t in tf.nest.flatten(marked) if self.is_ours(t)]
        self.marks[id(results[0])] = _Marks(sources, results, called)
        return marked

    def _is_mark(self, value: Any) -> bool:
        return self.is_ours(value) and value.op.type in ("Snapshot", "Placeholder")

    def _marked(self, value: Any) -> Any:
        if not self.is_ours(value) or value.dtype in (tf.resource, tf.variant):
            return value
        mark = tf.raw_ops.Snapshot(input=value)
        mask = getattr(value, "_keras_mask", None)
        if mask is not None:
            mark._keras_mask = mask
        return mark


def export_trace(
    traced: Trace,
    recorder: MarkingRecorder,
    model: Any,
    ports: tuple[Sequence[Port], Sequence[Port]],
) -> OnnxForm:
    """Convert a trace that was recorded with marks.

    Raises
    ------
    UnsupportedError : something in the network has no ONNX form; the message names it.
    """
    inputs, outputs = ports
    weights = {id(w): f"{i}:{w.name}" for i, w in enumerate(model.weights)}
    calls = []
    for layer in traced.layers:
        tensor, order = traced.named[layer.name]
        marks = recorder.marks.get(id(tensor))
        if marks is None:
            continue
        own = {
            weights[id(w)]: _size(w)
            for w in getattr(marks.operation, "weights", ())
            if id(w) in weights
        }
        statistics = {name: n for name, n in own.items() if _STATISTIC.search(name)}
        calls.append(
            Call(
                layer.name,
                layer.kind,
                layer.framework_class,
                layer.layout,
                layer.shape,
                tuple(t.name for t in marks.inputs),
                tuple(t.name for t in marks.outputs),
                order,
                {name: n for name, n in own.items() if name not in statistics},
                statistics,
                _fused(marks.operation),
            )
        )
    entering = [traced.named[port.name][0].name for port in inputs]
    leaving = [traced.named[port.name][0].name for port in outputs]
    wanted = [*leaving, *(mark for call in calls for mark in (*call.inputs, *call.outputs))]
    converted = _converted(traced.function, entering, list(dict.fromkeys(wanted)))
    return finished_form(
        converted,
        (
            [
                PortForm(p.name, t, p.layout, p.to_own)
                for p, t in zip(inputs, entering, strict=True)
            ],
            [
                PortForm(p.name, t, p.layout, p.to_own)
                for p, t in zip(outputs, leaving, strict=True)
            ],
        ),
        calls,
        {weights[id(w)]: _size(w) for w in model.weights if not _STATISTIC.search(weights[id(w)])},
        {},
        model.name,
        "/",
    )


def _port(port: Port, traced: Trace) -> PortForm:
    return PortForm(port.name, traced.named[port.name][0].name, port.layout, port.to_own)


def _size(weight: Any) -> int:
    return int(np.prod(tuple(weight.shape)))


def _fused(operation: Any) -> str:
    """Name the activation that a layer applies itself, as `Dense(activation="relu")` does."""
    activation = getattr(operation, "activation", None)
    if not callable(activation) or type(operation).__name__ == "Activation":
        return ""
    name = getattr(activation, "__name__", None) or type(activation).__name__
    return "" if name == "linear" else kind_of(name)


# ---- tf2onnx --------------------------------------------------------------------------------


def _converted(function: Any, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    try:
        from tf2onnx import tf_loader
    except ImportError as error:
        raise UnsupportedError(
            "The layer graph of a Keras model needs tf2onnx: install 'pellucid[tensorflow]'."
        ) from error
    found = _Obstacles()
    with found.listening(), tf.device("/cpu:0"):
        try:
            pruned, weights = _with_kernels_as_inputs(function, inputs, outputs)
            frozen = tf_loader.from_function(pruned, [*inputs, *weights], outputs)
        except Exception as error:  # tf2onnx raises whatever its handlers raise
            raise UnsupportedError(found.message(first_line(error))) from error
    return frozen_to_onnx(frozen, inputs, outputs, weights)


def frozen_to_onnx(
    graph: Any, inputs: list[str], outputs: list[str], weights: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """Convert a TensorFlow graph without variables.

    Parameters
    ----------
    graph : the `GraphDef`; its large kernels are taken out.
    inputs, outputs : names of tensors.
    weights : kernels that were taken out before, by tensor; the graph reads them as inputs.

    Raises
    ------
    UnsupportedError : an operation has no ONNX form; the message names it.
    """
    found = _Obstacles()
    with found.listening(), tf.device("/cpu:0"):
        try:
            weights = {**(weights or {}), **_taken_out(graph)}
            model = _without_weights(graph, [*inputs, *weights], outputs)
        except Exception as error:  # tf2onnx raises whatever its handlers raise
            raise UnsupportedError(found.message(first_line(error))) from error
    if found.operations:
        raise UnsupportedError(found.message(""))
    for node in model.graph.node:
        if node.domain == _DOMAIN:
            node.op_type, node.domain = "Identity", ""
    kept = [opset for opset in model.opset_import if opset.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    _put_back(model.graph, weights)
    return model


def _without_weights(graph: Any, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    from tf2onnx import optimizer
    from tf2onnx.tfonnx import process_tf_graph

    handlers: dict[str, Any] = {"Snapshot": (_mark, []), "Erfc": (_erfc, [])}
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        converted = process_tf_graph(
            imported,
            continue_on_error=True,
            opset=_OPSET,
            custom_op_handlers=handlers,
            extra_opset=[onnx.helper.make_opsetid(_DOMAIN, 1)],
            input_names=inputs,
            output_names=outputs,
        )
    optimized = optimizer.optimize_graph(converted, catch_errors=False)
    model: onnx.ModelProto = optimized.make_model("network")
    return model


def _with_kernels_as_inputs(
    function: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """Cut a traced function where it reads large kernels, and return these by tensor.

    Freezing and tf2onnx copy every constant dozens of times; a VGG-16 would need forty gigabytes.
    """
    captured = {inner.name: outer for outer, inner in function.graph.captures}
    weights = {}
    for operation in function.graph.get_operations():
        if operation.type != "ReadVariableOp" or operation.inputs[0].name not in captured:
            continue
        tensor = operation.outputs[0]
        kinds = {reader.type for reader in tensor.consumers()}
        size = (tensor.shape.num_elements() or 0) * tensor.dtype.size
        if kinds and kinds <= _WITH_KERNEL and size >= _LARGE:
            resource = captured[operation.inputs[0].name]
            read = tf.raw_ops.ReadVariableOp(resource=resource, dtype=tensor.dtype)
            weights[tensor.name] = np.asarray(read)  # the variable's own memory
    feeds, fetches = (
        [function.graph.get_tensor_by_name(name) for name in names]
        for names in ([*inputs, *weights], outputs)
    )
    return function.prune(feeds, fetches), weights


def _taken_out(graph: Any) -> dict[str, Any]:
    """Turn large kernels that are still constants into inputs, and return them by tensor."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name.removeprefix("^").split(":")[0], []).append(node.op)
    found = {}
    for node in graph.node:
        if node.op != "Const" or not _WITH_KERNEL.issuperset(readers.get(node.name, ["none"])):
            continue
        array = tf.make_ndarray(node.attr["value"].tensor)
        if array.nbytes < _LARGE:
            continue
        found[f"{node.name}:0"] = array
        kind = node.attr["dtype"].type
        node.op = "Placeholder"
        node.attr.clear()
        node.attr["dtype"].type = kind
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    return found


def _put_back(graph: onnx.GraphProto, weights: Mapping[str, Any]) -> None:
    """Turn the inputs that are kernels into initializers, with their axes as their node wants."""
    arrays: dict[str, Any] = {}
    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next(list(a.ints) for a in node.attribute if a.name == "perm")
            arrays[node.output[0]] = weights[node.input[0]].transpose(order)
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    arrays |= {name: array for name, array in weights.items() if name in read}
    for name, array in arrays.items():
        tensor = graph.initializer.add(name=name, dims=array.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.raw_data = array.tobytes()
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def _mark(_context: Any, node: Any, _name: str, _arguments: Any) -> Any:
    node.domain, node.type = _DOMAIN, "Mark"
    return node


def _erfc(context: Any, node: Any, name: str, _arguments: Any) -> Any:
    """Convert the complementary error function, which ONNX lacks: 1 - erf(x)."""
    node.type = "Erf"
    one = context.make_const(f"{name}_one", np.ones((), np.float32))
    return context.insert_new_node_on_output(
        "Sub", node.output[0], name=f"{name}_complement", inputs=[one.output[0], node.output[0]]
    )


@dataclass
class _Obstacles:
    """What tf2onnx complains of in its log; it goes on after the first complaint."""

    operations: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        logger = logging.getLogger("tf2onnx")
        others = [logging.getLogger(n) for n in logging.root.manager.loggerDict if "tf2onnx" in n]
        handler = logging.Handler()
        handler.emit = self._hear  # type: ignore[method-assign]
        before = [(one, one.level, one.propagate, list(one.handlers)) for one in [logger, *others]]
        try:
            for one, *_ in before:
                one.setLevel(logging.ERROR)
                one.handlers, one.propagate = [handler], False
            yield
        finally:
            for one, level, propagate, handlers in before:
                one.setLevel(level)
                one.handlers, one.propagate = handlers, propagate

    def _hear(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        match = re.search(r"Tensorflow op \[([^:\]]+): (\w+)\] is not supported", text) or (
            re.search(r"Failed to convert node '([^']+)'.*?op_type=(\w+)", text, re.DOTALL)
        )
        if match:
            self.operations.setdefault(match[2], match[1])

    def message(self, reason: str) -> str:
        """Say which operation stands in the way."""
        named = [f"the operation {kind} (at {place})" for kind, place in self.operations.items()]
        what = " and ".join(named[:3]) + " cannot be converted to ONNX" if named else reason
        return (
            f"The layer graph of this network cannot be read: {what}. Everything that needs no "
            "graph still works; `model.layers` lists the layers."
        )

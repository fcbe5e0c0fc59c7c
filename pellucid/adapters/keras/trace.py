"""One forward pass of a Keras model as a TensorFlow graph in which every layer call is known.

The model is traced once per input shape. While it is traced, the one method through which every
Keras layer and operation is called notes what it returns, so nested, shared, fused, subclassed
and functional models all look alike. Programs that fetch values and gradients are then cut out
of this one graph; the model is not called again.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf

from pellucid.adapters.base import Layer, Layout, numbered
from pellucid.graph.kinds import kind_of, layout_of

__all__ = [
    "Recorder",
    "Trace",
    "channels_first",
    "functions_inlined",
    "has_open_functions",
    "trace",
]

_RESERVED = re.compile(r"^(input|output|logits)(:\d+)?$")
_NO_OPS = frozenset(("Identity", "Cast", "Reshape", "Squeeze", "StopGradient", "PreventGradient"))
_CALLS = frozenset(("PartitionedCall", "StatefulPartitionedCall"))
_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}


@dataclass(frozen=True)
class Trace:
    """A traced forward pass.

    Attributes
    ----------
    layers : all layer calls in the order in which they finish.
    named : every addressable tensor, with the permutation of its axes from channels first to
        its own layout.
    activations : the final activation of each output, or None.
    """

    function: Any
    inputs: list[Any]
    layers: tuple[Layer, ...]
    named: dict[str, tuple[Any, tuple[int, ...]]]
    activations: list[str | None]
    output_layouts: list[Layout]

    @property
    def graph(self) -> Any:
        """The TensorFlow graph; programs add their gradient operations to it."""
        return self.function.graph


def trace(
    operation: type,
    call: Callable[[Sequence[Any]], Any],
    specs: Sequence[Any],
    data_format: str,
    recorder: Recorder,
) -> Trace:
    """Trace one forward pass of a model.

    Parameters
    ----------
    operation : the class whose `__call__` every layer goes through.
    call : calls the model on a list of tensors.
    specs : one `tf.TensorSpec` per input, in the model's own layout.
    data_format : what rank-4 tensors are where no layer says it.
    recorder : what notes the calls.
    """
    results: list[Any] = []

    def forward(*tensors: Any) -> Any:
        recorder.begin(tensors)
        with recorder.watching(operation):
            outputs = tf.nest.flatten(call(tensors))
        results.extend(outputs)
        return outputs

    function = tf.compat.v1.wrap_function(forward, list(specs))
    return _named(function, recorder, results, data_format)


@contextmanager
def functions_inlined() -> Iterator[None]:
    """Trace into every `tf.function`, whose calls stay shut otherwise.

    What is traced so need not run: with some, Keras convolves groups, compiled by XLA.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def has_open_functions(graph: Any) -> bool:
    """Whether a graph calls functions, all of which run without being compiled."""
    calls = [op for op in graph.get_operations() if op.type in _CALLS]
    return bool(calls) and not any(_is_compiled(op) for op in calls)


def _is_compiled(op: Any) -> bool:
    try:
        return bool(op.get_attr("_XlaMustCompile"))
    except ValueError:
        return False


@dataclass
class _Note:
    path: str
    operation: Any
    tensor: Any
    sources: list[Any]
    container: bool


@dataclass
class Recorder:
    """Notes every layer call of one forward pass."""

    model_class: type  # whose instances hold layers
    renamed: Mapping[str, str] = field(default_factory=dict)  # to the names of the file
    arguments: list[Any] = field(default_factory=list)
    noted: list[_Note] = field(default_factory=list)
    stack: list[Any] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    graph: Any = None

    def begin(self, tensors: Sequence[Any]) -> None:
        """Start with the model's arguments."""
        self.arguments = list(tensors)
        self.graph = tensors[0].graph

    @contextmanager
    def watching(self, operation: type) -> Iterator[None]:
        """Note the calls that this thread makes; the class is as before afterwards."""
        original, owner = operation.__call__, threading.get_ident()

        def noting(called: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return original(called, *args, **kwargs)
            args, kwargs = self.enter(args, kwargs)
            self.stack.append(called)
            try:
                outputs = original(called, *args, **kwargs)
            finally:
                self.stack.pop()
            return self.note(called, args, kwargs, outputs)

        operation.__call__ = noting  # type: ignore[method-assign]
        try:
            yield
        finally:
            operation.__call__ = original  # type: ignore[method-assign]

    def enter(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments that a call is to get."""
        return args, kwargs

    def note(self, called: Any, args: Any, kwargs: Any, outputs: Any) -> Any:
        """Note a call that has finished, and return its outputs."""
        if not self.stack or self.is_inside_closed():  # the model itself, or part of a layer
            return outputs
        tensors = [t for t in tf.nest.flatten(outputs) if self.is_ours(t)]
        if not tensors:
            return outputs
        holders = self._holders()
        path = "/".join(self.renamed.get(part.name, part.name) for part in (*holders, called))
        index = self.counts[path]
        self.counts[path] += 1
        sources = [t for t in tf.nest.flatten(args) if self.is_ours(t)]
        container = isinstance(called, self.model_class)
        name = numbered(path, index)
        self.noted.append(_Note(name, called, tensors[0], sources, container))
        return outputs

    def _holders(self) -> list[Any]:
        """Return what is being called around this, without the model itself."""
        return self.stack[1:]

    def is_inside_closed(self) -> bool:
        """Whether what is called now is part of a layer that counts as one."""
        return any(self._is_closed(holder) for holder in self._holders())

    def is_ours(self, value: Any) -> bool:
        """Whether a value is a tensor of this trace."""
        return isinstance(value, tf.Tensor) and getattr(value, "graph", None) is self.graph

    def _is_closed(self, holder: Any) -> bool:
        """Whether a layer counts as one: Keras's own, such as MultiHeadAttention."""
        if isinstance(holder, self.model_class):
            return False
        return type(holder).__module__.split(".")[0] in ("keras", "tf_keras")


Meaning = tuple[Layout, str]  # what the axes are, and in which data format


def _meanings(
    notes: Sequence[_Note], inputs: Sequence[Any], data_format: str
) -> dict[int, Meaning]:
    """Find out what the axes of each input and noted tensor mean, by tensor identity."""
    known: dict[int, Meaning] = {}
    for tensor in inputs:
        rank = len(tensor.shape)
        consumers = [n for n in notes if any(source is tensor for source in n.sources)]
        says = (layout_of(_kind(note.operation), rank) for note in consumers)
        known[id(tensor)] = (next(filter(None, says), _default_layout(rank)), data_format)
        for note in notes:  # the first layer that has a data format decides
            own_format = getattr(note.operation, "data_format", None)
            if own_format and any(len(source.shape) == rank for source in note.sources):
                known[id(tensor)] = (known[id(tensor)][0], str(own_format))
                break
    for note in notes:
        if note.container and id(note.tensor) in known:
            continue
        rank = len(note.tensor.shape)
        like = [known[id(s)] for s in note.sources if id(s) in known and len(s.shape) == rank]
        inherited, own_format = like[0] if like else (_default_layout(rank), data_format)
        own_format = getattr(note.operation, "data_format", None) or own_format
        known[id(note.tensor)] = (layout_of(_kind(note.operation), rank) or inherited, own_format)
    return known


def _default_layout(rank: int) -> Layout:
    return "spatial" if rank > 3 else "tokens" if rank == 3 else "features"


def _kind(operation: Any) -> str:
    name = type(operation).__name__
    if name == "Activation":
        activation = getattr(operation, "activation", None)
        return kind_of(getattr(activation, "__name__", None) or type(activation).__name__)
    if name == "ReLU" and getattr(operation, "max_value", None) == 6:
        return "ReLU6"
    return kind_of(name)


def _to_own(tensor: Any, meaning: Meaning) -> tuple[int, ...]:
    """Return the permutation of axes from channels first to the tensor's own layout."""
    layout, data_format = meaning
    rank = len(tensor.shape)
    if layout != "spatial" or rank < 3 or data_format == "channels_first":
        return tuple(range(rank))
    return (0, *range(2, rank), 1)


def _layer(note: _Note, layout: Layout, to_own: Sequence[int]) -> Layer:
    shape = (None, *channels_first(note.tensor.shape, to_own)[1:])
    kind, class_name = _kind(note.operation), type(note.operation).__name__
    layout = layout if len(shape) > 2 else "features"
    return Layer(note.path, kind, shape, layout, class_name, note.container)


def _named(
    function: Any,
    recorder: Recorder,
    results: Sequence[Any],
    data_format: str,
) -> Trace:
    """Give every tensor its name, and find the value before each final activation."""
    meanings = _meanings(recorder.noted, recorder.arguments, data_format)

    def meaning(tensor: Any) -> Meaning:
        return meanings.get(id(tensor), (_default_layout(len(tensor.shape)), data_format))

    def order(tensor: Any) -> tuple[int, ...]:
        return _to_own(tensor, meaning(tensor))

    named = {numbered("input", i): (t, order(t)) for i, t in enumerate(recorder.arguments)}
    activations = []
    for index, result in enumerate(results):
        activation, logits = _before_activation(result)
        activations.append(activation)
        same = order(result) if len(logits.shape) == len(result.shape) else order(logits)
        named[numbered("output", index)] = (result, order(result))
        named[numbered("logits", index)] = (logits, same)
    layers = []
    for note in recorder.noted:
        if _RESERVED.match(note.path):
            if note.path in named and named[note.path][0] is note.tensor:
                continue
            note = replace(note, path=note.path + "_")
        named[note.path] = (note.tensor, order(note.tensor))
        layers.append(_layer(note, meanings[id(note.tensor)][0], named[note.path][1]))
    layouts = [meaning(result)[0] for result in results]
    return Trace(function, recorder.arguments, tuple(layers), named, activations, layouts)


def _before_activation(tensor: Any) -> tuple[str | None, Any]:
    """Walk back from an output over no-ops to its softmax or sigmoid, if it ends in one."""
    op = tensor.op
    while op.type in _NO_OPS:
        op = op.inputs[0].op
    if op.type in _ACTIVATIONS:
        return _ACTIVATIONS[op.type], op.inputs[0]
    return None, tensor


def channels_first(shape: Sequence[Any], to_own: Sequence[int]) -> tuple[Any, ...]:
    """Reorder a shape in the tensor's own layout to channels first."""
    placed = dict(zip(to_own, shape, strict=True))
    return tuple(placed[axis] for axis in range(len(placed)))

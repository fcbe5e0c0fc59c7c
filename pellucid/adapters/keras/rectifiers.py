"""Rectifier rules for guided backpropagation and deconvnet, on the TensorFlow graph.

While the gradient operations are added to the graph, the rectifiers of the forward pass carry
the name of another gradient function. So the rule holds however the rectifier was written: as a
layer, an Activation, fused into a convolution, an operation, shared or nested, or in the steps of
a recurrent layer.

The policy is that of `pellucid.adapters.torch.rectifiers`: `guided` sets negative cotangents to
zero and then applies the exact derivative; `deconv` does not apply the derivative. Most
rectifiers are no single operation. So each operation that works element by element is done once
more on a few numbers in place of the tensor from which it started, and judged by
`pellucid.graph.rectifiers` as a function of one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import ops
from tensorflow.python.ops.control_flow_util_v2 import create_new_tf_function

from pellucid.adapters.base import Rectifier
from pellucid.graph.rectifiers import PROBES, rectified

__all__ = ["bent_rectifiers", "find_rectifiers"]

_NAMED = frozenset(("Relu", "Relu6", "LeakyRelu", "Elu", "Selu"))
_ELEMENTWISE = _NAMED | frozenset((
    "Abs", "Add", "AddV2", "Atan", "Cast", "ClipByValue", "Div", "DivNoNan", "Equal", "Erf",
    "Erfc", "Exp", "Expm1", "Greater", "GreaterEqual", "Identity", "IdentityN", "Inv", "Less",
    "LessEqual", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum",
    "Mul", "MulNoNan", "Neg", "NotEqual", "Pow", "RealDiv", "Reciprocal", "Rsqrt", "Select",
    "SelectV2", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Square", "SquaredDifference",
    "StopGradient", "Sub", "Tanh",
))  # fmt: skip
_RAW_NAMES = {"Select": {"t": "x", "e": "y"}}  # of operands, where they differ from the graph's
_FARTHEST = 8  # tensors back to which a curve is known
_ATTRIBUTE = "_gradient_op_type"
_registered: dict[str, str] = {}

Curves = dict[Any, Any]  # values at the probes by the tensor that they replace, the nearest last


@dataclass(frozen=True, eq=False)
class Found:
    """A rectifier.

    Attributes
    ----------
    op : the operation that ends it.
    source : the tensor that it rectifies.
    operand : which of the operation's inputs leads there.
    inner : its other operations.
    """

    op: Any
    source: Any
    operand: int
    inner: frozenset[Any] = frozenset()


@contextmanager
def bent_rectifiers(graph: Any, rule: Rectifier) -> Iterator[None]:
    """Apply the rule to the gradient operations that are made inside the context."""
    loops = [] if rule == "exact" else list(_loops(graph))
    graphs = [] if rule == "exact" else [graph, *(loop._body_graph for loop in loops)]
    found = [rectifier for each in graphs for rectifier in find_rectifiers(each)]
    original = {rectifier.op: _gradient_name(rectifier.op) for rectifier in found}
    before = {rectifier: rectifier.op.inputs[rectifier.operand] for rectifier in found}
    try:
        for rectifier in found:
            _name_gradient(rectifier.op, _registered_rule(rectifier, rule, original[rectifier.op]))
            if rule == "deconv":  # past what is between
                _lead(rectifier, rectifier.source)
        yield
    finally:
        for rectifier in found:
            _lead(rectifier, before[rectifier])
        for op, name in original.items():
            if name == op.type:
                op._clear_attr(_ATTRIBUTE)
            else:
                _name_gradient(op, name)
        for loop in reversed(loops):  # whose bodies were kept as they stood inside the context
            loop._body_graph.name += "_restored"
            loop._set_func_attr("body", create_new_tf_function(loop._body_graph))


def _loops(graph: Any) -> Iterator[Any]:
    """Yield the loops of a graph, and those in their bodies."""
    for op in graph.get_operations():
        if op.type in ("While", "StatelessWhile") and hasattr(op, "_body_graph"):
            yield op
            yield from _loops(op._body_graph)


def find_rectifiers(graph: Any) -> list[Found]:
    """Find the rectifiers; the largest spelling counts, what it contains is part of it."""
    known: dict[Any, Curves] = {}
    candidates: list[Found] = []
    with tf.init_scope():  # outside of the graph
        for op in graph.get_operations():
            curves = _curves(op, known) if op.type in _ELEMENTWISE else {}
            if curves:
                known[op.outputs[0].ref()] = curves
            rectifier = _parametric(op) or _spelled(op, curves, known) or _named(op)
            if rectifier is not None:
                candidates.append(rectifier)
    found, inside = list[Found](), set[Any]()
    for rectifier in reversed(candidates):
        if rectifier.op not in inside:
            found.append(rectifier)
            inside |= rectifier.inner
    return found


def _curves(op: Any, known: dict[Any, Curves]) -> Curves:
    """Do an operation on curves, for each source from which all its operands follow."""
    if op.type == "IdentityN":  # the result of a function with a gradient of its own
        result = op.inputs[0].ref()
        return {s: curve for s, curve in known.get(result, {}).items() if s != result}
    operands = [_from(tensor, known) for tensor in op.inputs]
    tracked = [curves for curves in operands if isinstance(curves, dict)]
    shared = [s for s in tracked[0] if all(s in curves for curves in tracked)] if tracked else []
    if not shared:
        return {}
    shared = shared[-_FARTHEST:]
    given = [
        np.stack([operand[source] for source in shared])
        if isinstance(operand, dict)
        else np.full((len(shared), len(PROBES)), operand)
        for operand in operands
    ]
    return dict(zip(shared, _done(op, given), strict=True))


def _from(tensor: Any, known: dict[Any, Curves]) -> Any:
    """Return the curves of a tensor, itself as the nearest source; or its number, if constant."""
    number = _number(tensor)
    if number is not None:
        return number
    curves = known.setdefault(tensor.ref(), {})
    if tensor.dtype.is_floating and tensor.ref() not in curves:
        curves[tensor.ref()] = np.asarray(PROBES, tensor.dtype.as_numpy_dtype)
    return curves


def _done(op: Any, operands: list[Any]) -> Any:
    """Do the same operation on other operands."""
    inputs = op.op_def.input_arg
    inferred = {argument.type_attr for argument in inputs}
    raw = _RAW_NAMES.get(op.type, {})
    names = [raw.get(argument.name, argument.name) for argument in inputs]
    given = dict(zip(names, operands, strict=True))
    given |= {a.name: op.get_attr(a.name) for a in op.op_def.attr if a.name not in inferred}
    return getattr(tf.raw_ops, op.type)(**given).numpy()


def _number(tensor: Any) -> Any:
    """Return the one number of which a constant consists, or None."""
    if tensor.op.type in ("ZerosLike", "OnesLike"):
        return tensor.dtype.as_numpy_dtype(tensor.op.type == "OnesLike")
    if tensor.op.type in ("Fill", "BroadcastTo"):  # to a shape that is known when it runs
        return _number(tensor.op.inputs[tensor.op.type == "Fill"])
    value = tf.get_static_value(tensor)
    if value is None or not np.size(value) or (value != value.flat[0]).any():
        return None
    return value.flat[0]


def _spelled(op: Any, curves: Curves, known: dict[Any, Curves]) -> Found | None:
    shape = op.outputs[0].shape if curves else None
    alike = [s for s in reversed(curves) if s.deref().shape.is_compatible_with(shape)]
    chosen = rectified(curves[source] for source in alike)
    if chosen is None:
        return None
    key, source = alike[chosen], alike[chosen].deref()
    leading = [
        index
        for index, tensor in enumerate(op.inputs)
        if key in known.get(tensor.ref(), ())
        and tensor.dtype == source.dtype
        and tensor.shape.is_compatible_with(source.shape)
    ]
    leading.sort(key=lambda index: op.inputs[index] is not source)
    return Found(op, source, leading[0], _between(op, key, known)) if leading else None


def _between(op: Any, source: Any, known: dict[Any, Curves]) -> frozenset[Any]:
    """Return the operations before an operation and after a source."""
    inner: set[Any] = set()
    waiting = [op]
    while waiting:
        for tensor in waiting.pop().inputs:
            follows = tensor.ref() != source and source in known.get(tensor.ref(), ())
            if follows and tensor.op not in inner:
                inner.add(tensor.op)
                waiting.append(tensor.op)
    return frozenset(inner)


def _named(op: Any) -> Found | None:
    return Found(op, op.inputs[0], 0) if op.type in _NAMED else None


def _parametric(op: Any) -> Found | None:
    """Recognise Keras's PReLU, relu(x) +- alpha * relu(-x), by its form: it has many slopes."""
    if op.type not in ("Add", "AddV2", "Sub"):
        return None
    for operand in (0, 1):
        positive, other = op.inputs[operand].op, op.inputs[1 - operand].op
        if positive.type != "Relu" or other.type != "Mul":
            continue
        for factor in other.inputs:
            negative = factor.op
            flipped = negative.inputs[0].op if negative.type == "Relu" else negative
            if flipped.type == "Neg" and flipped.inputs[0] is positive.inputs[0]:
                inner = frozenset((positive, other, negative))
                return Found(op, positive.inputs[0], operand, inner)
    return None


def _lead(rectifier: Found, tensor: Any) -> None:
    if rectifier.op.inputs[rectifier.operand] is not tensor:
        rectifier.op._update_input(rectifier.operand, tensor)


def _gradient_name(op: Any) -> str:
    try:
        return str(op.get_attr(_ATTRIBUTE).decode())
    except ValueError:
        return str(op.type)


def _name_gradient(op: Any, name: str) -> None:
    op._set_attr(_ATTRIBUTE, attr_value_pb2.AttrValue(s=name.encode()))


def _registered_rule(rectifier: Found, rule: Rectifier, original: str) -> str:
    """Register the rule's gradient function for this kind of rectifier, once; return its name."""
    operand = rectifier.operand
    key = f"{rule}/{original}/{operand}"
    if key not in _registered:
        name = f"Pellucid{len(_registered)}"
        exact: Callable[..., Any] = ops.gradient_registry.lookup(original)

        def guided(op: Any, cotangent: Any, *others: Any) -> Any:
            return exact(op, tf.nn.relu(cotangent), *others)

        def deconv(op: Any, cotangent: Any, *_: Any) -> Any:
            passed: list[Any] = [None] * len(op.inputs)
            passed[operand] = tf.nn.relu(cotangent)
            return passed

        tf.RegisterGradient(name)(guided if rule == "guided" else deconv)
        _registered[key] = name
    return _registered[key]

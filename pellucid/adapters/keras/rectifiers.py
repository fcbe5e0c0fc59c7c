"""Rectifier rules for guided backpropagation and deconvnet, on the TensorFlow graph.

While the gradient operations are added to the graph, the rectifiers of the forward pass carry
the name of another gradient function. So the rule holds however the rectifier was written: as a
layer, an Activation, fused into a convolution, an operation, shared or nested.

The policy is that of `pellucid.adapters.torch.rectifiers`: `guided` sets negative cotangents to
zero and then applies the exact derivative; `deconv` does not apply the derivative. TensorFlow
has no operation for GELU, SiLU, Mish, hard-swish and PReLU; they are recognised by what they are,
`x` times a gate made of `x` alone. So are `x * (x > 0)`, and `where(x > 0, x, ...)` with zero or a
function of `x` alone as the alternative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import ops

from pellucid.adapters.base import Rectifier

__all__ = ["bent_rectifiers", "find_rectifiers"]

_SINGLE = frozenset(("Relu", "Relu6", "LeakyRelu", "Elu", "Selu"))
_ABOVE, _BELOW = ("Greater", "GreaterEqual"), ("Less", "LessEqual")
_GATES = frozenset(("Sigmoid", "Tanh", "Erf", "Erfc", "Relu6", *_ABOVE))
_ELEMENTWISE = _GATES | frozenset((
    "Add", "AddV2", "Sub", "Mul", "RealDiv", "Pow", "Square", "Neg", "Softplus", "Exp", "Log1p",
    "Minimum", "Maximum", "Relu", "Identity", "Cast", "Elu", "Expm1",
))  # fmt: skip
_ATTRIBUTE = "_gradient_op_type"
_registered: dict[str, str] = {}


@dataclass(frozen=True)
class Found:
    """An operation that ends a rectifier.

    Attributes
    ----------
    operand : which of its inputs leads to the rectified tensor `x`.
    factor : that input is `factor * x`.
    inner : operations that belong to it and are no rectifiers of their own.
    """

    op: Any
    operand: int = 0
    factor: float = 1.0
    inner: tuple[Any, ...] = ()


@contextmanager
def bent_rectifiers(graph: Any, rule: Rectifier) -> Iterator[None]:
    """Apply the rule to the gradient operations that are made inside the context."""
    found = [] if rule == "exact" else find_rectifiers(graph)
    original = {rectifier.op: _gradient_name(rectifier.op) for rectifier in found}
    try:
        for rectifier in found:
            _name_gradient(rectifier.op, _registered_rule(rectifier, rule, original[rectifier.op]))
        yield
    finally:
        for op, name in original.items():
            if name == op.type:
                op._clear_attr(_ATTRIBUTE)
            else:
                _name_gradient(op, name)


def find_rectifiers(graph: Any) -> list[Found]:
    """Find the operations that end a rectifier, however it was written."""
    composite = [f for op in graph.get_operations() if (f := _composite(op)) is not None]
    inner = {op for rectifier in composite for op in rectifier.inner}
    single = [Found(op) for op in graph.get_operations() if op.type in _SINGLE and op not in inner]
    return single + [rectifier for rectifier in composite if rectifier.op not in inner]


def _composite(op: Any) -> Found | None:
    if op.type == "Maximum":  # max(x, 0)
        zero = [_is_zero(operand) for operand in op.inputs]
        return Found(op, operand=zero.index(False)) if sum(zero) == 1 else None
    if op.type == "Mul":  # x * gate(x)
        for operand, gate in ((0, op.inputs[1]), (1, op.inputs[0])):
            source, factor = _without_factor(op.inputs[operand])
            inner = _gate_of(gate, source)
            if inner is not None:
                return Found(op, operand, factor, inner)
    if op.type in ("Select", "SelectV2"):
        return _choice(op)
    if op.type in ("Add", "AddV2", "Sub"):  # relu(x) +- alpha * relu(-x), Keras's PReLU
        return _parametric(op)
    if op.type == "IdentityN" and _gradient_name(op) != op.type:  # tf.nn.silu, with its own rule
        inside = _composite(op.inputs[0].op)
        if inside is not None:
            source, _ = _without_factor(inside.op.inputs[inside.operand])
            own = [index for index, operand in enumerate(op.inputs) if operand is source]
            return Found(op, own[0], inner=(inside.op, *inside.inner)) if own else None
    return None


def _choice(op: Any) -> Found | None:
    """Recognise `where(x > 0, x, ...)`, and `where(x < 0, ..., x)`."""
    condition = op.inputs[0].op
    if condition.type not in (*_ABOVE, *_BELOW) or not _is_zero(condition.inputs[1]):
        return None
    source, operand = condition.inputs[0], 1 if condition.type in _ABOVE else 2
    other = op.inputs[3 - operand]
    if op.inputs[operand] is not source:
        return None
    inner = () if _is_zero(other) else _made_of(other, source) or None
    return None if inner is None else Found(op, operand, inner=inner)


def _gate_of(tensor: Any, source: Any) -> tuple[Any, ...] | None:
    """Return the operations of a gate that is made of `source` alone, or None if it is none."""
    inner = _made_of(tensor, source)
    return inner if inner and any(op.type in _GATES for op in inner) else None


def _made_of(tensor: Any, source: Any) -> tuple[Any, ...] | None:
    """Return the operations between, or None if anything but `source` and constants enters."""
    waiting: list[Any] = [tensor]
    inner: list[Any] = []
    while waiting:
        current = waiting.pop()
        if current is source or _is_zero(current) or _constant(current) is not None:
            continue
        if current.op.type not in _ELEMENTWISE or len(inner) > 24:
            return None
        inner.append(current.op)
        waiting.extend(current.op.inputs)
    return tuple(inner)


def _parametric(op: Any) -> Found | None:
    for operand in (0, 1):
        positive, other = op.inputs[operand].op, op.inputs[1 - operand].op
        if positive.type != "Relu" or other.type != "Mul":
            continue
        for factor in other.inputs:
            negative = factor.op
            flipped = negative.inputs[0].op if negative.type == "Relu" else negative
            if flipped.type == "Neg" and flipped.inputs[0] is positive.inputs[0]:
                return Found(op, operand, inner=(other, negative))  # relu(x) is one itself
    return None


def _without_factor(tensor: Any) -> tuple[Any, float]:
    """Take a constant factor off: `c * x` is `(x, c)`."""
    if tensor.op.type == "Mul":
        for index in (0, 1):
            value = _constant(tensor.op.inputs[index])
            if value is not None and value.size == 1:
                return tensor.op.inputs[1 - index], float(value.reshape(()))
    return tensor, 1.0


def _constant(tensor: Any) -> Any:
    return tf.get_static_value(tensor)


def _is_zero(tensor: Any) -> bool:
    if tensor.op.type == "ZerosLike":
        return True
    if tensor.op.type == "Fill":  # of a shape that is known when it runs
        tensor = tensor.op.inputs[1]
    value = _constant(tensor)
    return value is not None and not value.any()


def _gradient_name(op: Any) -> str:
    try:
        return str(op.get_attr(_ATTRIBUTE).decode())
    except ValueError:
        return str(op.type)


def _name_gradient(op: Any, name: str) -> None:
    op._set_attr(_ATTRIBUTE, attr_value_pb2.AttrValue(s=name.encode()))


def _registered_rule(rectifier: Found, rule: Rectifier, original: str) -> str:
    """Register the rule's gradient function for this kind of rectifier, once; return its name."""
    operand, factor = rectifier.operand, rectifier.factor
    key = f"{rule}/{original}/{operand}/{factor}"
    if key not in _registered:
        name = f"Pellucid{len(_registered)}"
        exact: Callable[..., Any] = ops.gradient_registry.lookup(original)

        def guided(op: Any, cotangent: Any, *others: Any) -> Any:
            return exact(op, tf.nn.relu(cotangent), *others)

        def deconv(op: Any, cotangent: Any, *_: Any) -> Any:
            passed: list[Any] = [None] * len(op.inputs)
            passed[operand] = tf.nn.relu(cotangent) / tf.cast(factor, cotangent.dtype)
            return passed[0] if len(passed) == 1 else passed

        tf.RegisterGradient(name)(guided if rule == "guided" else deconv)
        _registered[key] = name
    return _registered[key]

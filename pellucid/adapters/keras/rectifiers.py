"""Rectifier rules for guided backpropagation and deconvnet, on the TensorFlow graph.

While the gradient operations are added to the graph, the rectifier operations of the forward
pass carry the name of another gradient function. So the rule holds however the rectifier was
written: as a layer, an Activation, fused into a convolution, an operation, shared or nested.

The policy is that of `pellucid.adapters.torch.rectifiers`: `guided` sets negative cotangents to
zero and then applies the exact derivative; `deconv` does not apply the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import ops

from pellucid.adapters.base import Rectifier

__all__ = ["bent_rectifiers"]

_RECTIFIERS = ("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Maximum")
_ATTRIBUTE = "_gradient_op_type"
_registered: set[str] = set()


@contextmanager
def bent_rectifiers(graph: Any, rule: Rectifier) -> Iterator[None]:
    """Apply the rule to the gradient operations that are made inside the context."""
    bent = []
    if rule != "exact":
        bent = [op for op in graph.get_operations() if _is_rectifier(op)]
    try:
        for op in bent:
            name = _gradient_name(op.type, rule)
            op._set_attr(_ATTRIBUTE, attr_value_pb2.AttrValue(s=name.encode()))
        yield
    finally:
        for op in bent:
            op._clear_attr(_ATTRIBUTE)


def _is_rectifier(op: Any) -> bool:
    if op.type not in _RECTIFIERS:
        return False
    return op.type != "Maximum" or any(_is_zero(operand) for operand in op.inputs)


def _is_zero(tensor: Any) -> bool:
    value = tf.get_static_value(tensor)
    return value is not None and not value.any()


def _gradient_name(op_type: str, rule: Rectifier) -> str:
    """Register the rule's gradient function of an operation, once, and return its name."""
    name = f"Pellucid{rule.capitalize()}{op_type}"
    if name not in _registered:
        exact: Callable[..., Any] = ops.gradient_registry.lookup(op_type)

        def guided(op: Any, cotangent: Any) -> Any:
            return exact(op, tf.nn.relu(cotangent))

        def deconv(op: Any, cotangent: Any) -> Any:
            positive = tf.nn.relu(cotangent)
            passed = [None if _is_zero(operand) else positive for operand in op.inputs]
            return passed[0] if len(passed) == 1 else passed

        tf.RegisterGradient(name)(guided if rule == "guided" else deconv)
        _registered.add(name)
    return name

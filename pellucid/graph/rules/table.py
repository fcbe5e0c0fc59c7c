"""The table of derivatives: operator -> the rule that carries a cotangent back through it.

A rule receives the tape, the node and one cotangent per output (None where nothing depends on
that output) and returns the cotangents of the inputs in their order; None, or nothing at the
end, for inputs without one. Only activations are differentiated, so a rule may say nothing about
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

__all__ = ["RULES", "Cotangents", "Rule", "float_attr", "int_attr", "ints_attr", "rule", "str_attr"]

Cotangents: TypeAlias = "Sequence[ir.Value | None]"
Rule: TypeAlias = Callable[..., Cotangents]

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some operators."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def int_attr(node: ir.Node, name: str, default: int) -> int:
    """Read an integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def float_attr(node: ir.Node, name: str, default: float) -> float:
    """Read a number."""
    found = node.attributes.get(name)
    return default if found is None else found.as_float()


def str_attr(node: ir.Node, name: str, default: str) -> str:
    """Read a string attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_string()


def ints_attr(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """Read a list of integers."""
    found = node.attributes.get(name)
    return list(default) if found is None else list(found.as_ints())

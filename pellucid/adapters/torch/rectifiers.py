"""Rectifier rules for guided backpropagation and deconvnet, on autograd's own graph.

The rule is applied to the nodes of the backward graph, not to modules, so it holds however the
rectifier was written: as a module, a function, a method, in place, reused or nested. The graph
belongs to one call; nothing of the network is touched.

One policy for all rectifiers, smooth ones included: `guided` sets negative cotangents to zero
and then applies the exact derivative; `deconv` sets negative cotangents to zero and does not
apply the derivative (1412.6806, 1311.2901).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pellucid.adapters.base import Rectifier
from pellucid.adapters.torch.curves import Span

__all__ = ["bend_rectifiers"]

_RECTIFIERS = frozenset((
    "ReluBackward0", "LeakyReluBackward0", "PreluKernelBackward0", "EluBackward0",
    "SiluBackward0", "GeluBackward0", "HardswishBackward0", "MishBackward0", "CeluBackward0",
    "RreluWithNoiseBackward0",
))  # fmt: skip

# Clipping operations are rectifiers when they clip at zero from below.
_LOWER_BOUND = {
    "HardtanhBackward0": "_saved_min_val",
    "ThresholdBackward0": "_saved_threshold",
    "ClampMinBackward0": "_saved_min",
    "ClampBackward1": "_saved_min",
    "ClampBackward0": "_saved_min",
    "ClampMinBackward1": "_saved_min",
}


def bend_rectifiers(
    starts: Iterable[Tensor | GradientEdge], rule: Rectifier, spans: Sequence[Span]
) -> None:
    """Register the rule on every rectifier from these points of the graph back to its leaves.

    `spans` are rectifiers that are no single node of a known kind, or contain such a node.
    """
    if rule == "exact":
        return
    spelled = {span.last: span for span in spans}
    inside = {node for span in spans for node in span.inner}
    for node in _nodes(starts):
        if node in inside or not (node in spelled or _is_rectifier(node)):
            continue
        if rule == "guided" and node.name() == "ReluBackward0":
            node.register_hook(_clipped)
        elif rule == "guided":
            node.register_prehook(_positive)
        elif node in spelled and not _is_rectifier(node):
            _carry(spelled[node])
        else:
            node.register_hook(_passed_on)


def _nodes(starts: Iterable[Tensor | GradientEdge]) -> Iterator[Any]:
    waiting: list[Any] = [
        start.node if isinstance(start, GradientEdge) else start.grad_fn for start in starts
    ]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(parent for parent, _ in node.next_functions)


def _is_rectifier(node: Any) -> bool:
    name = node.name()
    if name in _RECTIFIERS:
        return True
    if name in _LOWER_BOUND:
        return getattr(node, _LOWER_BOUND[name], None) == 0
    return False


def _positive(cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if c is None else c.clamp(min=0) for c in cotangents)


def _clipped(
    inward: tuple[Tensor | None, ...], _outward: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Set negative cotangents to zero behind a ReLU, whose derivative is 0 or 1.

    That is the same as before it, and there the tensor is new, so no copy of it is needed.
    """
    return tuple(None if gradient is None else gradient.relu_() for gradient in inward)


def _passed_on(
    inward: tuple[Tensor | None, ...], outward: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Replace the gradients at the inputs by the positive part of the one at the output."""
    (cotangent,) = outward
    if cotangent is None:
        return inward
    positive = torch.clamp(cotangent, min=0)
    return tuple(
        None if gradient is None else positive if gradient.shape == positive.shape else gradient
        for gradient in inward
    )


def _carry(span: Span) -> None:
    """Pass the positive cotangent of a spelled-out rectifier to its source, past what is between.

    What is between gets zeros, so that its nodes run before the source, which then gets all.
    """
    held: list[Tensor] = []
    source = span.source

    def take(cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        held.extend(c.clamp(min=0) for c in cotangents if c is not None)
        return tuple(None if c is None else torch.zeros_like(c) for c in cotangents)

    def give(cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        here = source.edge.output_nr
        return tuple(c if i != here else _sum(c, held) for i, c in enumerate(cotangents))

    span.last.register_prehook(take)
    if source.leaf is None:
        source.edge.node.register_prehook(give)
    else:
        source.leaf.register_hook(lambda gradient: _sum(gradient, held))  # type: ignore[no-untyped-call]


def _sum(cotangent: Tensor | None, held: list[Tensor]) -> Tensor | None:
    terms = [term for term in (cotangent, *held) if term is not None]
    held.clear()
    return torch.stack(terms).sum(dim=0) if terms else None

"""Finding rectifiers however they are written in a PyTorch network.

Autograd's graph shows `x * sigmoid(x)` or `(x + x.abs()) / 2` as products and sums. So while the
network runs, each operation that works element by element is done once more on a few numbers in
place of the tensor from which it started: the curve of a function of one number. What is zero at
zero, grows on one side and stays small on the other is a rectifier, see
`pellucid.graph.rectifiers`, which judges so too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from pellucid.graph.rectifiers import PROBES, rectified

__all__ = ["Curves", "Span"]

_ELEMENTWISE = frozenset((
    "abs", "absolute", "add", "alias", "bool", "celu", "clamp", "clamp_max", "clamp_min", "clip",
    "clone", "contiguous", "detach", "div", "divide", "double", "elu", "eq", "erf", "erfc", "exp",
    "expm1", "float", "fmax", "fmin", "full_like", "ge", "gelu", "greater", "greater_equal", "gt",
    "half", "hardsigmoid", "hardswish", "hardtanh", "le", "leaky_relu", "less", "less_equal", "log",
    "log1p", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "masked_scatter",
    "max", "maximum", "min", "minimum", "mish", "mul", "multiply", "ne", "neg", "negative",
    "nan_to_num", "ones_like", "positive", "pow", "prelu", "reciprocal", "relu", "relu6", "rsqrt",
    "rsub", "selu", "setitem", "sgn", "sigmoid", "sign", "silu", "softplus", "softsign", "sqrt",
    "square", "sub", "subtract", "tanh", "threshold", "to", "true_divide", "type", "type_as",
    "where", "zeros_like", "and", "or", "invert", "bitwise_not", "bfloat16", "logit", "atan",
    "special_expit", "special_erf", "special_expm1",
    "radd", "rmul", "rdiv", "rtruediv", "truediv", "rpow", "iadd", "isub", "imul", "idiv",
    "itruediv",
))  # fmt: skip
_FARTHEST = 8  # tensors back to which a curve is known
_LONGEST = 64  # nodes in one spelling
_MOST_KEPT = 256  # curves of functions of one tensor
_DETACHED = torch.Tensor.data.__get__  # type: ignore[attr-defined]


@dataclass(eq=False)
class _Source:
    """A tensor from which curves start.

    Attributes
    ----------
    edge : its point in autograd's graph.
    leaf : the tensor itself, if no node made it.
    """

    edge: Any
    leaf: Tensor | None
    shape: tuple[int, ...]


@dataclass(eq=False)
class _Curve:
    """What a function of one number makes of the probes."""

    values: Tensor

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        return np.asarray(self.values.cpu().double().numpy())

    @cached_property
    def alone(self) -> int | None:
        """What `rectified` says where there is one source."""
        return rectified([self.numbers])


Known = dict[_Source, _Curve]  # the nearest source last
_STRAIGHT = _Curve(torch.tensor(PROBES, dtype=torch.float64))
_made_of_straight: dict[Any, _Curve] = {}  # by function and settings: an activation comes often


@dataclass(frozen=True, eq=False)
class Span:
    """The nodes of autograd's graph that make up one rectifier.

    Attributes
    ----------
    last : the node of its result.
    source : the point of what it rectifies, and the tensor if that is a leaf.
    inner : its other nodes.
    """

    last: Any
    source: _Source
    inner: frozenset[Any]


@dataclass
class _Entry:
    tensor: weakref.ref[Tensor]
    version: int
    known: Known
    own: _Source | None = field(default=None)


class Curves(TorchFunctionMode):
    """Follows functions of one number through a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[int, _Entry] = {}
        self._found: list[tuple[Any, _Source]] = []  # the node, or a tensor that may get one

    def spans(self) -> list[Span]:
        """Return the rectifiers; the largest spelling counts, what it contains is part of it."""
        spans, inside = list[Span](), set[Any]()
        for ending, source in reversed(self._found):
            node = ending.grad_fn if isinstance(ending, Tensor) else ending
            if node is None or node in inside or any(span.last is node for span in spans):
                continue
            inner = _between(node, source)
            if inner is not None:
                spans.append(Span(node, source, inner))
                inside |= inner
        return spans

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and do it on the curves of what it is given."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if not (name in _ELEMENTWISE or func == _DETACHED) or "out" in kwargs:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            again = self._again(func, args, kwargs)
            before = [(id(t), _version(t)) for t in _tensors(args)]
        result = func(*args, **kwargs)
        made = args[0] if result is None else result
        if again and isinstance(made, Tensor):
            with torch._C.DisableTorchFunction():
                if (id(made), _version(made)) not in before:
                    self._note(made, again)
        return result

    # ---- curves ------------------------------------------------------------------------------

    def _again(self, func: Any, args: Any, kwargs: Any) -> Known:
        """Call a function on curves, for each source from which all its tensors follow."""
        operands = [*_tensors(args), *_tensors(kwargs.values())]
        known: dict[int, Known | Tensor] = {}
        for tensor in operands:
            found = self._known(tensor)
            if found is None:
                return {}
            known[id(tensor)] = found
        tracked = [curves for curves in known.values() if isinstance(curves, dict)]
        if not tracked:
            return {}
        shared = [s for s in tracked[0] if all(s in curves for curves in tracked[1:])]
        results: Known = {}
        for source in shared[-_FARTHEST:]:

            def curve(tensor: Tensor, source: _Source = source) -> Tensor:
                found = known[id(tensor)]
                return found if isinstance(found, Tensor) else found[source].values.clone()

            key = None
            if len(operands) == 1 and tracked[0][source] is _STRAIGHT:
                key = _named(func, args, kwargs)
            if key in _made_of_straight:
                results[source] = _made_of_straight[key]
                continue
            given = _replaced(args, curve)
            with suppress(Exception), torch.no_grad():
                result = func(*given, **_replaced(kwargs, curve))
                result = given[0] if result is None else result
                if isinstance(result, Tensor) and result.shape == _STRAIGHT.values.shape:
                    results[source] = _Curve(result)
                    if key is not None and len(_made_of_straight) < _MOST_KEPT:
                        _made_of_straight[key] = results[source]
        return results

    def _known(self, tensor: Tensor) -> Known | Tensor | None:
        """Return the curves of a tensor, or its value if it is one number throughout."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return None
        entry = self._entries.get(id(tensor))
        if entry is None or entry.tensor() is not tensor or entry.version != _version(tensor):
            if isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
                return _number(tensor)
            entry = self._entries[id(tensor)] = _Entry(weakref.ref(tensor), _version(tensor), {})
        if entry.own is None and tensor.requires_grad:
            leaf = tensor if tensor.grad_fn is None else None
            entry.own = _Source(get_gradient_edge(tensor), leaf, tuple(tensor.shape))
            entry.known[entry.own] = _STRAIGHT
        return entry.known

    def _note(self, made: Tensor, curves: Known) -> None:
        """Keep the curves of a result, and whether it is a rectifier of the nearest source."""
        entry = _Entry(weakref.ref(made), _version(made), curves)
        self._entries[id(made)] = entry
        alike = [source for source in reversed(curves) if source.shape == tuple(made.shape)]
        if len(alike) == 1:
            chosen = curves[alike[0]].alone
        else:
            chosen = rectified(curves[source].numbers for source in alike)
        if chosen is not None:
            self._found.append((made.grad_fn if made.requires_grad else made, alike[chosen]))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _replaced(values: Any, curve: Callable[[Tensor], Any]) -> Any:
    if isinstance(values, Tensor):
        return curve(values)
    if isinstance(values, dict):
        return {name: _replaced(value, curve) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_replaced(value, curve) for value in values)
    return values


def _named(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what tells a function of one tensor from others, or None."""
    key = (func, _replaced(args, type), tuple(_replaced(kwargs, type).items()))
    try:
        hash(key)
    except TypeError:  # a list among its settings
        return None
    return key


def _number(tensor: Tensor) -> Tensor | None:
    """Return the one number of which a constant consists, or None."""
    if not tensor.numel():
        return None
    flat = tensor.detach().reshape(-1)
    for part in (flat[:16], flat):  # few numbers tell an image from a constant
        if not bool((part == flat[0]).all()):
            return None
    return flat[0].cpu()


def _between(last: Any, source: _Source) -> frozenset[Any] | None:
    """Return the nodes before a node and after a source; None where it does not lead there."""
    inner: set[Any] = set()
    waiting = [last]
    while waiting:
        for node, number in waiting.pop().next_functions:
            at_source = node is source.edge.node and number == source.edge.output_nr
            leaf = getattr(node, "variable", None)
            if node is None or at_source or node in inner or isinstance(leaf, nn.Parameter):
                continue
            if leaf is not None or len(inner) == _LONGEST:
                return None
            inner.add(node)
            waiting.append(node)
    return frozenset(inner)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version

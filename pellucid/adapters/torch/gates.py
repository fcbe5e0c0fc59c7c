"""Finding rectifiers that are written as a choice: `x * (x > 0)`, `torch.where(x > 0, x, 0)`.

Autograd's graph shows a product or a choice, not where its mask comes from. So while the network
runs, comparisons with zero are noted together with the point of the graph that they look at; what
then combines such a mask with that same point is a rectifier.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from pellucid.adapters.torch.rectifiers import is_zero

__all__ = ["Gates"]

_ABOVE = {"gt": True, "ge": True, "greater": True, "greater_equal": True,
          "lt": False, "le": False, "less": False, "less_equal": False}  # fmt: skip
_CASTS = frozenset(("bool", "to", "type", "type_as", "float", "double", "half", "bfloat16"))
_NEGATIONS = frozenset(("logical_not", "bitwise_not", "invert"))
_USES = frozenset(("mul", "multiply", "imul", "rmul", "where", "masked_fill", "setitem"))
_ELEMENTWISE = frozenset((
    "Mul", "Add", "Sub", "Div", "Neg", "Exp", "Expm1", "Tanh", "Sigmoid", "Elu", "Softplus",
    "ToCopy",
))  # fmt: skip
_DEEPEST = 24

Point = tuple[Any, int]  # a node of the graph, and which of its outputs


class Gates(TorchFunctionMode):
    """Notes the nodes of the graph at which a tensor is gated by its own sign.

    Attributes
    ----------
    found : node -> which of its inputs is the gated tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, int] = {}
        # By identity; the mask itself is kept so that the identity stays its own.
        self._masks: dict[int, tuple[Tensor, Point, bool]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, noting masks and what they are used for."""
        name = getattr(func, "__name__", "").partition(".")[0].strip("_")
        point = _compared(args) if name in _ABOVE else None
        result = func(*args, **(kwargs or {}))
        if point is not None and isinstance(result, Tensor):
            self._masks[id(result)] = (result, point, _ABOVE[name])
        elif self._masks and name in _CASTS | _NEGATIONS:
            self._carry(args[0], result, flipped=name in _NEGATIONS)
        elif self._masks and name in _USES:
            self._use(name, args, result if isinstance(result, Tensor) else args[0])
        return result

    def _carry(self, mask: Any, result: Any, flipped: bool) -> None:
        if id(mask) in self._masks and isinstance(result, Tensor):
            _, point, above = self._masks[id(mask)]
            self._masks[id(result)] = (result, point, above != flipped)

    def _use(self, name: str, args: Any, result: Tensor) -> None:
        masks = [self._masks[id(one)] for one in args if id(one) in self._masks]
        node = result.grad_fn
        if len(masks) != 1 or node is None:
            return
        (_, point, above) = masks[0]
        inputs = list(node.next_functions)
        if point not in inputs:
            return
        index = inputs.index(point)
        if name in ("masked_fill", "setitem"):
            rectifies = not above and is_zero(args[2])
        elif name == "where":
            first = args[1] if args[0] is masks[0][0] else args[0]
            own, other = (first, args[2]) if above else (args[2], first)
            index = 0 if above else 1
            rectifies = _edge(own) == point and (is_zero(other) or _follows(other, point))
        else:
            rectifies = above
        if rectifies:
            self.found[node] = index


def _compared(args: Any) -> Point | None:
    """Return the point of a tensor that is compared with zero."""
    first, second = args[:2]
    return _edge(first) if isinstance(first, Tensor) and is_zero(second) else None


def _edge(value: Any) -> Point | None:
    if not (isinstance(value, Tensor) and value.requires_grad):
        return None
    edge = get_gradient_edge(value)
    return edge.node, edge.output_nr


def _follows(value: Any, point: Point) -> bool:
    """Whether a tensor follows element by element from one point of the graph and constants."""
    edge = _edge(value)
    waiting = [] if edge is None else [edge]
    steps = 0
    while waiting:
        current = waiting.pop()
        if current == point or current[0] is None:
            continue
        if steps == _DEEPEST or _kind(current[0]) not in _ELEMENTWISE:
            return False
        steps += 1
        waiting.extend(current[0].next_functions)
    return steps > 0


def _kind(node: Any) -> str:
    kind: str = node.name().partition("Backward")[0]
    return kind

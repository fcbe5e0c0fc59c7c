"""Operations that belong to no framework layer, folded into what a reader would call a layer.

Attention, LayerNorm, GELU and their like are often spelled out in a dozen primitive operations.
Each pattern is told by one operation that it cannot do without (the `Softmax` of attention, the
`Erf` of GELU) and by what is around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from pellucid.graph.groups import TRANSPARENT
from pellucid.graph.wiring import Wiring

__all__ = ["folded"]

_LAYOUT = frozenset((
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Flatten", "Split", "Gather",
    "Slice", "Concat", "Identity", "Cast",
))  # fmt: skip
_SCORES = frozenset(("Mul", "Div", "Add", "Where", "Cast", "Identity", "Dropout", "Sub"))
_ELEMENTWISE = frozenset((
    "Mul", "Add", "Sub", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Erf", "Tanh", "Sigmoid",
    "Softplus", "Clip", "HardSigmoid", "Relu", "Exp", "Log", "Abs", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "ReduceL2", "ReduceMax", "Max", "Min", "Identity", "Cast", "Where",
    "Reshape", "Expand",
))  # fmt: skip
_HEADS = TRANSPARENT | {"Reshape", "Transpose"}
_NORMS = ("LayerNorm", "RMSNorm")  # they read the centred input twice
_DEEPEST = 16  # nodes of one pattern


def folded(wiring: Wiring, free: set[int]) -> list[tuple[str, list[int]]]:
    """Group live nodes that are free.

    Returns
    -------
    list
        `(kind, nodes)` of each pattern that was found. Nodes that are in none stand alone.
    """
    found: list[tuple[str, list[int]]] = []
    left = set(free)
    for index in sorted(free):
        if wiring.nodes[index].op_type == "Softmax" and index in left:
            nodes = _attention(wiring, left, index)
            if nodes:
                found.append(("Attention", sorted(nodes)))
                left -= nodes
    found += _enclosed(wiring, left)
    for index in sorted(left):
        if index in left and (nodes := _with_bias(wiring, left, index)):
            found.append((wiring.nodes[index].op_type, sorted(nodes)))
            left -= nodes
    return found


# ---- attention ------------------------------------------------------------------------------


def _attention(wiring: Wiring, free: set[int], softmax: int) -> set[int]:
    """Collect softmax(Q K^T) V around its softmax, with the reshaping of heads."""
    scores, inside = softmax, {softmax}
    while wiring.nodes[scores].op_type != "MatMul":
        sources = [s for s in wiring.sources(scores) if s in free]
        if not sources or (scores != softmax and wiring.nodes[scores].op_type not in _SCORES):
            return set()
        scores = sources[0]
        inside.add(scores)
    mixed = softmax
    while wiring.nodes[mixed].op_type != "MatMul":
        readers = wiring.following(mixed)
        if len(readers) != 1 or readers[0] not in free:
            return set()
        if mixed != softmax and wiring.nodes[mixed].op_type not in _SCORES:
            return set()
        mixed = readers[0]
        inside.add(mixed)
    if scores == mixed:
        return set()
    inside |= _feeding(wiring, free, inside)
    while len(readers := wiring.following(mixed)) == 1:  # heads are put together again
        mixed = readers[0]
        if mixed not in free or wiring.nodes[mixed].op_type not in (
            *TRANSPARENT,
            "Reshape",
            "Transpose",
        ):
            break
        inside.add(mixed)
    return inside


def _feeding(wiring: Wiring, free: set[int], inside: set[int]) -> set[int]:
    """Collect the reshaping and scaling of queries, keys and values that only feeds `inside`."""
    found: set[int] = set()
    waiting = [s for index in inside for s in wiring.sources(index)]
    while waiting:
        index = waiting.pop()
        if index in inside or index in found or index not in free:
            continue
        kind = wiring.nodes[index].op_type
        scaling = kind in ("Mul", "Div") and len(wiring.sources(index)) == 1
        only = all(r in inside or r in found for r in wiring.following(index))
        if (kind in _LAYOUT or scaling) and only:
            found.add(index)
            waiting.extend(wiring.sources(index))
    return found


# ---- patterns with one way in and one way out ------------------------------------------------


def _enclosed(wiring: Wiring, left: set[int]) -> list[tuple[str, list[int]]]:
    """Find elementwise patterns; `left` loses their nodes."""
    found: list[tuple[str, list[int]]] = []
    dominators = _dominators(wiring, left)
    for index in sorted(left, reverse=True):
        if index not in left or wiring.nodes[index].op_type not in ("Mul", "Div", "Add", "Sub"):
            continue
        nodes = _region(wiring, left, index, dominators)
        if nodes is None:
            continue
        kind = _kind_of_region(Counter(wiring.nodes[i].op_type for i in nodes))
        if kind:
            found.append((kind, sorted(nodes)))
            left -= nodes
    return found


def _dominators(wiring: Wiring, left: set[int]) -> dict[int, list[str]]:
    """List for each node the tensors that everything it computes with has gone through.

    The nearest comes first. Only stretches of elementwise nodes are followed.
    """
    found: dict[int, list[str]] = {}

    def through(tensor: str) -> list[str]:
        index = wiring.producer.get(tensor)
        if index is None or index not in found:
            return [tensor]
        return [tensor, *found[index]][:_DEEPEST]

    for index in sorted(left):
        if wiring.nodes[index].op_type not in _ELEMENTWISE:
            continue
        live = [name for name in wiring.reads[index] if name in wiring.live]
        chains = [through(name) for name in dict.fromkeys(live)]
        found[index] = [t for t in chains[0] if all(t in chain for chain in chains[1:])]
    return found


def _region(
    wiring: Wiring, left: set[int], last: int, dominators: Mapping[int, list[str]]
) -> set[int] | None:
    """Return the largest closed stretch of free nodes that ends here and has a known kind."""
    best = None
    for source in dominators.get(last, ()):
        nodes = set(wiring.before(wiring.nodes[last].output[:1], {source}))
        nodes = {i for i in nodes if wiring.is_live(i)}
        if len(nodes) > _DEEPEST or not nodes <= left:
            break
        closed = all(
            reader in nodes for i in nodes - {last} for reader in wiring.following(i)
        ) and not any(n in wiring.results for i in nodes - {last} for n in wiring.nodes[i].output)
        kind = _kind_of_region(Counter(wiring.nodes[i].op_type for i in nodes))
        once = all(len(wiring.following(i)) == 1 for i in nodes - {last})
        if closed and len(nodes) > 1 and kind and (once or kind in _NORMS):
            best = nodes
    return best


def _kind_of_region(kinds: Counter[str]) -> str:
    return next((kind for kind, fits in _PATTERNS if fits(kinds)), "")


def _only(kinds: Counter[str], allowed: str) -> bool:
    return set(kinds) <= {*allowed.split(), *TRANSPARENT}


_PATTERNS: tuple[tuple[str, Callable[[Counter[str]], bool]], ...] = (
    (
        "GELU",
        lambda k: (k["Erf"] == 1 or (k["Tanh"] == 1 and k["Add"] >= 2))
        and k["Mul"] >= 1
        and _only(k, "Erf Tanh Mul Div Add Pow Sub"),
    ),
    ("Mish", lambda k: k["Softplus"] == k["Tanh"] == k["Mul"] == 1 and sum(k.values()) == 3),
    ("SiLU", lambda k: k["Sigmoid"] == 1 and k["Mul"] in (1, 2) and _only(k, "Sigmoid Mul")),
    (
        "HardSwish",
        lambda k: (k["HardSigmoid"] == 1 and k["Mul"] == 1 and _only(k, "HardSigmoid Mul"))
        or (k["Clip"] == 1 and k["Mul"] + k["Div"] == 2 and k["Add"] == 1
            and _only(k, "Clip Mul Div Add")),
    ),
    (
        "LayerNorm",
        lambda k: k["ReduceMean"] == 2
        and k["Sqrt"] == 1
        and _only(k, "ReduceMean Sqrt Sub Add Mul Div Pow Reciprocal Neg"),
    ),
    (
        "RMSNorm",
        lambda k: k["ReduceMean"] == 1
        and k["Sqrt"] == 1
        and k["Sub"] == 0
        and _only(k, "ReduceMean Sqrt Add Mul Div Pow Reciprocal"),
    ),
)  # fmt: skip


# ---- a product and its bias ------------------------------------------------------------------


def _with_bias(wiring: Wiring, free: set[int], index: int) -> set[int]:
    """Return a convolution or dense product with the addition of its bias."""
    node = wiring.nodes[index]
    if node.op_type not in ("MatMul", "Conv", "Gemm") or len(wiring.sources(index)) > 1:
        return set()
    live = [name for name in wiring.reads[index] if name in wiring.live]
    readers = wiring.following(index)
    if len(live) != 1 or len(readers) != 1 or readers[0] not in free:
        return set()
    following = wiring.nodes[readers[0]]
    if following.op_type != "Add" or node.output[0] in wiring.results:
        return set()
    other = next((n for n in following.input if n != node.output[0]), "")
    return set() if other in wiring.live or not other else {index, readers[0]}

"""Normalisation that an exporter or its author spelled out, found as the one step that it is.

Keras exports LayerNormalization in a dozen operators, `tf_keras` by a BatchNormalization whose
statistics are computed; groups, root mean squares and unit lengths are written by hand. A rule of
a layer's kind sees none of them. Whatever the spelling, it is a function of one tensor. So what
follows from a tensor and its means is evaluated on noise. Which numbers are normalised together is
seen from what changes when one number does; the rest is a comparison with what such a
normalisation would answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.graph.prepare import evaluate
from pellucid.graph.rules.normalization import Norm
from pellucid.graph.rules.rectifier import operand
from pellucid.graph.rules.table import float_attr
from pellucid.graph.tape import Dim, alike, array, dims

__all__ = ["Spelled", "find_norms"]

_MEANS = frozenset((
    "GlobalAveragePool", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare",
    "InstanceNormalization", "LpNormalization",
))  # fmt: skip
_VIEWS = frozenset((
    "Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip
_BACK = _VIEWS | {"Abs", "Mul", "Pow"}  # before a mean of squares
_STEPS = _MEANS | _BACK | frozenset((
    "Add", "BatchNormalization", "Clip", "Concat", "Div", "Expand", "Gather", "Max", "Min", "Neg",
    "Reciprocal", "ReduceProd", "Shape", "Slice", "Sqrt", "Sub",
))  # fmt: skip
_LONGEST = 64  # nodes in one spelling and what may follow it
_ROWS = 6  # of noise
_FREE = 5  # cells along an axis of unknown size
_LOOKED_AT = 512  # numbers of a row by which candidates are told apart
_TOLERANCE = 1e-4

Numbers: TypeAlias = NDArray[np.float64]
Blocks: TypeAlias = tuple[int | None, ...]
Fitted: TypeAlias = tuple[Norm, "NDArray[Any] | None"]


@dataclass(frozen=True)
class Spelled:
    """A normalisation in several nodes.

    Attributes
    ----------
    norm : what it does.
    bias : which it adds, of the rank of its result; None if there is none.
    inner : its nodes besides the last one.
    """

    norm: Norm
    bias: NDArray[Any] | None
    inner: frozenset[ir.Node]


def find_norms(
    nodes: Sequence[ir.Node], graph: ir.Graph, named: Collection[ir.Value]
) -> dict[ir.Node, Spelled]:
    """Return every normalisation that is spelled out among some nodes, keyed by its last node.

    Parameters
    ----------
    named : values that are asked for, which are inside of none.
    """
    position = {node: index for index, node in enumerate(graph)}
    found: dict[ir.Node, Spelled] = {}
    inside: set[ir.Node] = set()
    for node in nodes:
        for source in _sources(node) if node.op_type in _MEANS and node not in inside else ():
            spelled = _of(graph, source, named, position)
            if spelled:
                found |= spelled
                inside.update(*({root, *one.inner} for root, one in spelled.items()))
                break
    return found


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a mean may be of: its input before it was squared or viewed, and after."""
    views, value = [], node.inputs[0]
    while value is not None:
        views.append(value)
        producer = value.producer()
        if producer is None or producer.op_type not in _BACK:
            break
        before = {v for v in producer.inputs if v is not None and array(v) is None}
        value = before.pop() if len(before) == 1 else None
    yield from (v for v in reversed(views) if v.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE))


def _of(
    graph: ir.Graph, source: ir.Value, named: Collection[ir.Value], position: dict[ir.Node, int]
) -> dict[ir.Node, Spelled]:
    """Return what normalises one tensor."""
    shape = dims(source)
    if shape is None or len(shape) < 2:
        return {}
    lengths = [_ROWS, *[_FREE] * (len(shape) - 1)]
    given = [(dims(value) or (1,))[0] for value in graph.inputs]
    free: dict[Dim, int] = {
        length: _ROWS for length in given if not isinstance(length, int)
    }  # the batch
    free |= {d: n for d, n in zip(shape, lengths, strict=True) if isinstance(d, str)}
    nodes, sizes = _following(source, free)
    region = sorted(nodes, key=lambda node: position[node])
    roots = [n for n in region if n.op_type != "Identity" and alike(dims(n.outputs[0]), shape)]
    outputs = [root.outputs[0] for root in roots]
    found: dict[ir.Node, Spelled] = {}
    if not outputs:
        return found
    try:
        tried = _Trial(graph, region, source, sizes, outputs)
    except Exception:  # a constant that does not suit the sizes of the noise
        return found
    fits = cache(lambda root: tried.norm(root.outputs[0], _epsilons(region)))
    inside: set[ir.Node] = set()
    for root in reversed(roots):
        fitted, inner = None if root in inside else fits(root), _between(source, root)
        if fitted is None or any(v in named for node in inner for v in node.outputs):
            continue
        ends = (one for one in roots if one in inner and not _readers(one) <= {root, *inner})
        if not any(fits(one) for one in ends):  # what is scaled for one reader alone is none
            found[root] = Spelled(*fitted, inner)
            inside |= inner
    return found


def _readers(node: ir.Node) -> set[ir.Node]:
    """Return what reads the numbers that a node gives."""
    found = set[ir.Node]()
    for reader in node.outputs[0].consumers():
        found |= _readers(reader) if reader.op_type == "Identity" else {reader}
    return {reader for reader in found if reader.op_type != "Shape"}


def _following(
    source: ir.Value, free: Mapping[Dim, int]
) -> tuple[set[ir.Node], dict[ir.Value, NDArray[Any]]]:
    """Return the nodes that compute from one tensor, constants and sizes alone, and the sizes."""
    known, found, waiting = {source}, set[ir.Node](), [source]
    sizes: dict[ir.Value, NDArray[Any]] = {}
    while waiting and len(found) < _LONGEST:
        for node in waiting.pop(0).consumers():
            if node in found or node.op_type not in _STEPS:
                continue
            others = [v for v in node.inputs if v is not None and v not in known]
            counted = [_counted(value, free, sizes) for value in others]
            if all(nodes is not None for nodes in counted):
                found.add(node)
                found.update(*(nodes for nodes in counted if nodes is not None))
                known.update(node.outputs)
                waiting.extend(node.outputs)
    return found, sizes


def _counted(
    value: ir.Value, free: Mapping[Dim, int], sizes: dict[ir.Value, NDArray[Any]]
) -> set[ir.Node] | None:
    """Return the nodes that compute a size; None if it is none that is known.

    Parameters
    ----------
    free : sizes that axes of unknown length have on trial.
    sizes : takes the shapes that are read from other tensors.
    """
    producer = value.producer()
    if array(value) is not None:
        return set()
    if producer is None or value.dtype is None or value.dtype.is_floating_point():
        return None
    if producer.op_type == "Shape":
        whole = dims(operand(producer)) or ()
        start, end = (producer.attributes.get(name) for name in ("start", "end"))
        part = whole[start.as_int() if start else None : end.as_int() if end else None]
        lengths = [length if isinstance(length, int) else free.get(length) for length in part]
        if not whole or None in lengths:
            return None
        sizes[value] = np.asarray(lengths, np.int64)
        return set()
    found = {producer}
    for before in producer.inputs if producer.op_type in _STEPS else (None,):
        nodes = None if before is None else _counted(before, free, sizes)
        if nodes is None:
            return None
        found |= nodes
    return found


def _between(source: ir.Value, root: ir.Node) -> frozenset[ir.Node]:
    """Return the nodes before a node that follow from one tensor."""
    found, waiting = set[ir.Node](), [root]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None or value is source else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return frozenset(found)


def _epsilons(region: Sequence[ir.Node]) -> list[float]:
    """Return the small constants among some nodes, one of which keeps the deviation from zero."""
    normal = ("BatchNormalization", "InstanceNormalization")
    given = [float_attr(node, "epsilon", 1e-5) for node in region if node.op_type in normal]
    for node in region:
        constants = [array(value) for value in node.inputs] if node.op_type == "Add" else []
        given += [float(c.reshape(())) for c in constants if c is not None and c.size == 1]
    return list(dict.fromkeys(one for one in given if 0 < one < 0.1))


class _Trial:
    """What some nodes make of rows of noise, of one sign and the other and of different spread.

    Attributes
    ----------
    x, found : the noise and the answers to it, float64.
    moved : the answers to its last rows again, of which the last has its first number moved.
    """

    def __init__(
        self,
        graph: ir.Graph,
        nodes: list[ir.Node],
        source: ir.Value,
        counted: Mapping[ir.Value, NDArray[Any]],
        wanted: list[ir.Value],
    ) -> None:
        assert source.dtype is not None
        self.source, self.shape = source, dims(source) or ()
        batch, *sizes = (size if isinstance(size, int) else None for size in self.shape)
        self.sizes = [size or _FREE for size in sizes]
        rows = max(batch or 0, _ROWS)
        rows = -(-rows // batch) * batch if batch else rows
        noise = np.random.default_rng(0).standard_normal((-(-rows // 2), *self.sizes)) + 0.5
        both = np.stack([noise, -noise], axis=1).reshape(-1, *self.sizes)[:rows]
        spread = np.logspace(-2, 1, rows).reshape(-1, *[1] * len(self.sizes))
        x = np.asarray(both * spread, source.dtype.numpy())
        parts = [x[i : i + (batch or rows)] for i in range(0, rows, batch or rows)]
        moved = parts[-1].copy()
        moved[-1].flat[0] += 10 * spread[-1].item() * np.sqrt(x[0].size)
        answers = [
            evaluate(graph, nodes, {**counted, source: part}, wanted) for part in (*parts, moved)
        ]
        self.x = x.astype(np.float64)
        self.found = {
            value: np.concatenate(found).astype(np.float64)
            for value, *found in zip(wanted, *answers[:-1], strict=True)
        }
        self.moved = dict(zip(wanted, answers[-1], strict=True))

    def norm(self, value: ir.Value, epsilons: Sequence[float]) -> Fitted | None:
        """Return the normalisation that makes a value and its bias, or None."""
        y = self.found[value]
        if y.shape != self.x.shape or not np.isfinite(y).all():
            return None
        for blocks in self._blocks(value):
            with suppress(_NoFitError):
                return self._fitted(y, blocks, epsilons)
        return None

    def _blocks(self, value: ir.Value) -> Iterator[Blocks]:
        """Yield how many numbers along each axis may belong together, the likeliest first."""
        changed = self.moved[value][-1] != self.found[value][-1]
        places = np.argwhere(changed)
        extent = places.max(axis=0) + 1 if len(places) else np.zeros(changed.ndim)
        options: list[list[int | None]] = []
        for size, free, least in zip(self.sizes, self.shape[1:], extent, strict=True):
            fitting = [d for d in range(2, size + 1) if size % d == 0 and d >= least]
            if least <= 1:
                fitting = [1]
            elif not isinstance(free, int):
                fitting = [size]
            options.append([None if d == size > 1 else d for d in fitting[:3]])
        for blocks in product(*options):  # a scale of zero hides what it multiplies
            if any(block != 1 for block in blocks):
                yield 1, *blocks

    def _fitted(self, y: Numbers, blocks: Blocks, epsilons: Sequence[float]) -> Fitted:
        """Find the kind of normalisation, its scale and its bias."""
        x = self.x
        mean = _mean(x, blocks)
        variance, square = _mean((x - mean) ** 2, blocks), _mean(x**2, blocks)
        count = math.prod(b or s for s, b in zip(self.sizes, blocks[1:], strict=True))
        some = np.linspace(0, x[0].size - 1, min(_LOOKED_AT, x[0].size)).astype(int)

        def rows(of: Numbers) -> Numbers:
            return np.broadcast_to(of, x.shape).reshape(len(x), -1)

        sampled = {"x": rows(x)[:, some], "mean": rows(mean)[:, some], "y": rows(y)[:, some]}
        for centred, about_mean in ((True, True), (False, False), (False, True)):
            moment = variance if about_mean else square
            u = sampled["x"] - sampled["mean"] if centred else sampled["x"]
            for epsilon, beside in _guards(epsilons, count):
                r = 1 / (np.sqrt(moment + epsilon) + beside)
                if _line(u * rows(r)[:, some], sampled["y"]) is None:
                    continue
                line = _line(rows((x - mean if centred else x) * r), rows(y))
                if line is not None:
                    slope, offset = line
                    offset = np.where(np.abs(offset) < 1e-6 * np.abs(y).max(), 0, offset)
                    scale, bias = self._constant(slope), self._constant(offset)
                    norm = Norm(self.source, blocks, epsilon, beside, centred, about_mean, scale)
                    return norm, bias if bias.any() else None
        raise _NoFitError

    def _constant(self, numbers: Numbers) -> NDArray[Any]:
        """Keep one of equal numbers along each axis; along an axis of unknown size all have to be.

        Raises
        ------
        _NoFitError : they are not.
        """
        assert self.source.dtype is not None
        numbers = numbers.reshape(1, *self.sizes)
        for axis in range(1, numbers.ndim):
            mean = numbers.mean(axis=axis, keepdims=True)
            if np.abs(numbers - mean).max() <= 1e-5 * np.abs(numbers).max():
                numbers = mean
            elif not isinstance(self.shape[axis], int):
                raise _NoFitError
        return np.asarray(numbers, self.source.dtype.numpy())


class _NoFitError(Exception):
    """Nothing is found; never leaves this module."""


def _guards(epsilons: Sequence[float], count: int) -> Iterator[tuple[float, float]]:
    """Yield what may stand under the root and beside it, for means of `count` numbers.

    Of a sum in place of a mean, or a mean of all but one, the factor is in the scale; then epsilon
    counts for less.
    """
    shares = (1.0, (count - 1) / count, 1 / count)
    for share in shares:
        yield from ((epsilon * share, 0.0) for epsilon in epsilons)
    for share in shares:
        yield from ((0.0, epsilon * share**0.5) for epsilon in epsilons)
    yield 0.0, 0.0


def _mean(x: Numbers, blocks: Blocks) -> Numbers:
    """Average over blocks, in the shape of x or one that broadcasts to it."""
    sizes, axes = list[int](), list[int]()
    for size, block in zip(x.shape, blocks, strict=True):
        axes += [len(sizes) + 1] if block != 1 else []
        sizes += [size // (block or size), block or size]
    mean = x.reshape(sizes).mean(axis=tuple(axes), keepdims=True)
    return np.broadcast_to(mean, sizes).reshape(x.shape)


def _line(hat: Numbers, y: Numbers) -> tuple[Numbers, Numbers] | None:
    """Return slope and offset by which y follows from hat over the rows of a column, or None."""
    centre, middle = hat.mean(axis=0), y.mean(axis=0)
    away = hat - centre
    spread = (away**2).sum(axis=0)
    if not (spread > 0).all():
        return None
    slope = (away * (y - middle)).sum(axis=0) / spread
    offset = middle - slope * centre
    off, size = np.abs(slope * hat + offset - y).max(), np.abs(y - offset).max()
    return (slope, offset) if off <= _TOLERANCE * size and size else None

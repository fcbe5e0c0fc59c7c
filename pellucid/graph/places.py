"""Where on the image every value of a network lies, and what part of the image it sees.

The graph is run once on places instead of numbers. A value's place is a point of the image, in
pixels; what it sees is an interval along each image axis. Convolutions slide windows over both,
reshapes and transposes carry them along, sums join them, products of activations keep the place of
their first factor, or in attention that of the query, and see what both see. So the cells of a
token grid are known whatever order the tokens stand in, and class tokens are those that lie
nowhere.

Intervals are not cut at the border, as receptive fields in the literature are not. What a
normalisation over positions mixes in is not counted, either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from pellucid.graph.fields import (
    HIGH,
    LOW,
    PLACE,
    Field,
    Floats,
    changes,
    compact,
    joined,
    mean_place,
    read_along,
    spread,
    steps_of,
    subdivided,
    thinned,
    together,
)
from pellucid.graph.protobuf import constants, inputs_of
from pellucid.graph.shape_values import shape_values
from pellucid.graph.shapes import TensorType
from pellucid.graph.wiring import Wiring

__all__ = ["Tracer"]

_NOWHERE = np.array([np.nan, np.inf, -np.inf], np.float32)
_MOST = 1 << 22  # elements of an index array that is computed

_SAME = frozenset(("Identity", "Cast", "CastLike", "Dropout", "BatchNormalization",
                   "InstanceNormalization", "GroupNormalization", "LRN"))  # fmt: skip
_RESHAPING = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
_ARRANGING = frozenset((
    "Slice", "Split", "Gather", "DepthToSpace", "SpaceToDepth", "GatherND",
    "GatherElements", "ReverseSequence", "Compress",
))  # fmt: skip
_ELEMENTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Where", "PRelu", "Mod",
    "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Clip",
    "BiasGelu",
))  # fmt: skip
_ALONG_AXIS = frozenset(("Softmax", "LogSoftmax", "Hardmax", "CumSum", "LpNormalization"))
_KEEPING_BOTH = _SAME | _RESHAPING | _ELEMENTWISE | {"Transpose", "Tanh"}
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))


class Tracer:
    """Runs a graph on places.

    Parameters
    ----------
    wiring : the graph.
    types : shapes of its tensors; what has none is not followed.
    """

    def __init__(self, wiring: Wiring, types: Mapping[str, TensorType]) -> None:
        self.wiring, self.types = wiring, types
        self.tensors = constants(wiring.graph)
        self.values: dict[str, Any] = dict(
            shape_values(wiring.graph, {name: kind.shape for name, kind in types.items()})
        )
        self.last: dict[str, int] = {}  # the node that is the last to read a tensor
        for index, names in enumerate(wiring.reads):
            self.last.update(dict.fromkeys(names, index))
        self.fields: dict[str, Field] = {}
        self.turned: dict[str, Field] = {}  # products of activations with the second one's place
        self.axes = 0

    def run(self, start: Mapping[str, Field], first: int = 0) -> Iterator[tuple[str, Field]]:
        """Yield tensors and their fields, in the order of the nodes.

        Parameters
        ----------
        start : fields of inputs, or of any tensors from which to go on.
        first : index of the node to begin with.
        """
        self.fields, self.turned = dict(start), {}
        self.axes = next(iter(start.values())).planes.shape[1]
        for index in range(first, len(self.wiring.nodes)):
            node = self.wiring.nodes[index]
            if self.wiring.is_live(index) and self.fields.keys() & set(self.wiring.reads[index]):
                for name, field in self._outputs(node):
                    if name not in start:
                        self.fields[name] = field
                        yield name, field
            for name in self.wiring.reads[index]:
                if self.last[name] <= index:
                    self.fields.pop(name, None)
                    self.turned.pop(name, None)

    def _outputs(self, node: NodeProto) -> list[tuple[str, Field]]:
        shapes = [self._shape(name) if name else None for name in node.output]
        found = self._by_rule(node)
        turned = found[len(shapes) :] or self._also_turned(node)
        self.turned.update(zip(node.output, turned, strict=False))
        made = []
        for index, (name, shape) in enumerate(zip(node.output, shapes, strict=True)):
            if not name or shape is None:
                continue
            field = found[index] if index < len(found) else None
            if field is None or field.shape != shape:
                field = self._everything(node, shape)
            made.append((name, field))
        return made

    def _by_rule(self, node: NodeProto) -> list[Field]:
        try:
            return self._rule(node)(self, node)
        except (KeyError, IndexError, ValueError, TypeError, NotImplementedError):
            return []  # a rule met something that it does not know: see `_everything`

    def _also_turned(self, node: NodeProto) -> list[Field]:
        """Carry the second place of a product along, as far as it is only rearranged or scaled."""
        live = [name for name in node.input if name in self.fields]
        if len(live) != 1 or live[0] not in self.turned or node.op_type not in _KEEPING_BOTH:
            return []
        field = self.fields[live[0]]
        self.fields[live[0]] = self.turned[live[0]]
        found = self._by_rule(node)
        self.fields[live[0]] = field
        return found

    def _rule(self, node: NodeProto) -> _Rule:
        kind = node.op_type
        if kind in _RULES:
            return _RULES[kind]
        if kind.startswith(("Reduce", "Arg")):
            return Tracer._reduced
        unary = len([n for n in node.input if n]) == 1 and len(node.output) == 1
        return Tracer._same if unary and kind in _UNARY else Tracer._unknown

    # ---- what a node is given ----------------------------------------------------------------

    def _shape(self, name: str) -> tuple[int, ...] | None:
        known = self.types.get(name)
        if known is None or None in known.shape:
            return None
        return known.shape  # type: ignore[return-value]

    def _field(self, name: str) -> Field:
        """Return a tensor's field; what depends on no image lies nowhere and sees nothing."""
        if name in self.fields:
            return self.fields[name]
        shape = self._shape(name)
        if shape is None:
            shape = tuple(np.shape(self._value(name)))
        planes = _NOWHERE.reshape(3, *([1] * (1 + len(shape))))
        return Field(np.broadcast_to(planes, (3, self.axes, *shape)), (0.0,) * self.axes)

    def _value(self, name: str) -> NDArray[Any]:
        """Return what a tensor that depends on no activation holds.

        Raises
        ------
        KeyError : it does, or it is too large.
        """
        if name in self.values:
            return np.asarray(self.values[name])
        if name in self.tensors:
            tensor = self.tensors[name]
            if np.prod(tensor.dims, initial=1) > _MOST or tensor.external_data:
                raise KeyError(name)
            return numpy_helper.to_array(tensor)
        if name in self.wiring.live or np.prod(self._shape(name) or 1, initial=1) > _MOST:
            raise KeyError(name)
        node = self.wiring.nodes[self.wiring.producer[name]]
        results = _evaluated(node, {n: self._value(n) for n in node.input if n})
        self.values.update(zip(node.output, results, strict=False))
        return np.asarray(self.values[name])

    # ---- rules -------------------------------------------------------------------------------

    def _same(self, node: NodeProto) -> list[Field]:
        return [self._field(node.input[0])]

    def _everything(self, node: NodeProto, shape: Sequence[int]) -> Field:
        """Return the field of an operation that may mix all that it reads."""
        read = [self.fields[name] for name in inputs_of(node) if name in self.fields]
        flat = [thinned(field).planes.reshape(3, self.axes, -1) for field in read]
        low = np.min([planes[LOW].min(axis=1) for planes in flat], axis=0)
        high = np.max([planes[HIGH].max(axis=1) for planes in flat], axis=0)
        ones = (self.axes, *([1] * len(shape)))
        alike = next((thinned(f).planes[PLACE] for f in read if f.shape == tuple(shape)), None)
        place = np.full(ones, np.nan, np.float32) if alike is None else alike
        return joined(place, low.reshape(ones), high.reshape(ones), shape, steps_of(read))

    def _unknown(self, _node: NodeProto) -> list[Field]:
        return []

    def _elementwise(self, node: NodeProto) -> list[Field]:
        shape = self._shape(node.output[0]) or ()
        read = [self._field(name) for name in node.input if name]
        parts = [thinned(field, len(shape)).planes for field in read]
        places = np.broadcast_arrays(*(p[PLACE] for p in parts))
        low = reduce(np.minimum, [p[LOW] for p in parts])
        high = reduce(np.maximum, [p[HIGH] for p in parts])
        return [joined(mean_place(np.stack(places), 0), low, high, shape, steps_of(read))]

    def _transposed(self, node: NodeProto) -> list[Field]:
        field = self._field(node.input[0])
        order = _attribute(node, "perm", list(reversed(range(len(field.shape)))))
        return [Field(field.planes.transpose(0, 1, *(a + 2 for a in order)), field.steps)]

    def _reshaped(self, node: NodeProto) -> list[Field]:
        field, shape = self._field(node.input[0]), self._shape(node.output[0]) or ()
        planes = field.planes.reshape(3, self.axes, *shape)
        copied = not np.shares_memory(planes, field.planes)
        return [Field(compact(planes) if copied else planes, field.steps)]

    def _expanded(self, node: NodeProto) -> list[Field]:
        return [subdivided(self._field(node.input[0]), self._shape(node.output[0]) or ())]

    def _tiled(self, node: NodeProto) -> list[Field]:
        field, shape = self._field(node.input[0]), self._shape(node.output[0]) or ()
        repeated = [a for a, (n, m) in enumerate(zip(field.shape, shape, strict=True)) if n != m]
        if any(field.shape[axis] > 1 for axis in repeated):
            return self._arranged(node)
        return [subdivided(field, shape)]

    def _arranged(self, node: NodeProto) -> list[Field]:
        """Carry out any rearrangement on the positions, and look the places up there."""
        field = self._field(node.input[0])
        size = int(np.prod(field.shape))
        if size > _MOST:
            raise ValueError(size)
        given = {n: self._value(n) for n in node.input[1:] if n}
        given[node.input[0]] = np.arange(size).reshape(field.shape)
        flat = field.planes.reshape(3, self.axes, -1)
        return [
            Field(compact(flat[:, :, np.asarray(index)]), field.steps)
            for index in _evaluated(node, given)
        ]

    def _concatenated(self, node: NodeProto) -> list[Field]:
        shape = self._shape(node.output[0]) or ()
        axis = _attribute(node, "axis", 0) % len(shape)
        read = [self._field(name) for name in node.input]
        thin = [thinned(field).planes for field in read]
        sizes = [max(p.shape[a + 2] for p in thin) for a in range(len(shape))]
        parts = []
        for planes, field in zip(thin, read, strict=True):
            sizes[axis] = field.shape[axis]
            parts.append(np.broadcast_to(planes, (3, self.axes, *sizes)))
        return [Field(spread(np.concatenate(parts, axis=axis + 2), shape), steps_of(read))]

    def _reduced(self, node: NodeProto) -> list[Field]:
        field, shape = self._field(node.input[0]), self._shape(node.output[0]) or ()
        rank = len(field.shape)
        if node.op_type.startswith("Arg"):
            axes = [_attribute(node, "axis", 0)]
        elif len(node.input) > 1 and node.input[1]:
            axes = self._value(node.input[1]).reshape(-1).tolist()
        else:
            axes = _attribute(node, "axes", list(range(rank)))
        return [together(field, [a % rank for a in axes or range(rank)], shape)]

    def _pooled_globally(self, node: NodeProto) -> list[Field]:
        field = self._field(node.input[0])
        return [together(field, range(2, len(field.shape)), self._shape(node.output[0]) or ())]

    def _along_axis(self, node: NodeProto) -> list[Field]:
        field = self._field(node.input[0])
        axes = [_attribute(node, "axis", -1) % len(field.shape)]
        turned = self.turned.get(node.input[0])
        if turned is not None and changes(thinned(field).planes[PLACE], axes[0] + 1):
            field = turned  # attention weights lie where the query does, not the key
        if node.op_type in _NORMS:
            axes = list(range(axes[0], len(field.shape)))
        wide, thin = together(field, axes, None), thinned(field)
        return [
            joined(
                thin.planes[PLACE], wide.planes[LOW], wide.planes[HIGH], field.shape,
                field.steps,
            )
        ] * len(node.output)  # fmt: skip

    # ---- products ----------------------------------------------------------------------------

    def _multiplied(self, node: NodeProto) -> list[Field]:
        first, second = (self._field(name) for name in node.input[:2])
        shape = self._shape(node.output[0]) or ()
        batch = [f"b{i}" for i in range(max(len(first.shape), len(second.shape), 2) - 2)]
        rows = [*batch[len(batch) - len(first.shape) + 2 :], "i", "k"][-len(first.shape) :]
        columns = [*batch[len(batch) - len(second.shape) + 2 :], "k", "j"]
        columns = columns if len(second.shape) > 1 else ["k"]
        ends = ["i"] * (len(first.shape) > 1) + ["j"] * (len(second.shape) > 1)
        return self._contracted([(first, rows), (second, columns)], [*batch, *ends], shape)

    def _gemm(self, node: NodeProto) -> list[Field]:
        first, second = (self._field(name) for name in node.input[:2])
        rows = ["k", "i"] if _attribute(node, "transA", 0) else ["i", "k"]
        columns = ["j", "k"] if _attribute(node, "transB", 0) else ["k", "j"]
        shape = self._shape(node.output[0]) or ()
        return self._contracted([(first, rows), (second, columns)], ["i", "j"], shape)

    def _einsum(self, node: NodeProto) -> list[Field]:
        left, _, right = _attribute(node, "equation", b"").decode().replace(" ", "").partition("->")
        terms = [list(term) for term in left.split(",")]
        fields = [self._field(name) for name in node.input]
        shape = self._shape(node.output[0]) or ()
        return self._contracted(list(zip(fields, terms, strict=True)), list(right), shape)

    def _contracted(
        self,
        factors: Sequence[tuple[Field, Sequence[str]]],
        kept: Sequence[str],
        shape: Sequence[int],
    ) -> list[Field]:
        """Sum products over the axes that are not kept; a sum over cells of one factor merges.

        Returns
        -------
        fields : with the place of the first factor, and of two activations that of the last.
        """
        live = [(f, names) for f, names in factors if not np.isinf(thinned(f).planes[LOW]).all()]
        parts = []
        for field, names in live or factors[:1]:
            gone = [axis for axis, name in enumerate(names) if name not in kept]
            merged = together(field, gone, None, merging=len(live) < 2)
            planes = thinned(merged).planes
            left = [name for name in names if name in kept]
            planes = planes.reshape(
                3, self.axes, *(planes.shape[a + 2] for a in range(len(names)) if a not in gone)
            )
            order = sorted(range(len(left)), key=lambda axis: kept.index(left[axis]))
            planes = planes.transpose(0, 1, *(axis + 2 for axis in order))
            sizes = {left[axis]: planes.shape[2 + at] for at, axis in enumerate(order)}
            parts.append(planes.reshape(3, self.axes, *(sizes.get(name, 1) for name in kept)))
        places = [p[PLACE] for p in parts]
        low = reduce(np.minimum, [p[LOW] for p in parts])
        high = reduce(np.maximum, [p[HIGH] for p in parts])
        steps = steps_of([f for f, _ in live or factors])
        return [
            joined(reduce(_located, order), low, high, shape, steps)
            for order in ([places, places[::-1]] if len(live) > 1 else [places])
        ]

    # ---- windows -----------------------------------------------------------------------------

    def _convolved(self, node: NodeProto) -> list[Field]:
        field = self._field(node.input[0])
        kernel = (self._shape(node.input[1]) or ())[2:]
        mixed = together(field, [1], None, merging=True)
        return [self._windowed(node, mixed, kernel, self._shape(node.output[0]) or ())]

    def _pooled(self, node: NodeProto) -> list[Field]:
        field = self._field(node.input[0])
        kernel = tuple(_attribute(node, "kernel_shape", []))
        pooled = self._windowed(node, field, kernel, self._shape(node.output[0]) or ())
        return [pooled] * len(node.output)

    def _windowed(
        self, node: NodeProto, field: Field, kernel: Sequence[int], shape: Sequence[int]
    ) -> Field:
        strides = _attribute(node, "strides", [1] * len(kernel))
        dilations = _attribute(node, "dilations", [1] * len(kernel))
        pads = _attribute(node, "pads", [0] * (2 * len(kernel)))
        padding = _attribute(node, "auto_pad", b"NOTSET").decode()
        thin = thinned(field)
        planes, steps = thin.planes, list(field.steps)
        for index, (size, stride, dilation) in enumerate(
            zip(kernel, strides, dilations, strict=True)
        ):
            reach = dilation * (size - 1)
            before = pads[index]
            if padding.startswith("SAME"):
                missing = (shape[2 + index] - 1) * stride + reach + 1 - field.shape[2 + index]
                before = (max(missing, 0) + (padding == "SAMELOWER")) // 2
            first = np.arange(shape[2 + index], dtype=np.float32) * stride - before
            planes = self._between(planes, index, first, first + reach, steps, field.shape)
            steps = self._scaled(steps, kernel, index, stride)
        return Field(spread(planes, shape), tuple(steps))

    def _convolved_backwards(self, node: NodeProto) -> list[Field]:
        shape = self._shape(node.output[0]) or ()
        field = together(self._field(node.input[0]), [1], None, merging=True)
        kernel = (self._shape(node.input[1]) or ())[2:]
        strides = _attribute(node, "strides", [1] * len(kernel))
        dilations = _attribute(node, "dilations", [1] * len(kernel))
        pads = _attribute(node, "pads", None)
        if pads is None and _attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            raise NotImplementedError(node.op_type)
        planes, steps = thinned(field).planes, list(field.steps)
        for index, (size, stride, dilation) in enumerate(
            zip(kernel, strides, dilations, strict=True)
        ):
            reach = dilation * (size - 1)
            last = np.arange(shape[2 + index], dtype=np.float32) + (pads[index] if pads else 0)
            low, high = np.ceil((last - reach) / stride), np.floor(last / stride)
            planes = self._between(
                planes, index, np.minimum(low, high), high, steps, field.shape,
                (last - reach / 2) / stride,
            )  # fmt: skip
            steps = self._scaled(steps, kernel, index, 1 / stride)
        return [Field(spread(planes, shape), tuple(steps))]

    def _resized(self, node: NodeProto) -> list[Field]:
        field, shape = self._field(node.input[0]), self._shape(node.output[0]) or ()
        mode = _attribute(node, "mode", b"nearest")
        align = _attribute(node, "coordinate_transformation_mode", b"half_pixel")
        planes, steps = thinned(field).planes, list(field.steps)
        for index, (before, after) in enumerate(zip(field.shape[2:], shape[2:], strict=True)):
            if before == after:
                continue
            cells = np.arange(after, dtype=np.float32)
            if align == b"align_corners":
                at = cells * (before - 1) / max(after - 1, 1)
            elif align == b"asymmetric":
                at = cells * before / after
            else:
                at = (cells + 0.5) * before / after - 0.5
            around = {b"nearest": (0, 0), b"linear": (0, 1), b"cubic": (-1, 2)}[mode]
            base = np.floor(at)
            if mode == b"nearest":
                base = np.floor((cells + 0.5) * before / after)
            low, high = (np.clip(base + offset, 0, before - 1) for offset in around)
            planes = self._between(
                planes, index, low, high, steps, field.shape, (cells + 0.5) * before / after - 0.5
            )
            steps = self._scaled(steps, shape[2:], index, before / after)
        return [Field(spread(planes, shape), tuple(steps))]

    def _padded(self, node: NodeProto) -> list[Field]:
        field, shape = self._field(node.input[0]), self._shape(node.output[0]) or ()
        if len(node.input) > 1:
            pads = self._value(node.input[1]).reshape(-1).tolist()
        else:
            pads = _attribute(node, "pads", [])
        axes: Sequence[int] = range(len(shape))
        if len(node.input) > 3 and node.input[3]:
            axes = [a % len(shape) for a in self._value(node.input[3]).reshape(-1).tolist()]
        planes = thinned(field).planes
        for axis, before in zip(axes, pads, strict=False):
            if shape[axis] == field.shape[axis] or planes.shape[axis + 2] == 1 < field.shape[axis]:
                continue
            cells = np.arange(shape[axis], dtype=np.float32) - before
            # The image axis of a tensor axis shows in its values; with one position it is the
            # usual one of the layout, channels last or first.
            index = axis - 1 if len(pads) > 2 and pads[1] else axis - 2
            planes = self._between(planes, index, cells, cells, field.steps, field.shape, axis=axis)
        return [Field(spread(planes, shape), field.steps)]

    def _scaled(
        self, steps: Sequence[float], windows: Sequence[int], index: int, factor: float
    ) -> list[float]:
        """Widen the step of an image axis, where a tensor has as many axes as the image."""
        if len(windows) != self.axes:
            return list(steps)
        return [step * factor if i == index else step for i, step in enumerate(steps)]

    def _between(
        self,
        planes: Floats,
        index: int,
        first: NDArray[Any],
        last: NDArray[Any],
        steps: Sequence[float],
        shape: Sequence[int],
        middle: NDArray[Any] | None = None,
        axis: int | None = None,
    ) -> Floats:
        """Let windows slide along image axis `index`: from cells `first` to cells `last`."""
        at = (2 + index if axis is None else axis) + 2
        if planes.shape[at] == 1 < shape[at - 2]:
            return planes  # nothing changes along this axis
        ends = [read_along(planes, at, cells, index, steps) for cells in (first, last)]
        centre = read_along(
            planes, at, (first + last) / 2 if middle is None else middle, index, steps
        )
        low = np.minimum(ends[0][LOW], ends[1][LOW])
        return np.stack([centre[PLACE], low, np.maximum(ends[0][HIGH], ends[1][HIGH])])


_Rule = Callable[[Tracer, NodeProto], list[Field]]
_UNARY = frozenset((
    "Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Erf", "Gelu", "FastGelu",
    "QuickGelu", "Elu", "Selu", "Celu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "HardSwish",
    "Softplus", "Softsign", "Mish", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos",
    "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Not", "IsNaN", "IsInf", "Swish", "Shrink",
    "Trilu", "Bernoulli",
))  # fmt: skip
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SAME, Tracer._same),
    **dict.fromkeys(_RESHAPING, Tracer._reshaped),
    **dict.fromkeys(_ARRANGING, Tracer._arranged),
    **dict.fromkeys(_ELEMENTWISE, Tracer._elementwise),
    **dict.fromkeys(_ALONG_AXIS | _NORMS, Tracer._along_axis),
    "Transpose": Tracer._transposed,
    "Expand": Tracer._expanded,
    "Tile": Tracer._tiled,
    "Concat": Tracer._concatenated,
    "GlobalAveragePool": Tracer._pooled_globally,
    "GlobalMaxPool": Tracer._pooled_globally,
    "GlobalLpPool": Tracer._pooled_globally,
    "MatMul": Tracer._multiplied,
    "Gemm": Tracer._gemm,
    "Einsum": Tracer._einsum,
    "Conv": Tracer._convolved,
    "ConvTranspose": Tracer._convolved_backwards,
    "MaxPool": Tracer._pooled,
    "AveragePool": Tracer._pooled,
    "LpPool": Tracer._pooled,
    "Resize": Tracer._resized,
    "Upsample": Tracer._resized,
    "Pad": Tracer._padded,
}


def _located(first: Floats, second: Floats) -> Floats:
    """Return places, the second ones if the first are nowhere."""
    return second if np.isnan(first).all() else first


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _evaluated(node: NodeProto, given: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(node).run(None, dict(given)))

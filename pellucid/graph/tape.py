"""The tape on which the rules write the backward graph.

`t.Mul(g, y)` appends a node and returns its output, so a rule reads like its formula. Writing
the same node twice gives the first one again, also when the forward graph already holds it:
nothing is computed twice. Shapes come from the forward graph, statically where inference knows
them, from a `Shape` node otherwise, so a dynamic batch stays dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import UnsupportedError

__all__ = [
    "BACKWARD",
    "Dim",
    "Tape",
    "alike",
    "array",
    "axes_of",
    "dims",
    "is_float",
    "label",
    "layer_of",
    "operands",
    "rename_constant",
]

Dim: TypeAlias = int | str | None
Operand: TypeAlias = "ir.Value | float | Sequence[int] | NDArray[Any] | None"

BACKWARD = "backward/"  # the names of all values and nodes that the tape writes begin so


def dims(value: ir.Value) -> tuple[Dim, ...] | None:
    """Shape of a value: numbers, symbols for named unknowns, None for nameless ones."""
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def alike(one: Sequence[Dim] | None, other: Sequence[Dim] | None) -> bool:
    """Whether two shapes agree wherever both are known."""
    if one is None or other is None or len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def array(value: ir.Value | None) -> NDArray[Any] | None:
    """Contents of a constant, None for anything that is computed at run time."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def rename_constant(value: ir.Value, name: str) -> None:
    """Name an initializer anew; its tensor may be part of the caller's file, so it gets its own."""
    contents = array(value)
    value.const_value = None
    value.name = name
    if contents is not None:
        value.const_value = ir.tensor(contents, name=name)


def is_float(value: ir.Value) -> bool:
    """Whether a value holds real numbers; unknown types count as such."""
    return value.dtype is None or value.dtype.is_floating_point()


def operands(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node, those that its branches and bodies take from outside included."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if isinstance(attribute.value, ir.Graph):
            body = attribute.value
            inner = [value for each in body for value in operands(each)]
            own = {value for each in body for value in each.outputs}
            own.update(body.inputs, body.initializers.values())
            found += [value for value in (*inner, *body.outputs) if value not in own]
    return list(dict.fromkeys(found))


def layer_of(node: ir.Node) -> str:
    """Name of the layer that a node belongs to: the exporter's record of it, or its own name."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [name.strip(" '\"") for name in scopes.strip("[]").split(",")]
    return (names[-2] if len(names) > 1 else "") or node.name or node.outputs[0].name or "?"


def label(node: ir.Node) -> str:
    """How a message names a node."""
    domain = f"{node.domain}." if node.domain else ""
    return f"{domain}{node.op_type} (node {node.name!r}, layer {layer_of(node)!r})"


class Tape(ir.tape.Tape):
    """Records the backward nodes of one differentiation.

    Attributes
    ----------
    dtype : element type of the cotangent at hand, which Python numbers take.
    blocks : which values the runtime likely keeps in blocks of channels, see `layout`.
    wanted : the values that depend on a wanted tensor; rules may skip the cotangents of others.
    """

    def __init__(self, graph: ir.Graph, prefix: str = BACKWARD) -> None:
        super().__init__()
        self.prefix = prefix
        self.dtype = ir.DataType.FLOAT
        self.wanted: set[ir.Value] = set()
        self.blocks: dict[ir.Value, bool] = {}
        self.constants: dict[Any, ir.Value] = {}
        self._written: dict[Any, ir.Node] = {}
        for node in graph:
            if not any(isinstance(a.value, ir.Graph) for a in node.attributes.values()):
                self._written.setdefault(_key(node), node)

    # ---- writing nodes ---------------------------------------------------------------------------

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return partial(self.write, op_type)

    def write(self, op_type: str, *operands: Operand, **attributes: Any) -> ir.Value:
        """Append a node with one output, or find the node that already computes it."""
        return self.write_many(op_type, 1, *operands, **attributes)[0]

    def write_many(
        self, op_type: str, outputs: int, *operands: Operand, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        inputs = [self.operand(operand) for operand in operands]
        given = ir.convenience.convert_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )
        node = ir.Node("", op_type, inputs, attributes=given, num_outputs=outputs)
        if (found := self._written.get(_key(node))) and len(found.outputs) >= outputs:
            for index in range(len(inputs)):
                node.replace_input_with(index, None)  # leaves no trace of the second writing
            return found.outputs
        self._written[_key(node)] = node
        node.name = f"{self.prefix}{op_type}_{len(self._nodes)}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}:{index}" if index else node.name
        self._nodes.append(node)
        return node.outputs

    def operand(self, operand: Operand) -> ir.Value | None:
        """Turn numbers into constants: floats take the cotangent's type, integers are int64."""
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, float):
            return self.constant(np.asarray(operand, self.dtype.numpy()))
        if isinstance(operand, np.ndarray | np.generic):
            return self.constant(np.asarray(operand))
        return self.constant(np.asarray(operand, np.int64))

    def constant(self, contents: NDArray[Any]) -> ir.Value:
        """Return the constant of these contents, one for all uses."""
        contents = np.ascontiguousarray(contents).reshape(contents.shape)
        key = (contents.dtype.str, contents.shape, contents.tobytes())
        if key not in self.constants:
            name = f"{self.prefix}constant_{len(self.constants)}"
            tensor = ir.tensor(contents, name=name)
            self.constants[key] = self.initializer(tensor)
        return self.constants[key]

    # ---- shapes ----------------------------------------------------------------------------------

    def rank(self, value: ir.Value) -> int:
        """Return the number of axes."""
        shape = dims(value)
        if shape is None:
            raise UnsupportedError(
                f"The number of axes of tensor {value.name!r} is unknown, so the graph cannot be "
                "differentiated there. Export the model with static shapes besides the batch."
            )
        return len(shape)

    def padded(
        self,
        value: ir.Value,
        rank: int,
        axis: int,
        before: int,
        after: int,
        fill: ir.Value | None = None,
    ) -> ir.Value:
        """Add elements at both ends of an axis, zeros if nothing else is given.

        The pads of all axes are written out: onnxruntime (1.31) mistakes those of a few axes for
        all when it moves a Transpose past them.
        """
        if not before and not after:
            return value
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = before, after
        return self.write("Pad", value, pads, fill)

    def shape(self, value: ir.Value) -> ir.Value:
        """Return the shape as an int64 tensor, constant where it is known."""
        known = dims(value)
        if known is not None and all(isinstance(d, int) for d in known):
            return self.constant(np.asarray(known, np.int64))
        return self.Shape(value)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the length of one axis as an int64 tensor of shape (1,)."""
        known = dims(value)
        length = known[axis] if known else None
        if isinstance(length, int):
            return self.constant(np.asarray([length], np.int64))
        axis %= self.rank(value)
        return self.Shape(value, start=axis, end=axis + 1)

    def reshape_like(self, g: ir.Value, value: ir.Value) -> ir.Value:
        """Give `g` the shape of a value that has as many elements."""
        known = dims(value)
        if known is not None and sum(not isinstance(d, int) for d in known) == 1:
            return self.Reshape(g, [d if isinstance(d, int) else -1 for d in known])
        return self.Reshape(g, self.shape(value))

    def zeros(self, value: ir.Value) -> ir.Value:
        """Return zeros of the shape of a value."""
        return self.zeros_of(self.shape(value))

    def zeros_of(self, shape: ir.Value) -> ir.Value:
        """Return zeros of a shape."""
        zero = ir.tensor(np.zeros(1, self.dtype.numpy()))
        return self.ConstantOfShape(shape, value=zero)

    def expand_like(self, g: ir.Value, value: ir.Value) -> ir.Value:
        """Broadcast `g` to the shape of a value."""
        return self.Expand(g, self.shape(value))

    def unbroadcast(self, g: ir.Value, out: ir.Value, operand: ir.Value) -> ir.Value:
        """Sum a cotangent of the shape of `out` over the axes along which `operand` repeats."""
        have, want = dims(out), dims(operand)
        if have is None or want is None:
            return self._unbroadcast_at_run_time(g, out, operand)
        lead = len(have) - len(want)
        ones = []
        for axis, (h, w) in enumerate(zip(have[lead:], want, strict=True), start=lead):
            if w == 1 and h != 1:
                ones.append(axis)
            elif not (w == 1 or (isinstance(w, int) and w > 1) or (w == h and w is not None)):
                return self._unbroadcast_at_run_time(g, out, operand)
        if ones:
            g = self.ReduceSum(g, ones, keepdims=1)
        if lead:
            g = self.ReduceSum(g, list(range(lead)), keepdims=0)
        return g

    def _unbroadcast_at_run_time(self, g: ir.Value, out: ir.Value, operand: ir.Value) -> ir.Value:
        want, have = self.Shape(operand), self.Shape(out)
        lead = self.Sub(self.Shape(have), self.Shape(want))  # (1,)
        padded = self.Concat(self.Expand([1], lead), want, axis=0)
        # axes where the operand has one element and the result more
        narrow = self.And(self.Equal(padded, [1]), self.Not(self.Equal(have, [1])))
        axes = self.Reshape(self.NonZero(narrow), [-1])
        summed = self.ReduceSum(g, axes, keepdims=1, noop_with_empty_axes=1)
        return self.Reshape(summed, want)

    # ---- small formulas that many rules share ----------------------------------------------------

    def mask(self, condition: ir.Value, g: ir.Value) -> ir.Value:
        """`g` where the condition holds, zero elsewhere."""
        return self.Where(condition, g, 0.0)

    def add(self, terms: Sequence[ir.Value]) -> ir.Value:
        """Sum of cotangents of the same shape."""
        total = terms[0]
        for term in terms[1:]:
            total = self.Add(total, term)
        return total

    def swap_last(self, value: ir.Value, rank: int) -> ir.Value:
        """Transpose the last two axes of a value of the given rank."""
        return self.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])

    def along(self, g: ir.Value, matrix: ir.Value, axis: int, rank: int) -> ir.Value:
        """Multiply `matrix` (i, o) with `g` along one axis: (..., o, ...) -> (..., i, ...)."""
        if axis == rank - 2:
            return self.MatMul(matrix, g)
        if axis == rank - 1:
            return self.MatMul(g, self.Transpose(matrix, perm=[1, 0]))
        order = [*(a for a in range(rank) if a != axis), axis]
        moved = self.MatMul(self.Transpose(g, perm=order), self.Transpose(matrix, perm=[1, 0]))
        return self.Transpose(moved, perm=[int(a) for a in np.argsort(order)])

    def eye(self, value: ir.Value, axis: int) -> ir.Value:
        """Identity matrix of the length of an axis."""
        size = self.size(value, axis)
        known = array(size)
        if known is not None:
            return self.constant(np.eye(int(known[0]), dtype=self.dtype.numpy()))
        square = self.Expand(0.0, self.Concat(size, size, axis=0))
        return self.EyeLike(square, dtype=int(self.dtype))


def axes_of(node: ir.Node, rank: int, index: int = 1) -> list[int] | None:
    """Constant axes given as an input, counted from the front; None where there is none."""
    given = array(node.inputs[index]) if len(node.inputs) > index else None
    return None if given is None else [int(a) % max(rank, 1) for a in given.reshape(-1)]


def _key(node: ir.Node) -> Any:
    attributes = tuple(sorted((a.name, _hashable(a.value)) for a in node.attributes.values()))
    return node.domain, node.op_type, tuple(map(id, node.inputs)), repr(attributes)


def _hashable(value: Any) -> Any:
    if isinstance(value, ir.TensorProtocol):
        return (value.dtype, *value.shape, value.tobytes()) if value.size < 9 else id(value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def product(lengths: Sequence[Dim]) -> int | None:
    """Number of elements, None where a length is unknown."""
    if any(not isinstance(d, int) for d in lengths):
        return None
    return math.prod(d for d in lengths if isinstance(d, int))

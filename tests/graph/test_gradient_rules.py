"""Every rule against central differences in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper

from tests.graph.oracle import check_by_differences

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


POSITIVE = {"Log", "Sqrt"}
UNIT = {"Asin", "Acos"}
UNARY = [
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Elu", {"alpha": 1.3}), ("Selu", {}),
    ("Celu", {"alpha": 0.7}), ("ThresholdedRelu", {"alpha": 0.3}), ("Sigmoid", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("HardSwish", {}), ("Tanh", {}), ("Softplus", {}),
    ("Softsign", {}), ("Mish", {}), ("Exp", {}), ("Log", {}), ("Sqrt", {}),
    ("Reciprocal", {}), ("Abs", {}), ("Neg", {}), ("Sin", {}), ("Cos", {}), ("Tan", {}),
    ("Sinh", {}), ("Cosh", {}), ("Asin", {}), ("Acos", {}), ("Atan", {}), ("Identity", {}),
    ("Dropout", {}), ("Shrink", {"lambd": 0.4}), ("Softmax", {"axis": 1}),
    ("LogSoftmax", {"axis": -1}), ("Transpose", {"perm": [2, 0, 1]}), ("Transpose", {}),
    ("Flatten", {"axis": 2}), ("Trilu", {"upper": 0}), ("GlobalAveragePool", {}),
    ("LpNormalization", {"axis": 1, "p": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), UNARY, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("dynamic", [(), (0, 2)], ids=["static", "dynamic"])
def test_function_of_one_tensor(op: str, attributes: dict, dynamic: tuple) -> None:
    x = normal(2, 3, 4) * 2
    x = np.abs(x) + 0.1 if op in POSITIVE else np.tanh(x) * 0.9 if op in UNIT else x
    x = np.sign(x) * np.maximum(np.abs(x), 0.05) if op == "Reciprocal" else x
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    check_by_differences([node], {"x": x}, dynamic=dynamic)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "PRelu"])
@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 3, 4), (1, 3, 1)), ((2, 3, 4), ()),
     ((4,), (2, 3, 1)), ((2, 1, 4), (1, 3, 1))],
)  # fmt: skip
@pytest.mark.parametrize("dynamic", [(), (0, 1)], ids=["static", "dynamic"])
def test_function_of_two_tensors(op: str, a: tuple, b: tuple, dynamic: tuple) -> None:
    if op == "PRelu" and (len(a) < len(b) or a == (2, 1, 4)):
        pytest.skip("PRelu broadcasts the slope alone")
    x, z = normal(*a), normal(*(b or (1,)) if op in ("Div", "Pow") else b)
    if op in ("Div", "Pow"):
        x, z = np.abs(x) + 0.3, np.abs(z) + 0.3
    node = helper.make_node(op, ["x", "z"], ["y"])
    check_by_differences([node], {"x": x, "z": z}, dynamic=dynamic)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.0, -1.0])
def test_power_with_a_constant(p: float) -> None:
    node = helper.make_node("Pow", ["x", "p"], ["y"])
    check_by_differences([node], {"x": np.abs(normal(3, 4)) + 0.2}, {"p": np.asarray(p)})


def test_sum_of_three_and_of_the_same_tensor_twice() -> None:
    nodes = [
        helper.make_node("Sum", ["x", "z", "x"], ["s"]),
        helper.make_node("Mul", ["s", "s"], ["m"]),
        helper.make_node("Add", ["m", "m"], ["y"]),
    ]
    check_by_differences(nodes, {"x": normal(2, 3), "z": normal(3)})


def test_where() -> None:
    node = helper.make_node("Where", ["c", "x", "z"], ["y"])
    c = {"c": RNG.random((3, 1)) > 0.5}
    check_by_differences([node], {"x": normal(2, 3, 4), "z": normal(4)}, c)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.7), (None, 0.3), (0.1, None), (0.0, 6.0)])
def test_clip(low: float | None, high: float | None) -> None:
    bounds = {"low": low, "high": high}
    given = {n: np.asarray(v) for n, v in bounds.items() if v is not None}
    node = helper.make_node("Clip", ["x", *(n if n in given else "" for n in bounds)], ["y"])
    check_by_differences([node], {"x": normal(3, 4) * 4}, given)


REDUCTIONS = ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [None, (1,), (0, -1)])
@pytest.mark.parametrize("dynamic", [(), (0, 2)], ids=["static", "dynamic"])
def test_reduction(op: str, keep: int, axes: tuple | None, dynamic: tuple) -> None:
    x = normal(2, 3, 4)
    x = np.abs(x) + 0.2 if op == "LogSum" else x
    constants = {} if axes is None else {"axes": ints(*axes)}
    node = helper.make_node(f"Reduce{op}", ["x", *constants], ["y"], keepdims=keep)
    check_by_differences([node], {"x": x}, constants, dynamic=dynamic)


def test_product_through_zeros() -> None:
    x = normal(3, 4)
    x[0, 1] = x[1, 2] = x[1, 3] = 0
    node = helper.make_node("ReduceProd", ["x", "axes"], ["y"])
    check_by_differences([node], {"x": x}, {"axes": ints(1)})


SHAPES = [
    ("Reshape", {"s": ints(0, -1)}, {}),
    ("Squeeze", {"s": ints(1)}, {}),
    ("Unsqueeze", {"s": ints(0, -1)}, {}),
    ("Expand", {"s": ints(2, 2, 5, 4, 6)}, {}),
    ("Tile", {"s": ints(2, 3, 1, 2)}, {}),
    ("CumSum", {"s": np.asarray(2)}, {"reverse": 1, "exclusive": 1}),
    ("CumSum", {"s": np.asarray(3)}, {}),
]


@pytest.mark.parametrize(("op", "constants", "attributes"), SHAPES)
@pytest.mark.parametrize("dynamic", [(), (0,), (0, 3)], ids=["static", "batch", "dynamic"])
def test_shape_operator(op: str, constants: dict, attributes: dict, dynamic: tuple) -> None:
    shape = (2, 1, 4, 6) if op != "Expand" else (2, 1, 4, 1)
    node = helper.make_node(op, ["x", "s"], ["y"], **attributes)
    check_by_differences([node], {"x": normal(*shape)}, constants, dynamic=dynamic)


SLICES = [
    ([1], [3], [2], [1]), ([0, 1], [2, 9], [0, 3], [1, 2]), ([-1], [-99], [3], [-1]),
    ([-2], [-99], [3], [-2]), ([1, -1], [-1, -6], [2, 3], [2, -3]), ([0], [2**62], [3], [3]),
    ([-3], [2**62], [3], [1]), ([0], [1], [1], [1]),
]  # fmt: skip


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=["static", "dynamic"])
def test_slice(starts: list, ends: list, axes: list, steps: list, dynamic: tuple) -> None:
    constants = {n: ints(*v) for n, v in zip("abcd", (starts, ends, axes, steps), strict=True)}
    node = helper.make_node("Slice", ["x", *constants], ["y"])
    check_by_differences([node], {"x": normal(2, 3, 5, 7)}, constants, dynamic=dynamic)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [2, [0, 1], [2, 0, 2, -1], [[0, 2], [1, 1]]])
@pytest.mark.parametrize("dynamic", [(), (0, 2)], ids=["static", "dynamic"])
def test_gather_adds_up_repeated_indices(axis: int, indices: object, dynamic: tuple) -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)
    constants = {"i": np.asarray(indices, np.int64)}
    check_by_differences([node], {"x": normal(3, 4, 5)}, constants, dynamic=dynamic)


@pytest.mark.parametrize("op", ["GatherElements", "GatherND", "ScatterElements", "ScatterND"])
def test_indexed_access(op: str) -> None:
    if op.endswith("ND"):
        indices = np.asarray([[0, 1], [2, 3], [1, 1]], np.int64)
        updates = {"u": normal(3, 5)} if op.startswith("Scatter") else {}
        attributes = {}
    else:
        indices = np.stack([np.random.default_rng(1).permutation(3)[:2] for _ in range(20)], 1)
        indices = indices.reshape(2, 4, 5).astype(np.int64)
        updates = {"u": normal(2, 4, 5)} if op.startswith("Scatter") else {}
        attributes = {"axis": 0}
    node = helper.make_node(op, ["x", "i", *updates], ["y"], **attributes)
    check_by_differences([node], {"x": normal(3, 4, 5), **updates}, {"i": indices})


def test_top_k() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1)
    check_by_differences([node], {"x": normal(2, 6)}, {"k": ints(3)})


@pytest.mark.parametrize("dynamic", [(), (0, 1)], ids=["static", "dynamic"])
def test_concat_and_split(dynamic: tuple) -> None:
    nodes = [
        helper.make_node("Concat", ["x", "c", "z"], ["j"], axis=1),
        helper.make_node("Split", ["j", "sizes"], ["a", "b", "d"], axis=1),
        helper.make_node("Exp", ["a"], ["y"]),
        helper.make_node("Sin", ["d"], ["w"]),
    ]
    constants = {"c": normal(2, 2), "sizes": ints(2, 3, 2)}
    inputs = {"x": normal(2, 2), "z": normal(2, 3)}
    check_by_differences(nodes, inputs, constants, outputs=("y", "w"), dynamic=dynamic[:1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=["static", "dynamic"])
def test_pad(mode: str, dynamic: tuple) -> None:
    pads = {"pads": ints(0, 0, 2, 1, 0, 1, 1, 3)}
    node = helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode)
    check_by_differences([node], {"x": normal(2, 2, 4, 5)}, pads, opset=19, dynamic=dynamic)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=["static", "dynamic"])
def test_depth_to_space_and_back(mode: str, dynamic: tuple) -> None:
    nodes = [
        helper.make_node("DepthToSpace", ["x"], ["h"], blocksize=2, mode=mode),
        helper.make_node("Sin", ["h"], ["s"]),
        helper.make_node("Identity", ["s"], ["y"]),
    ]
    check_by_differences(nodes, {"x": normal(2, 8, 3, 2)}, dynamic=dynamic)
    node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)
    check_by_differences([node], {"x": normal(2, 3, 4, 6)}, dynamic=dynamic)


MATMULS = [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((4,), (4, 5)),
           ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3))]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), MATMULS)
def test_matmul(a: tuple, b: tuple) -> None:
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    check_by_differences([node], {"x": normal(*a), "z": normal(*b)})


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(turned: tuple) -> None:
    a, b = ((4, 3) if turned[0] else (3, 4)), ((5, 4) if turned[1] else (4, 5))
    node = helper.make_node(
        "Gemm", ["x", "z", "c"], ["y"], alpha=0.7, beta=1.3, transA=turned[0], transB=turned[1]
    )
    check_by_differences([node], {"x": normal(*a), "z": normal(*b), "c": normal(5)})


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)), ("ij,jk", (2, 3), (3, 4)),
     ("bij,kj->bk", (2, 3, 4), (5, 4)), ("ij,ij->i", (3, 4), (3, 4))],
)  # fmt: skip
def test_einsum(equation: str, a: tuple, b: tuple) -> None:
    node = helper.make_node("Einsum", ["x", "z"], ["y"], equation=equation)
    check_by_differences([node], {"x": normal(*a), "z": normal(*b)})


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("dynamic", [(), (0,)], ids=["static", "dynamic"])
def test_batch_normalization(shape: tuple, dynamic: tuple) -> None:
    c = shape[1]
    constants = {"s": normal(c), "b": normal(c), "m": normal(c), "v": np.abs(normal(c)) + 0.1}
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y"], epsilon=1e-3)
    check_by_differences([node], {"x": normal(*shape)}, constants, dynamic=dynamic)


@pytest.mark.parametrize("dynamic", [(), (0, 2)], ids=["static", "dynamic"])
def test_batch_normalization_by_computed_statistics(dynamic: tuple) -> None:
    """tf_keras writes LayerNormalization so: mean and variance come from the batch itself."""
    names = ["x", "scale", "bias", "mean", "variance"]
    node = helper.make_node("BatchNormalization", names, ["y"], epsilon=1e-3)
    given = {name: normal(3) for name in names} | {"x": normal(2, 3, 4, 5)}
    given["variance"] = np.abs(given["variance"]) + 0.5
    check_by_differences([node], given, dynamic=dynamic)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization(axis: int) -> None:
    shape = (2, 3, 8)
    constants = {"s": normal(*shape[axis:]), "b": normal(*shape[axis:])}
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=axis)
    check_by_differences([node], {"x": normal(*shape)}, constants, dynamic=(0,))


def test_instance_normalization() -> None:
    constants = {"s": normal(3), "b": normal(3)}
    node = helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], epsilon=1e-4)
    check_by_differences([node], {"x": normal(2, 3, 4, 5)}, constants, dynamic=(0, 2))


def test_rms_normalization() -> None:
    node = helper.make_node("RMSNormalization", ["x", "s"], ["y"], axis=-1)
    check_by_differences([node], {"x": normal(2, 3, 8)}, {"s": normal(8)}, opset=23)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    npst.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
    st.sampled_from(["Add", "Sub", "Mul", "Max", "Where"]),
    st.booleans(),
)
def test_broadcasting_of_any_shapes(shapes: Any, op: str, dynamic: bool) -> None:
    a, b = shapes.input_shapes
    inputs = {"x": normal(*(a or (1,))), "z": normal(*(b or (1,)))}
    constants = {"c": np.asarray(True)} if op == "Where" else {}
    node = helper.make_node(op, [*constants, "x", "z"], ["y"])
    check_by_differences([node], inputs, constants, dynamic=(0, 1, 2, 3) if dynamic else ())


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("pads", [[0] * 4, [1, 0, 0, 1]])
def test_lp_pooling(p: int, pads: list) -> None:
    node = helper.make_node(
        "LpPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 1], pads=pads, p=p
    )
    check_by_differences([node], {"x": normal(2, 3, 7, 6)})


@pytest.mark.parametrize("axis", [None, 1])
def test_compress(axis: int | None) -> None:
    chosen = np.asarray([True, False, True])
    node = helper.make_node("Compress", ["x", "c"], ["y"], **({} if axis is None else {"axis": 1}))
    check_by_differences([node], {"x": normal(2, 3, 4)}, {"c": chosen})


def test_max_unpooling() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m", "i"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Sin", ["m"], ["s"]),
        helper.make_node("MaxUnpool", ["s", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    check_by_differences(nodes, {"x": normal(2, 3, 6, 8)})


def test_indexed_access_batch_by_batch() -> None:
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=1)
    indices = ints(0, 2, 1, 1).reshape(2, 2, 1)
    check_by_differences([node], {"x": normal(2, 3, 4)}, {"i": indices}, dynamic=(0,))


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
@pytest.mark.parametrize("reduction", ["mul", "max", "min"])
def test_scatter_that_reduces(op: str, reduction: str) -> None:
    x, updates = normal(3, 5), normal(4, 5)
    x[0, 0] = x[1, 3] = updates[1, 1] = updates[3, 3] = 0
    indices = ints(0, 2, 0, 1).reshape(4, 1)
    if op == "ScatterElements":
        indices = np.random.default_rng(2).integers(0, 3, (4, 5))
    node = helper.make_node(op, ["x", "i", "u"], ["y"], reduction=reduction)
    check_by_differences([node], {"x": x, "u": updates}, {"i": indices})


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("dynamic", [(), (0,)], ids=["static", "dynamic"])
def test_cumulative_product_through_zeros(exclusive: int, reverse: int, dynamic: tuple) -> None:
    x = normal(2, 4, 3)
    x[0, 1, 0] = x[1, 0, 1] = x[1, 2, 1] = 0
    node = helper.make_node("CumProd", ["x", "a"], ["y"], exclusive=exclusive, reverse=reverse)
    check_by_differences([node], {"x": x}, {"a": np.asarray(1)}, dynamic=dynamic, opset=26)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinant(size: int) -> None:
    node, x = helper.make_node("Det", ["x"], ["y"]), normal(2, 3, size, size)
    x[0, 0, -1] = x[0, 0, 0]  # a singular one
    check_by_differences([node], {"x": x}, dynamic=(0,))


@pytest.mark.parametrize("parts", [1, 2], ids=["real", "complex"])
@pytest.mark.parametrize("length", [None, 4, 7], ids=["as long", "cut", "filled"])
@pytest.mark.parametrize("kind", [{}, {"inverse": 1}, {"onesided": 1}], ids=str)
@pytest.mark.parametrize("opset", [18, 20])
def test_fourier_transform(parts: int, length: int | None, kind: dict, opset: int) -> None:
    if parts == 2 and "onesided" in kind:
        pytest.skip("half a spectrum is of real numbers")
    constants = {} if length is None else {"length": np.asarray(length)}
    operands, attributes = ["x", *constants], dict(kind)
    if opset < 20:
        attributes["axis"] = 1
    else:
        operands = ["x", "length" if constants else "", "axis"]
        constants["axis"] = np.asarray(1)
    node = helper.make_node("DFT", operands, ["y"], **attributes)
    check_by_differences(
        [node], {"x": normal(2, 6, 3, parts)}, constants, opset=opset, dynamic=(0,)
    )

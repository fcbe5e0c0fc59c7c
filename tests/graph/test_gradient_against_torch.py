"""Rules against torch autograd in float64, over random geometries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional as F

from tests.graph.oracle import check_by_torch, network

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def real(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a.astype(np.float32).astype(np.float64))


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def check(node: Any, function: Any, x: np.ndarray, constants: Any = None, **options: Any) -> None:
    model = network([node], {"x": x}, constants, **options)
    check_by_torch(model, function, {"x": x})


@st.composite
def geometry(draw: Any, rank: int) -> dict[str, Any]:
    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    return {
        "kernel": each(1, 4),
        "strides": each(1, 3) if draw(st.booleans()) else [draw(st.integers(1, 3))] * rank,
        "dilations": each(1, 2) if draw(st.booleans()) else [1] * rank,
        "begin": each(0, 3),
        "end": each(0, 3),
        "sizes": each(5, 9) if rank < 3 else each(5, 6),
        "group": draw(st.sampled_from([1, 2, 4])),
        "dynamic": draw(st.sampled_from([(), (0,), (0, *range(2, rank + 2))])),
    }


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(rank: int) -> None:
    @SETTINGS
    @given(geometry(rank), st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    def holds(geo: dict[str, Any], auto: str) -> None:
        dynamic = geo["dynamic"]
        begin, end = geo["begin"], geo["end"]
        if auto != "NOTSET":  # onnxruntime refuses dilations there
            geo = {**geo, "dilations": [1] * rank}
        extent = [(k - 1) * d + 1 for k, d in zip(geo["kernel"], geo["dilations"], strict=True)]
        if auto == "VALID":
            begin = end = [0] * rank
        elif auto != "NOTSET":
            total = [
                max((-(-n // s) - 1) * s + e - n, 0)
                for n, s, e in zip(geo["sizes"], geo["strides"], extent, strict=True)
            ]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        lengths = zip(geo["sizes"], begin, end, extent, strict=True)
        assume(all(n + b + e >= x for n, b, e, x in lengths))
        weight = normal(8, 4 // geo["group"], *geo["kernel"])
        attributes: dict[str, Any] = {"strides": geo["strides"], "group": geo["group"]}
        attributes["dilations"] = geo["dilations"]
        attributes |= {"pads": [*begin, *end]} if auto == "NOTSET" else {"auto_pad": auto}
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)

        def function(x: torch.Tensor) -> torch.Tensor:
            around = [n for pair in zip(begin, end, strict=True) for n in pair]
            turned = [n for i in reversed(range(rank)) for n in around[2 * i : 2 * i + 2]]
            conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
            return conv(
                F.pad(x, turned),
                real(weight),
                stride=geo["strides"],
                dilation=geo["dilations"],
                groups=geo["group"],
            )

        check(node, function, normal(2, 4, *geo["sizes"]), {"w": weight}, dynamic=dynamic)

    holds()


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    ("kernel", "pad", "stride"),
    [(3, 1, 2), (7, 3, 2), (1, 0, 2), (5, 2, 4), (2, 0, 2), (4, 1, 2), (3, 0, 3)],
)
@pytest.mark.parametrize("group", [1, 4])
def test_conv_as_networks_have_it(
    size: int, kernel: int, pad: int, stride: int, group: int
) -> None:
    weight = normal(8, 4 // group, kernel, kernel)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=[pad] * 4, group=group
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, real(weight), stride=stride, padding=pad, groups=group)

    check(node, function, normal(2, 4, size, size), {"w": weight}, dynamic=(0,))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose(rank: int) -> None:
    @SETTINGS
    @given(geometry(rank), st.data())
    def holds(geo: dict[str, Any], data: st.DataObject) -> None:
        extra = [
            data.draw(st.integers(0, max(s, d) - 1 if s > 1 else 0))
            for s, d in zip(geo["strides"], geo["dilations"], strict=True)
        ]
        assume(all(e < s for e, s in zip(extra, geo["strides"], strict=True)) or not any(extra))
        extents = zip(geo["begin"], geo["kernel"], geo["dilations"], strict=True)
        pad = [min(b, (k - 1) * d) for b, k, d in extents]
        weight = normal(4, 4 // geo["group"], *geo["kernel"])
        node = helper.make_node(
            "ConvTranspose", ["x", "w"], ["y"], strides=geo["strides"], pads=pad * 2,
            dilations=geo["dilations"], group=geo["group"], output_padding=extra,
        )  # fmt: skip

        def function(x: torch.Tensor) -> torch.Tensor:
            conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
            return conv(
                x, real(weight), stride=geo["strides"], padding=pad, output_padding=extra,
                dilation=geo["dilations"], groups=geo["group"],
            )  # fmt: skip

        x = normal(2, 4, *geo["sizes"])
        check(node, function, x, {"w": weight}, dynamic=geo["dynamic"])

    holds()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pooling(rank: int, kind: str) -> None:
    @SETTINGS
    @given(geometry(rank), st.booleans(), st.booleans())
    def holds(geo: dict[str, Any], ceil: bool, counted: bool) -> None:
        pad = [min(b, k // 2) for b, k in zip(geo["begin"], geo["kernel"], strict=True)]
        attributes: dict[str, Any] = {
            "kernel_shape": geo["kernel"], "strides": geo["strides"], "pads": pad * 2,
            "ceil_mode": int(ceil),
        }  # fmt: skip
        if kind == "Average" and ceil:  # inference and runtime differ on these, see prepare
            ends = zip(geo["sizes"], pad, geo["kernel"], geo["strides"], strict=True)
            idle = {-(-(n + 2 * p - k) // s) * s >= n + p for n, p, k, s in ends}
            assume(len(idle) == 1)
        if kind == "Max":
            geo = {**geo, "dilations": [1] * rank} if ceil else geo
            attributes["dilations"] = geo["dilations"]
        else:
            attributes["count_include_pad"] = int(counted)
        node = helper.make_node(f"{kind}Pool", ["x"], ["y"], **attributes)

        def function(x: torch.Tensor) -> torch.Tensor:
            common = {"stride": geo["strides"], "padding": pad, "ceil_mode": ceil}
            if kind == "Max":
                pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
                return pool(x, geo["kernel"], dilation=geo["dilations"], **common)
            pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
            return pool(x, geo["kernel"], count_include_pad=counted, **common)

        check(node, function, normal(2, 3, *geo["sizes"]), dynamic=geo["dynamic"])

    holds()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("sizes", "kernel", "stride", "pad", "dilation"),
    [
        ((7, 7), 3, 2, 1, 1),
        ((8, 9), 2, 2, 0, 1),
        ((9, 8), 3, 1, 1, 1),
        ((11, 10), 3, 2, 0, 2),
        ((10, 12), 2, 3, 0, 1),
        ((7, 9), 4, 2, 1, 1),
        ((12,), 3, 2, 1, 1),
        ((5, 6, 7), 3, 2, 1, 1),
    ],
)
def test_max_pool_gives_ties_to_the_first(
    sizes: tuple, kernel: int, stride: int, pad: int, dilation: int, ceil: bool
) -> None:
    if ceil and dilation > 1:
        pytest.skip("shape inference counts another number of windows")
    rank = len(sizes)
    x = RNG.integers(0, 2, size=(2, 3, *sizes)).astype(np.float64)
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[kernel] * rank, strides=[stride] * rank,
        pads=[pad] * 2 * rank, dilations=[dilation] * rank, ceil_mode=int(ceil),
    )  # fmt: skip
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    check(node, lambda x: pool(x, kernel, stride, pad, dilation, ceil), x)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (3, 2, 0), (3, 1, 1), (4, 3, 0)])
def test_max_pool_behind_a_convolution(kernel: int, stride: int, pad: int) -> None:
    """Where the runtime keeps channels in blocks, with as many ties as a ReLU makes."""
    x, w = normal(2, 3, 13, 14), normal(16, 3, 3, 3)
    window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["y"], **window),
    ]
    model = network(nodes, {"x": x}, {"w": w}, dynamic=(0,))

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.conv2d(x, real(w)).relu(), kernel, stride, pad)

    check_by_torch(model, function, {"x": x})


def test_extrema_share_ties() -> None:
    x = RNG.integers(0, 3, size=(3, 4, 5)).astype(np.float64)
    z = RNG.integers(0, 3, size=(4, 5)).astype(np.float64)
    model = network([helper.make_node("Max", ["x", "z"], ["y"])], {"x": x, "z": z})
    check_by_torch(model, torch.maximum, {"x": x, "z": z})
    node = helper.make_node("ReduceMax", ["x", "a"], ["y"], keepdims=0)
    check(node, lambda x: x.amax((0, 2)), x, {"a": ints(0, 2)})
    node = helper.make_node("GlobalMaxPool", ["x"], ["y"])
    check(node, lambda x: x.amax((2, 3), keepdim=True), x[None], dynamic=(0, 2))


def test_derivatives_at_the_kinks_are_those_of_torch() -> None:
    x = np.asarray([[-3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 7.0]])
    for op, function in [
        ("Relu", F.relu), ("LeakyRelu", F.leaky_relu), ("Elu", F.elu), ("Selu", F.selu),
        ("Celu", F.celu), ("Abs", torch.abs), ("Softsign", F.softsign), ("HardSwish", F.hardswish),
    ]:  # fmt: skip
        check(helper.make_node(op, ["x"], ["y"]), function, x)
    bounds = {"a": np.asarray(-1.0), "b": np.asarray(3.0)}
    node = helper.make_node("Clip", ["x", "a", "b"], ["y"])
    check(node, lambda x: torch.clamp(x, -1, 3), x, bounds)
    check(node, F.relu6, x, {"a": np.asarray(0.0), "b": np.asarray(6.0)})
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=1 / 6, beta=0.5)
    check(node, F.hardsigmoid, x)


INTERPOLATIONS = [
    ("linear", "half_pixel", {}), ("linear", "align_corners", {}), ("linear", "asymmetric", {}),
    ("linear", "pytorch_half_pixel", {}), ("cubic", "half_pixel", {"cubic_coeff_a": -0.75}),
    ("cubic", "align_corners", {"cubic_coeff_a": -0.75}),
    ("nearest", "asymmetric", {"nearest_mode": "floor"}),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "where", "attributes"), INTERPOLATIONS)
@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.5, 2.0), (0.5, 0.6), (1.0, 3.0)])
@pytest.mark.parametrize("by", ["scales", "sizes"])
@pytest.mark.parametrize("dynamic", [(0,), (0, 2, 3)], ids=["static", "dynamic"])
def test_resize(mode: str, where: str, attributes: Any, scale: Any, by: str, dynamic: Any) -> None:
    x = normal(2, 3, 6, 5)
    sizes = [int(np.floor(n * s)) for n, s in zip((6, 5), scale, strict=True)]
    constants: dict[str, np.ndarray]
    if by == "scales":
        constants = {"s": np.asarray([1, 1, *scale], np.float32)}
        inputs = ["x", "", "s"]
    else:
        constants, inputs = {"s": ints(2, 3, *sizes)}, ["x", "", "", "s"]
    node = helper.make_node(
        "Resize", inputs, ["y"], mode=mode, coordinate_transformation_mode=where, **attributes
    )
    model = network([node], {"x": x}, None, opset=18, dynamic=dynamic)
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    aligned = None if mode == "nearest" else where == "align_corners"
    if where == "asymmetric" and mode == "linear":
        pytest.skip("torch has no such mode; nearest covers asymmetric")

    def function(x: torch.Tensor) -> torch.Tensor:
        if by == "scales" and not aligned:
            return F.interpolate(
                x,
                scale_factor=scale,
                mode=kind,
                align_corners=aligned,
                recompute_scale_factor=False,
            )
        return F.interpolate(x, size=sizes, mode=kind, align_corners=aligned)

    model.graph.initializer.append(_tensor(constants["s"]))
    check_by_torch(model, function, {"x": x})


def _tensor(a: np.ndarray) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(a, "s")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
    check(node, lambda x: F.gelu(x, approximate=approximate), normal(3, 5) * 2, opset=20)


def test_erf() -> None:
    check(helper.make_node("Erf", ["x"], ["y"]), torch.erf, normal(3, 5) * 2)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset: int) -> None:
    scale, bias = normal(2 if opset == 18 else 6), normal(2 if opset == 18 else 6)
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)

    def function(x: torch.Tensor) -> torch.Tensor:
        by_channel = [real(v).repeat_interleave(6 // len(v)) for v in (scale, bias)]
        return F.group_norm(x, 2, *by_channel)

    check(node, function, normal(2, 6, 3, 4), {"s": scale, "b": bias}, opset=opset, dynamic=(0,))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    node = helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.5, beta=0.6, bias=1.5)
    check(
        node,
        lambda x: F.local_response_norm(x, size, 0.5, 0.6, 1.5),
        normal(2, 6, 3, 4),
        dynamic=(0, 2),
    )


def test_l1_and_moment_normalization() -> None:
    node = helper.make_node("LpNormalization", ["x"], ["y"], axis=1, p=1)
    check(node, lambda x: F.normalize(x, p=1, dim=1), normal(2, 5, 3))
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"])

    def standard(x: torch.Tensor) -> torch.Tensor:
        axes = (0, 2, 3)
        return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True, correction=0)

    check(node, standard, normal(2, 3, 4, 5))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pooling(p: int) -> None:
    node = helper.make_node("GlobalLpPool", ["x"], ["y"], p=p)
    check(node, lambda x: x.norm(p=p, dim=(2, 3), keepdim=True), normal(2, 3, 4, 5))


def test_scattered_extrema_share_ties() -> None:
    x = RNG.integers(0, 2, (3, 4)).astype(np.float64)
    updates = RNG.integers(0, 2, (5, 4)).astype(np.float64)
    index = RNG.integers(0, 3, (5, 4))
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], reduction="max")
    model = network([node], {"x": x, "u": updates}, {"i": index})

    def function(x: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        return x.scatter_reduce(0, torch.tensor(index), updates, "amax")

    check_by_torch(model, function, {"x": x, "u": updates})


def test_pad_that_cuts() -> None:
    node = helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"])
    constants = {"pads": ints(-1, 2, 1, -2), "axes": ints(1, 2)}
    check(node, lambda x: F.pad(x, (2, -2, -1, 1)), normal(2, 4, 5), constants)


def test_mean_of_tensors() -> None:
    x, z = normal(2, 3), normal(3)
    model = network([helper.make_node("Mean", ["x", "z"], ["y"])], {"x": x, "z": z})
    check_by_torch(model, lambda x, z: (x + z) / 2, {"x": x, "z": z})


def test_mean_fed_by_old_opsets_is_brought_up() -> None:
    """Opset 11: Squeeze, ReduceMean and Softmax with attributes, Softmax over flattened axes."""
    x = normal(2, 3, 4)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2], keepdims=1),
        helper.make_node("Squeeze", ["m"], ["s"], axes=[2]),
        helper.make_node("Softmax", ["s"], ["y"], axis=1),
    ]
    model = network(nodes, {"x": x}, opset=11)
    check_by_torch(model, lambda x: x.mean(2).softmax(1), {"x": x})


def test_quantisation_lets_cotangents_straight_through() -> None:
    x = normal(3, 4) * 3
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = {"s": np.asarray(0.02), "z": np.asarray(10, np.int8)}
    model = network(nodes, {"x": x}, constants)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x.float(), 0.02, 10, -128, 127).double()

    check_by_torch(model, function, {"x": x})

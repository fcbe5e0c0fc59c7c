"""Operators that read a picture at computed places, against slow obvious readings of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional as F

from tests.graph.oracle import check_as_run, check_by_torch, network

RNG = np.random.default_rng(5)
SETTINGS = settings(max_examples=12, deadline=None, derandomize=True)
DYNAMIC = pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=["static", "dynamic"])


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def real(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a.astype(np.float32).astype(np.float64))


def check(
    node: onnx.NodeProto,
    function: Callable[..., torch.Tensor],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> None:
    check_as_run(network([node], inputs, constants, **options), function, inputs)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [False, True])
@DYNAMIC
def test_grid_sampling(mode: str, padding: str, aligned: bool, dynamic: tuple) -> None:
    inputs = {"x": normal(2, 3, 5, 6), "grid": RNG.uniform(-1.4, 1.4, (2, 3, 4, 2))}
    node = helper.make_node(
        "GridSample", ["x", "grid"], ["y"], mode=mode, padding_mode=padding,
        align_corners=int(aligned),
    )  # fmt: skip

    def function(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, grid, mode, padding, aligned)

    check(node, function, inputs, dynamic=dynamic)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sampling_of_volumes(mode: str) -> None:
    inputs = {"x": normal(2, 3, 4, 5, 6), "grid": RNG.uniform(-1.3, 1.3, (2, 3, 4, 2, 3))}
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode=mode)

    def function(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        kind = "bilinear" if mode == "linear" else mode
        return F.grid_sample(x, grid, kind, align_corners=False)

    check(node, function, inputs, opset=20)


def test_grid_sampling_of_one_pixel_with_aligned_corners() -> None:
    inputs = {"x": normal(1, 2, 1, 5), "grid": RNG.uniform(-0.9, 0.9, (1, 3, 3, 2))}
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], align_corners=1)
    check(node, lambda x, grid: F.grid_sample(x, grid, align_corners=True), inputs)


def test_spatial_transformer_network() -> None:
    """Where it looks follows from what it sees: a grid computed from the picture."""
    x, w = normal(2, 3, 8, 8), normal(6, 3) * 0.3
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["theta"], transB=1),
        helper.make_node("Reshape", ["theta", "shape"], ["t"]),
        helper.make_node("AffineGrid", ["t", "size"], ["grid"]),
        helper.make_node("GridSample", ["x", "grid"], ["y"]),
    ]
    constants = {
        "w": w, "b": np.asarray([0.9, 0.1, 0.05, -0.1, 0.8, -0.07]),
        "shape": np.asarray([-1, 2, 3]), "size": np.asarray([2, 3, 6, 5]),
    }  # fmt: skip
    model = network(nodes, {"x": x}, constants, opset=20)

    def function(x: torch.Tensor) -> torch.Tensor:
        theta = x.mean((2, 3)) @ real(w).T + real(constants["b"])
        grid = F.affine_grid(theta.reshape(-1, 2, 3), [2, 3, 6, 5], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    check_by_torch(model, function, {"x": x})


def pixel(picture: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Interpolate (C, H, W) at one place, zero outside."""
    _, height, width = picture.shape
    top, left = int(torch.floor(y)), int(torch.floor(x))
    total = torch.zeros(len(picture), dtype=picture.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
                total = total + weight * picture[:, row, column]
    return total


@st.composite
def deformations(draw: Any) -> dict[str, Any]:
    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(2)]

    return {
        "kernel_shape": pair(1, 3), "strides": pair(1, 2), "dilations": pair(1, 2),
        "pads": [*pair(0, 1), *pair(0, 1)], "group": draw(st.sampled_from([1, 2])),
        "offset_group": draw(st.sampled_from([1, 2])),
    }  # fmt: skip


@SETTINGS
@given(deformations(), st.booleans(), st.sampled_from([(), (0, 2, 3)]))
def test_deformable_convolution(geo: dict[str, Any], masked: bool, dynamic: tuple) -> None:
    (kh, kw), (sh, sw), (dh, dw) = (geo[n] for n in ("kernel_shape", "strides", "dilations"))
    pads, group, parts = geo["pads"], geo["group"], geo["offset_group"]
    oh = (5 + pads[0] + pads[2] - (kh - 1) * dh - 1) // sh + 1
    ow = (5 + pads[1] + pads[3] - (kw - 1) * dw - 1) // sw + 1
    w, b = normal(2, 4 // group, kh, kw), normal(2)
    inputs = {"x": normal(1, 4, 5, 5), "offset": normal(1, parts * kh * kw * 2, oh, ow)}
    if masked:
        inputs["mask"] = RNG.random((1, parts * kh * kw, oh, ow))
    node = helper.make_node(
        "DeformConv", ["x", "w", "offset", "b", *(["mask"] if masked else [])], ["y"], **geo
    )

    def function(x: torch.Tensor, offset: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
        offset = offset.reshape(parts, kh, kw, 2, oh, ow)
        rows = []
        for i in range(oh):
            for j in range(ow):
                taps = []
                for k in range(kh * kw):
                    p, q = divmod(k, kw)
                    values = []
                    for part in range(parts):
                        dy, dx = offset[part, p, q, :, i, j]
                        y = i * sh - pads[0] + p * dh + dy
                        place = y, j * sw - pads[1] + q * dw + dx
                        channels = x[0].reshape(parts, 4 // parts, 5, 5)[part]
                        scale = (
                            mask[0].reshape(parts, kh * kw, oh, ow)[part, k, i, j] if mask else 1
                        )
                        values.append(scale * pixel(channels, *place))
                    taps.append(torch.cat(values))
                window = torch.stack(taps, 1).reshape(1, 4, kh, kw)
                rows.append(F.conv2d(window, real(w), real(b), groups=group).reshape(2))
        return torch.stack(rows, 1).reshape(1, 2, oh, ow)

    check(node, function, inputs, {"w": w, "b": b}, opset=19, dynamic=dynamic)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("where", ["half_pixel", "output_half_pixel"])
@DYNAMIC
def test_regions_of_interest(ratio: int, where: str, dynamic: tuple) -> None:
    """By the picture and by the regions' corners."""
    h, w, scale = 2, 3, 0.8
    corners = [[0.3, 0.2, 7.1, 7.0], [2.1, 1.2, 6.3, 9.3], [4.4, 4.2, 9.7, 8.1], [1, 1, 1.5, 1.6]]
    inputs, images = {"x": normal(2, 3, 8, 9), "rois": np.asarray(corners)}, [1, 0, 1, 0]
    node = helper.make_node(
        "RoiAlign", ["x", "rois", "images"], ["y"], output_height=h, output_width=w,
        sampling_ratio=ratio, spatial_scale=scale, coordinate_transformation_mode=where,
    )  # fmt: skip

    def sample(x: torch.Tensor, y: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        _, height, width = x.shape
        if not (-1 <= y <= height and -1 <= column <= width):
            return torch.zeros(len(x), dtype=x.dtype)
        return pixel(x, y.clamp(0, height - 1), column.clamp(0, width - 1))

    def function(x: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        cells = []
        for image, (x1, y1, x2, y2) in zip(images, rois * scale, strict=True):
            tall, wide = y2 - y1, x2 - x1
            if where == "half_pixel":
                y1, x1 = y1 - 0.5, x1 - 0.5
            else:
                tall, wide = tall.clamp(min=1), wide.clamp(min=1)
            bh, bw = tall / h, wide / w
            ny, nx = (ratio or int(torch.ceil(size)) for size in (bh, bw))
            for i in range(h):
                for j in range(w):
                    samples = [
                        sample(x[image], y1 + bh * (i + (a + 0.5) / ny),
                               x1 + bw * (j + (b + 0.5) / nx))
                        for a in range(ny) for b in range(nx)
                    ]  # fmt: skip
                    cells.append(torch.stack(samples).mean(0))
        return torch.stack(cells).reshape(len(rois), h, w, -1).permute(0, 3, 1, 2)

    check(node, function, inputs, {"images": np.asarray(images)}, dynamic=dynamic)


@DYNAMIC
def test_columns_to_image(dynamic: tuple) -> None:
    node = helper.make_node(
        "Col2Im",
        ["x", "image", "block"],
        ["y"],
        strides=[2, 1],
        dilations=[1, 2],
        pads=[1, 0, 1, 1],
    )
    constants = {"image": np.asarray([6, 7]), "block": np.asarray([3, 2])}

    def function(x: torch.Tensor) -> torch.Tensor:
        padded = F.fold(x, (8, 8), (3, 2), dilation=(1, 2), stride=(2, 1))
        return padded[:, :, 1:7, :7]

    x = normal(2, 12, 3 * 6)
    check(node, function, {"x": x}, constants, dynamic=dynamic[:1])

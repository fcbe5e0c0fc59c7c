"""What a gradient should be, found without the rules: torch in float64, or differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pellucid.graph.gradient import Gradient, differentiate
from pellucid.graph.runtime import session

TOLERANCE = 1e-4
onnxruntime.set_default_logger_severity(3)


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    dtype: Any = np.float32,
    opset: int = 18,
    dynamic: Sequence[int] = (),
) -> onnx.ModelProto:
    """Build a model; floats become `dtype`, the given axes of every input unknown."""

    def cast(a: np.ndarray) -> np.ndarray:
        return a.astype(dtype) if a.dtype.kind == "f" else a

    ports = []
    for name, value in inputs.items():
        shape = [f"{name}{i}" if i in dynamic else n for i, n in enumerate(value.shape)]
        kind = helper.np_dtype_to_tensor_dtype(cast(value).dtype)
        ports.append(helper.make_tensor_value_info(name, kind, shape))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outs = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    tensors = [numpy_helper.from_array(cast(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", ports, outs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def pulled_back(
    model: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    cotangents: Mapping[str, np.ndarray],
    wrt: Sequence[str],
    **options: Any,
) -> dict[str, np.ndarray]:
    """Differentiate and execute, both in one graph and as two halves, which must agree."""
    gradient = differentiate(model, list(cotangents), list(wrt), **options)
    feeds = {n: single(a) for n, a in inputs.items()}
    seeds = {f"seed/{n}": single(a) for n, a in cotangents.items()}
    names = [f"grad/{name}" for name in wrt]
    whole = opened(gradient).run(names, {**feeds, **seeds})
    halves = in_halves(gradient, feeds, seeds)
    for name, a, b in zip(wrt, whole, halves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
    return dict(zip(wrt, whole, strict=True))


def opened(gradient: Gradient) -> Any:
    import onnx_ir as ir

    return session(ir.to_proto(gradient.model), threads=1)


def in_halves(gradient: Gradient, feeds: Any, seeds: Any) -> list[np.ndarray]:
    import onnx_ir as ir

    forward, backward = (session(ir.to_proto(m), threads=1) for m in gradient.split())
    outputs = [o.name for o in forward.get_outputs()]
    values = dict(zip(outputs, forward.run(outputs, feeds) if outputs else [], strict=True))
    taken = {i.name for i in backward.get_inputs()}
    given = {n: a for n, a in {**values, **seeds}.items() if n in taken}
    return backward.run([f"grad/{n}" for n in gradient.wrt], given)


def single(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32) if a.dtype == np.float64 else a


def check_by_differences(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    wrt: Sequence[str] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    dynamic: Sequence[int] = (),
    seed: int = 0,
) -> None:
    """Compare directional derivatives with central differences in float64."""
    rng = np.random.default_rng(seed)
    inputs = {
        n: single(a).astype(np.float64) if a.dtype.kind == "f" else a for n, a in inputs.items()
    }
    exact = ReferenceEvaluator(
        network(nodes, inputs, constants, outputs, dtype=np.float64, opset=opset)
    )
    values = exact.run(None, dict(inputs))
    cotangents = {n: rng.normal(size=v.shape) for n, v in zip(outputs, values, strict=True)}
    wanted = list(wrt or (n for n, a in inputs.items() if a.dtype.kind == "f"))
    model = network(nodes, inputs, constants, outputs, opset=opset, dynamic=dynamic)
    found = pulled_back(model, inputs, cotangents, wanted)

    def along(name: str, step: np.ndarray) -> float:
        moved = exact.run(None, {**inputs, name: inputs[name] + step})
        return sum(float(np.sum(cotangents[n] * v)) for n, v in zip(outputs, moved, strict=True))

    for name in wanted:
        assert found[name].shape == inputs[name].shape
        size = float(np.linalg.norm(found[name]))
        for _ in range(3):
            v = rng.normal(size=inputs[name].shape)
            numeric = (along(name, 1e-6 * v) - along(name, -1e-6 * v)) / 2e-6
            error = abs(float(np.sum(found[name] * v)) - numeric)
            assert error <= TOLERANCE * size + 1e-5, (name, error, size, numeric)


def check_by_torch(
    model: onnx.ModelProto,
    function: Callable[..., torch.Tensor],
    inputs: Mapping[str, np.ndarray],
    output: str = "y",
    seed: int = 0,
    **options: Any,
) -> None:
    """Compare whole gradients with torch autograd in float64."""
    tensors = [
        torch.tensor(single(a).astype(np.float64), requires_grad=True) for a in inputs.values()
    ]
    y = function(*tensors)
    g = np.random.default_rng(seed).normal(size=tuple(y.shape))
    expected = torch.autograd.grad(y, tensors, torch.tensor(single(g).astype(np.float64)))
    found = pulled_back(model, inputs, {output: g}, list(inputs), **options)
    for name, want in zip(inputs, expected, strict=True):
        close(found[name], want.numpy(), TOLERANCE)


def check_as_run(
    model: onnx.ModelProto,
    function: Callable[..., torch.Tensor],
    inputs: Mapping[str, np.ndarray],
    **options: Any,
) -> None:
    """Also compare the value that onnxruntime computes: it tells that the function is its own."""
    (y,) = session(model).run(["y"], {n: single(a) for n, a in inputs.items()})
    exact = (torch.tensor(single(a).astype(np.float64)) for a in inputs.values())
    close(y, function(*exact).detach().numpy(), TOLERANCE)
    check_by_torch(model, function, inputs, **options)


def close(found: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Relative to the largest element."""
    assert found.shape == want.shape
    scale = max(float(np.abs(want).max(initial=0)), 1e-6)
    error = float(np.abs(found - want).max(initial=0)) / scale
    assert error <= tolerance, error


__all__ = [
    "TensorProto",
    "check_as_run",
    "check_by_differences",
    "check_by_torch",
    "close",
    "network",
    "pulled_back",
]

"""Whole networks, as torch exports them, against torch autograd and slow rectifier hooks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pellucid.errors import InputError, LayerError, UnsupportedError
from pellucid.graph.gradient import differentiate
from pellucid.graph.pullback import OnnxPullback
from tests.graph.oracle import close, network, pulled_back

TOLERANCE = 1e-5


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.short(x))


def simple() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), Residual(16, 16, 1), Residual(16, 32, 2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), Squeeze(16),
        nn.Conv2d(16, 32, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.out(y)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 17, 12))
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "simple": (simple, ["3", "2", "4", "7"]),
    "resnet": (resnet, ["0", "3", "4.conv2", "5", "5.conv1"]),
    "depthwise": (depthwise, ["0", "3", "6", "7"]),
    "vit": (ViT, ["patch", "blocks.0", "blocks.1.mlp.0", "blocks.1.norm2"]),
}


@cache
def exported(name: str, optimize: bool) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(3)
    module = NETWORKS[name][0]().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (x,), dynamo=True, optimize=optimize, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["input"],
            output_names=["output"],
        )  # fmt: skip
    logging.disable(logging.NOTSET)
    return module, program.model_proto


def tensor_of(model: onnx.ModelProto, layer: str) -> str:
    """Name of the tensor that a layer puts out: the last that carries its scope."""
    found = ""
    for node in model.graph.node:
        props = {p.key: p.value for p in node.metadata_props}
        scopes = [s.strip(" '\"[]") for s in props.get("pkg.torch.onnx.name_scopes", "").split(",")]
        if layer in scopes and node.op_type not in ("Constant", "Shape"):
            found = node.output[0]
    assert found, layer
    return found


def slow_gradients(
    module: nn.Module, x: torch.Tensor, layers: list[str], seed: torch.Tensor, relu: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients by torch, with every rectifier replaced by one that follows the rule."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _m, _i, out: kept.__setitem__(name, out)

    hooks = [module.get_submodule(n).register_forward_hook(keep(n)) for n in layers]
    try:
        with rectifiers(relu):
            x = x.clone().requires_grad_()
            y = module(x)
            gradients = torch.autograd.grad(y, [x, *(kept[n] for n in layers)], seed)
    finally:
        for hook in hooks:
            hook.remove()
    return y, list(gradients)


class rectifiers:  # noqa: N801
    """Replace torch's rectifiers for a while by ones with another backward pass."""

    def __init__(self, relu: str) -> None:
        self.relu = relu
        self.own = {n: getattr(F, n) for n in ("relu", "relu6", "gelu", "hardtanh")}

    def __enter__(self) -> None:
        if self.relu != "exact":
            for name, own in self.own.items():
                setattr(F, name, self.replaced(own))

    def __exit__(self, *_: object) -> None:
        for name, own in self.own.items():
            setattr(F, name, own)

    def replaced(self, own: Any) -> Any:
        return lambda x, *args, **_: self.ruled(lambda v: own(v, *args)).apply(x)

    def ruled(self, own: Any) -> Any:
        relu = self.relu

        class Rectifier(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                ctx.save_for_backward(x)
                return own(x)

            @staticmethod
            def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
                (x,) = ctx.saved_tensors
                g = g.clamp(min=0)
                if relu == "deconv":
                    return g
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    return torch.autograd.grad(own(x), x, g)[0]

        return Rectifier


@pytest.mark.parametrize("relu", ["exact", "guided", "deconv"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_gradients_equal_those_of_torch(name: str, relu: Any) -> None:
    module, model = exported(name, False)
    layers = NETWORKS[name][1]
    tensors = [tensor_of(model, layer) for layer in layers]
    x, seed = torch.randn(3, 3, 16, 16), torch.randn(3, 5)
    y, expected = slow_gradients(module, x, layers, seed, relu)
    pullback = OnnxPullback(model, ["output"], ["input", *tensors], relu=relu)
    values, found = pullback({"input": x.numpy()}, lambda _: {"output": seed.numpy()})
    close(values["output"], y.detach().numpy(), TOLERANCE)
    for layer, tensor, want in zip(["input", *layers], ["input", *tensors], expected, strict=True):
        try:
            close(found[tensor], want.numpy(), TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"{layer}: {error}") from error


@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_export_gives_the_same_gradients(name: str) -> None:
    module, model = exported(name, True)
    x, seed = torch.randn(3, 3, 16, 16), torch.randn(3, 5)
    _, (expected,) = slow_gradients(module, x, [], seed, "exact")
    pullback = OnnxPullback(model, ["output"], ["input"])
    _, found = pullback({"input": x.numpy()}, lambda _: {"output": seed.numpy()})
    close(found["input"], expected.numpy(), 1e-4)


def test_residuals_are_few() -> None:
    """A ReLU keeps its output alone, a convolution nothing, a pooling its input and output."""
    _, model = exported("simple", True)
    pullback = OnnxPullback(model, ["output"], ["input"])
    producers = {out: n.op_type for n in model.graph.node for out in n.output}
    kept = sorted(producers.get(n) or n.split("/")[-1] for n in pullback.residuals)
    assert [k for k in kept if not k.startswith(("Shape", "ReduceProd"))] == [
        "MaxPool",
        "Relu",
        "Relu",
        "Relu",
    ]
    assert not set(pullback.residuals) & {i.name for i in model.graph.initializer}


def test_derivative_at_zero_and_six_in_the_layout_of_convolutions() -> None:
    helper = onnx.helper
    x = np.asarray([-1, 0, 1e-38, 5.9999995, 6, 7], np.float32).reshape(1, 1, 2, 3)
    x = np.repeat(x, 16, 1)
    eye = np.eye(16, dtype=np.float32)[:, :, None, None]
    for op, bounds, inside in (
        ("Relu", [], [0, 0, 1, 1, 1, 1]),
        ("Clip", ["z", "s"], [0, 0, 1, 1, 0, 0]),
    ):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"]),
            helper.make_node(op, ["h", *bounds], ["y"]),
        ]
        constants = {"w": eye, "z": np.float32(0), "s": np.float32(6)}
        model = network(nodes, {"x": x}, {n: np.asarray(a) for n, a in constants.items()})
        found = pulled_back(model, {"x": x}, {"y": np.ones_like(x)}, ["x"])["x"]
        np.testing.assert_array_equal(found[0, 5].reshape(-1), inside)


def test_tensor_that_the_seed_does_not_depend_on_gets_zeros() -> None:
    _, model = exported("simple", True)
    later = next(n.output[0] for n in model.graph.node if n.op_type == "Gemm")
    earlier = next(n.output[0] for n in model.graph.node if n.op_type == "Relu")
    pullback = OnnxPullback(model, [earlier], [later, earlier, "input"])
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    values, found = pullback({"input": x}, lambda v: {earlier: v[earlier]})
    assert found[later].shape == (2, 16)
    assert not found[later].any()
    np.testing.assert_array_equal(found[earlier], values[earlier])


def test_seed_at_several_layers_adds_up() -> None:
    module, model = exported("resnet", False)
    inner = tensor_of(model, "4")
    x, g = torch.randn(2, 3, 16, 16), torch.randn(2, 5)
    pullback = OnnxPullback(model, ["output", inner], ["input"])
    _, found = pullback({"input": x.numpy()}, lambda v: {"output": g.numpy(), inner: v[inner]})
    x.requires_grad_()
    h = module[:5](x)
    (want,) = torch.autograd.grad((module[5:](h) * g).sum() + (h * h).sum() / 2, x)
    close(found["input"], want.numpy(), TOLERANCE)


def test_missing_cotangent_counts_as_zero() -> None:
    _, model = exported("simple", False)
    inner = tensor_of(model, "3")
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    both = OnnxPullback(model, ["output", inner], ["input"])
    one = OnnxPullback(model, ["output"], ["input"])
    g = np.ones((2, 5), np.float32)
    a = both({"input": x}, lambda _: {"output": g})[1]["input"]
    b = one({"input": x}, lambda _: {"output": g})[1]["input"]
    close(a, b, 1e-6)


def test_unknown_names_are_errors_that_offer_others() -> None:
    _, model = exported("simple", False)
    with pytest.raises(LayerError, match=r"no tensor 'inpt'.*'input'"):
        differentiate(model, ["output"], ["inpt"])
    with pytest.raises(LayerError, match="is a parameter"):
        differentiate(model, ["output"], ["0.weight"])
    with pytest.raises(InputError, match="is no rule: exact, guided"):
        differentiate(model, ["output"], ["input"], relu="bent")  # type: ignore[arg-type]


def test_operator_without_a_rule_names_itself_and_the_nearest_layer() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Unique", ["a"], ["b"], name="second"),
        helper.make_node("Exp", ["b"], ["y"], name="third"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (2, 3, 3)), ("y", (2,)))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(UnsupportedError, match=r"Unique \(node 'second'.*nearest layer.*'third'"):
        differentiate(model, ["y"], ["x"])
    assert differentiate(model, ["y"], ["b"]).wrt == ("b",)


CONVOLVED = "a = Relu(x) b = Conv(x, a)"  # by weights that follow from the input


@pytest.mark.parametrize(
    ("body", "nearest"),
    [
        (f"{CONVOLVED} c = Exp(b) y = Neg(c)", "tensor 'c'"),
        (f"{CONVOLVED} c = If (o) <then_branch = then () => (float[2,1,1,1] d) {{ d = Exp(b) }}, "
         "else_branch = other () => (float[2,1,1,1] e) { e = Neg(b) }> y = Sin(c)", "tensor 'c'"),
        (f"c = If (o) <then_branch = then () => (float[2,1,1,1] d) {{ {CONVOLVED} d = Exp(b) }}, "
         "else_branch = other () => (float[2,1,1,1] e) { e = Conv(x, x) }> y = Sin(c)",
         "tensor 'y'"),
    ],
)  # fmt: skip
def test_a_rule_that_refuses_names_the_nearest_layer_too(body: str, nearest: str) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        graph (float[2,1,3,3] x, bool o) => (float[2,2,1,1] y) {{ {body} }}
    """)
    said = rf"^Conv \(node .* computes its weights from the input.*nearest layer .*{nearest}"
    with pytest.raises(UnsupportedError, match=said) as error:
        differentiate(model, ["y"], ["x"])
    assert str(error.value).count("nearest layer") == 1
    name = nearest.split("'")[1]
    assert differentiate(model, ["y"], [name]).wrt == (name,)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(5)

"""The PyTorch adapter: right values and gradients, and a model left as it was."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pellucid
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import InputError, LayerError, UnsupportedError


def one_hot(index: int = 1, name: str = "logits"):
    def seed(values):
        cotangent = np.zeros_like(values[name])
        cotangent[:, index] = 1
        return {name: cotangent}

    return seed


class Spelled(nn.Module):
    """A network with one rectifier, written in a given way."""

    def __init__(self, rectify):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = rectify if isinstance(rectify, nn.Module) else nn.Identity()
        self.rectify = None if isinstance(rectify, nn.Module) else rectify
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        if self.rectify is not None:
            returned = self.rectify(x)
            x = x if returned is None else returned
        return self.head(x.mean((2, 3)))


def ignored_in_place(x):
    F.relu_(x)


def zero_below(x):
    x = x.clone()
    x[x < 0] = 0
    return x


def set_below(x):
    x = x.clone()
    x[x <= 0] = x.new_zeros(())
    return x


def scattered(x):
    return x.clone().masked_scatter_(x < 0, torch.zeros_like(x))


def clamped_in_place(x):
    x.clamp_min_(0)


class Rectified(torch.autograd.Function):
    """A ReLU with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * (x > 0)


SPELLINGS = {
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(min=0),
    "clip": lambda x: torch.clip(x, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "in place, result ignored": ignored_in_place,
    "times its sign": lambda x: x * (x > 0),
    "times its sign, in place": lambda x: x.mul_((x >= 0).float()),
    "times a cast sign": lambda x: (x > 0).to(x.dtype) * x,
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where, the other way round": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "where as a method": lambda x: x.where(~(x < 0), torch.zeros(())),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "masked_fill_": lambda x: x.masked_fill_(x.lt(0), 0),
    "index assignment": zero_below,
    "max": lambda x: torch.max(x, torch.zeros_like(x)),
    "jit": torch.jit.script(nn.ReLU()),
    "mean with its magnitude": lambda x: (x + x.abs()) / 2,
    "half of the sum with its magnitude": lambda x: 0.5 * (x + torch.abs(x)),
    "half and half its magnitude": lambda x: x / 2 + x.abs().mul_(0.5),
    "magnitude as a root": lambda x: (x + torch.sqrt(x * x)) / 2,
    "negative minimum": lambda x: -torch.minimum(-x, torch.zeros(())),
    "negative clamp": lambda x: -(-x).clamp(max=0),
    "less its minimum": lambda x: x - x.clamp(max=0),
    "with the other rectifier": lambda x: x + F.relu(-x),
    "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "threshold_": lambda x: F.threshold_(x.clone(), 0.0, 0.0),
    "clamp_min_": clamped_in_place,
    "clamp to a tensor": lambda x: x.clamp(min=torch.zeros(())),
    "clamp to infinity": lambda x: x.clamp(0, float("inf")),
    "fmax": lambda x: torch.fmax(x, torch.zeros(())),
    "comparison of zeros": lambda x: torch.where(torch.zeros_like(x) < x, x, torch.zeros_like(x)),
    "where, by gt": lambda x: x.where(torch.gt(x, torch.zeros_like(x)), 0),
    "times its sign, clamped": lambda x: x * torch.sign(x).clamp(min=0),
    "times its sign and one": lambda x: x * (torch.sign(x) + 1) / 2,
    "mask of the detached": lambda x: x * (x.detach() > 0),
    "mask of the data": lambda x: x.masked_fill(x.data < 0, 0),
    "index assignment of a tensor": set_below,
    "masked_scatter_": scattered,
    "autograd.Function": Rectified.apply,
    "vmap": lambda x: torch.func.vmap(F.relu)(x),
}


@pytest.mark.parametrize("rule", ["guided", "deconv"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rectifier_rule_holds_however_relu_is_written(spelling, rule):
    network = Spelled(SPELLINGS[spelling]).eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    gradient = TorchAdapter(network).pullback(x, one_hot(), ["input"], relu=rule)[1]["input"]

    # By hand: the head's cotangent at the rectifier, rectified, back through norm and conv.
    z = network.norm(network.conv(torch.from_numpy(x)))
    cotangent = (network.head.weight[1] / (6 * 6))[None, :, None, None].expand_as(z).clamp(min=0)
    if rule == "guided":
        cotangent = cotangent * (z > 0)
    scale = network.norm.weight / torch.sqrt(network.norm.running_var + network.norm.eps)
    expected = F.conv_transpose2d(cotangent * scale[None, :, None, None], network.conv.weight)
    np.testing.assert_allclose(gradient, expected.detach().numpy(), rtol=1e-5, atol=1e-7)
    exact = TorchAdapter(network).pullback(x, one_hot(), ["input"])[1]["input"]
    assert np.abs(exact - gradient).max() > 1e-3 * np.abs(exact).max()


CHOICES = {
    "leaky by maximum": (lambda z: torch.maximum(z, 0.1 * z), lambda z: F.leaky_relu(z, 0.1)),
    "leaky by sum": (lambda z: F.relu(z) - 0.1 * F.relu(-z), lambda z: F.leaky_relu(z, 0.1)),
    "leaky by magnitude": (lambda z: 0.55 * z + 0.45 * z.abs(), lambda z: F.leaky_relu(z, 0.1)),
    "elu by sum": (lambda z: F.relu(z) - F.relu(1 - torch.exp(z)), F.elu),
    "elu by clamps": (lambda z: z.clamp(min=0) + torch.expm1(z.clamp(max=0)), F.elu),
    "silu": (lambda z: z * torch.sigmoid(z), F.silu),
    "silu by quotient": (lambda z: z / (1 + torch.exp(-z)), F.silu),
    "gelu": (lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)), F.gelu),
    "mish": (lambda z: z * torch.tanh(F.softplus(z)), F.mish),
    "hard swish": (lambda z: z * F.relu6(z + 3) / 6, F.hardswish),
    "relu6 by minimum": (lambda z: torch.minimum(F.relu(z), torch.tensor(6.0)), F.relu6),
    "relu6 by maximum": (lambda z: z.clamp(max=6.0).clamp(min=0), F.relu6),
    "cut below": (lambda z: z.clamp(min=-1), None),
    "softplus": (F.softplus, None),
    "magnitude": (lambda z: z.abs(), None),
    "square": (lambda z: z * z, None),
    "sum with something else": (lambda z: (z + z.flip(-1).abs()) / 2, None),
    "leaky": (lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: F.leaky_relu(z, 0.1)),
    "leaky, two masks": (lambda z: torch.where(z < 0, 0.1 * z, z), lambda z: F.leaky_relu(z, 0.1)),
    "elu": (lambda z: torch.where(z > 0, z, torch.expm1(z)), F.elu),
    "of two tensors": (lambda z: torch.where(z > 0, z, z.flip(-1)), None),
    "not at zero": (lambda z: torch.where(z > 0, z, 1.0), None),
    "a mask of something else": (lambda z: z * (z.flip(-1) > 0), None),
    "what is below": (lambda z: z * (z < 0), None),
}


def test_which_layers_are_fetched_does_not_change_the_gradient_at_a_layer():
    """Layers are handed on as copies, which are no part of the rectifier before them."""
    network = nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Conv2d(3, 2, 3)).eval()
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    model = TorchAdapter(network)

    def gradient(fetch):
        seed = lambda values: {"output": np.ones_like(values["output"])}  # noqa: E731
        return model.pullback(x, seed, ["0.1"], ["output", *fetch], "guided")[1]["0.1"]

    alone, among = gradient([]), gradient(["0", "0.0", "1"])
    assert (alone < 0).any()
    np.testing.assert_array_equal(among, alone)


def test_a_swish_with_a_learned_slope_is_a_rectifier():
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = nn.Parameter(torch.tensor(1.5))

        def forward(self, x):
            z = x * 1.0
            return z * torch.sigmoid(self.beta * z)

    x, cotangent = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 4)).astype(np.float32)
    model = TorchAdapter(Swish())
    found = model.pullback(x, lambda _: {"output": cotangent}, ["input"], ["output"], "deconv")
    np.testing.assert_allclose(found[1]["input"], np.maximum(cotangent, 0), atol=1e-6)


@pytest.mark.parametrize("rule", ["guided", "deconv"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_by_its_own_sign_is_a_rectifier_where_it_is_one(name, rule):
    """What is no rectifier keeps its derivative."""

    class Chosen(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x * 1.0)

    written, known = CHOICES[name]
    rng = np.random.default_rng(0)
    x, cotangent = (rng.standard_normal((2, 3, 4, 4)).astype(np.float32) for _ in range(2))

    def gradient(function, rule):
        model = TorchAdapter(Chosen(function))
        return model.pullback(x, lambda _: {"output": cotangent}, ["input"], ["output"], rule)[1]

    expected = gradient(known or written, rule if known else "exact")
    np.testing.assert_allclose(gradient(written, rule)["input"], expected["input"], atol=1e-6)


@pytest.mark.parametrize("wrt", [["norm"], ["norm", "conv", "input"], ["act"]])
def test_in_place_relu_leaves_the_fetched_value_and_gradient_before_it(wrt):
    in_place, plain = Spelled(nn.ReLU(inplace=True)).eval(), Spelled(nn.ReLU()).eval()
    x = np.random.default_rng(1).standard_normal((2, 2, 8, 8)).astype(np.float32)
    ours = TorchAdapter(in_place).pullback(x, one_hot(), wrt, fetch=["logits", "norm", "act"])
    theirs = TorchAdapter(plain).pullback(x, one_hot(), wrt, fetch=["logits", "norm", "act"])
    assert ours[0]["norm"].min() < 0 <= ours[0]["act"].min()
    for name, value in theirs[0].items():
        np.testing.assert_array_equal(ours[0][name], value)
    for name, gradient in theirs[1].items():
        np.testing.assert_array_equal(ours[1][name], gradient)


def test_in_place_module_whose_result_is_ignored_is_differentiated():
    class Ignoring(Spelled):
        def forward(self, x):
            x = self.conv(x)
            self.act(x)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    ours = TorchAdapter(Ignoring(nn.ReLU(inplace=True)))
    x = np.random.default_rng(2).standard_normal((1, 2, 6, 6)).astype(np.float32)
    for wrt in (["act"], ["act", "conv"]):
        values, gradients = ours.pullback(x, one_hot(), wrt, fetch=["act", "logits"])
        expected = ours.module.head.weight[1].detach().numpy() / 16
        np.testing.assert_allclose(gradients["act"][0, :, 0, 0], expected, rtol=1e-6)
        assert values["act"].min() >= 0
    assert (gradients["conv"][values["act"] == 0] == 0).all()


def snapshot(module: nn.Module):
    return {
        "training": [m.training for m in module.modules()],
        "inplace": [getattr(m, "inplace", None) for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "state": {name: t.clone() for name, t in module.state_dict().items()},
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in ("training", "inplace", "hooks", "requires_grad"):
        assert before[key] == after[key], key
    for one, other in zip(before["grad"], after["grad"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails):
    network = Spelled(nn.ReLU(inplace=True)).train()
    network.norm.eval()
    network.conv.weight.requires_grad_(False)
    network(torch.randn(2, 2, 8, 8)).sum().backward()
    random_state, before = torch.get_rng_state(), snapshot(network)
    model = TorchAdapter(network)
    x = np.zeros((1, 2, 8, 8), np.float32)

    def failing(values):
        raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            model.pullback(x, failing, ["conv"], relu="guided")
    else:
        model.pullback(x, one_hot(), ["input", "act"], relu="guided")
        model.run(x, ["norm"])
    assert_same(before, snapshot(network))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_batch_of_the_caller_is_not_written_to():
    class Greedy(nn.Module):
        def forward(self, x):
            return x.mul_(2).flatten(1)

    x = np.ones((1, 1, 2, 2), np.float32)
    model = TorchAdapter(Greedy())
    assert model.run(x)["output"].tolist() == [[2, 2, 2, 2]]
    gradient = model.pullback(x, lambda v: {"logits": np.ones_like(v["logits"])}, ["input"])[1]
    assert gradient["input"].tolist() == [[[[2, 2], [2, 2]]]]
    assert (x == 1).all()


def test_compiled_and_data_parallel_wrappers_are_looked_through():
    network = Spelled(nn.ReLU()).eval()
    x = np.random.default_rng(3).standard_normal((2, 2, 8, 8)).astype(np.float32)
    expected = TorchAdapter(network).pullback(x, one_hot(), ["act"], fetch=["logits", "conv"])
    wrapped = nn.Sequential()
    wrapped.add_module("inner", torch.compile(network, backend="eager"))
    for model, prefix in (
        (TorchAdapter(torch.compile(network, backend="eager")), ""),
        (TorchAdapter(nn.DataParallel(network)), ""),
        (TorchAdapter(wrapped), "inner."),
    ):
        fetch = ["logits", prefix + "conv"]
        values, gradients = model.pullback(x, one_hot(), [prefix + "act"], fetch=fetch)
        np.testing.assert_array_equal(values[prefix + "conv"], expected[0]["conv"])
        np.testing.assert_array_equal(gradients[prefix + "act"], expected[1]["act"])
        assert prefix + "conv" in [layer.name for layer in model.layers]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_float32_near_the_float32_numbers(dtype):
    x = np.random.default_rng(4).standard_normal((2, 2, 8, 8)).astype(np.float32)
    expected = TorchAdapter(Spelled(nn.ReLU())).pullback(x, one_hot(), ["act"])
    values, gradients = TorchAdapter(Spelled(nn.ReLU()).to(dtype)).pullback(x, one_hot(), ["act"])
    assert values["logits"].dtype == gradients["act"].dtype == np.float32
    np.testing.assert_allclose(values["logits"], expected[0]["logits"], atol=2e-2)
    np.testing.assert_allclose(gradients["act"], expected[1]["act"], atol=1e-3)


def test_gradients_stop_at_the_earliest_wanted_layer():
    """Nothing before the wanted layer is recorded, so what is not differentiable there is no
    obstacle."""

    class Undifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            raise AssertionError("the backward pass went past the wanted layer")

    class Network(Spelled):
        def forward(self, x):
            return self.head(self.act(self.norm(Undifferentiable.apply(self.conv(x)))).mean((2, 3)))

    model = TorchAdapter(Network(nn.ReLU()))
    gradients = model.pullback(np.ones((1, 2, 6, 6), np.float32), one_hot(), ["norm"])[1]
    assert gradients["norm"].any()


def test_layer_beside_the_path_has_zero_gradient():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            self.unused(x)
            return self.used(x).mean((2, 3))

    gradients = TorchAdapter(Two()).pullback(
        np.ones((1, 1, 4, 4), np.float32), one_hot(), ["used", "unused"]
    )[1]
    assert gradients["used"].any()
    assert gradients["unused"].shape == (1, 2, 4, 4)
    assert not gradients["unused"].any()


@pytest.mark.parametrize("ending", ["module", "functional", "sigmoid_", "log_softmax"])
def test_logits_are_the_values_before_a_final_activation(ending):
    class Ending(Spelled):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.softmax = nn.Softmax(dim=-1)

        def forward(self, x):
            z = super().forward(x)
            if ending == "module":
                return self.softmax(z)
            if ending == "sigmoid_":
                return z.sigmoid_()
            if ending == "log_softmax":
                return F.log_softmax(z, dim=1)
            return torch.softmax(z, 1).unsqueeze(1).squeeze(1)

    x = np.random.default_rng(5).standard_normal((2, 2, 8, 8)).astype(np.float32)
    ours, plain = TorchAdapter(Ending()), TorchAdapter(Spelled(nn.ReLU()))
    values, gradients = ours.pullback(x, one_hot(), ["act", "logits"], fetch=["logits", "output"])
    expected, theirs = plain.pullback(x, one_hot(), ["act"])
    np.testing.assert_array_equal(values["logits"], expected["logits"])
    np.testing.assert_array_equal(gradients["act"], theirs["act"])
    assert gradients["logits"][:, 1].tolist() == [1, 1]
    assert ours.outputs[0].activation == {"sigmoid_": "sigmoid", "log_softmax": "log_softmax"}.get(
        ending, "softmax"
    )
    np.testing.assert_array_equal(ours.run(x, ["logits"])["logits"], values["logits"])


def test_unknown_layers_and_wrong_batches_say_what_there_is():
    model = TorchAdapter(Spelled(nn.ReLU()))
    x = np.zeros((1, 2, 8, 8), np.float32)
    with pytest.raises(LayerError, match="Did you mean 'conv'"):
        model.run(x, ["conv1"])
    with pytest.raises(LayerError, match="called once in the forward pass"):
        model.run(x, ["conv:2"])
    with pytest.raises(InputError, match=r"takes shape \(N, 2, any, any\)"):
        model.run(x[:, :1])
    with pytest.raises(InputError, match="is no rule: exact, guided"):
        model.pullback(x, one_hot(), ["conv"], relu="soft")
    with pytest.raises(InputError, match="was not fetched"):
        model.pullback(x, lambda v: {"conv": v["logits"]}, ["conv"])
    with pytest.raises(InputError, match=r"has shape \(1, 1\), the layer \(1, 3\)"):
        model.pullback(x, lambda v: {"logits": v["logits"][:, :1]}, ["conv"])


def test_network_that_autograd_cannot_follow_is_one_clear_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            y = torch.sigmoid(self.conv(x))
            z = y * y
            y.zero_()
            return z.mean((2, 3))

    with pytest.raises(UnsupportedError, match="autograd cannot go back"):
        TorchAdapter(Broken()).pullback(np.ones((1, 1, 4, 4), np.float32), one_hot(), ["conv"])


@pytest.mark.parametrize("way", ["recomputed", "reentrant", "in_parts"])
def test_checkpointed_parts_are_differentiated_as_if_they_were_not(way):
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Spelled(nn.ReLU())

        def forward(self, x):
            if way == "in_parts":
                return checkpoint_sequential([self.inner, nn.Identity()], 2, x, use_reentrant=True)
            return checkpoint(self.inner, x, use_reentrant=way == "reentrant")

    saving, x = Saving(), np.random.default_rng(7).standard_normal((2, 2, 8, 8), np.float32)
    for rule in ("exact", "guided"):
        _, ours = TorchAdapter(saving).pullback(x, one_hot(), ["inner.act", "input"], relu=rule)
        _, plain = TorchAdapter(saving.inner).pullback(x, one_hot(), ["act", "input"], relu=rule)
        np.testing.assert_array_equal(ours["inner.act"], plain["act"])
        np.testing.assert_array_equal(ours["input"], plain["input"])
    calls = []
    saving.inner.conv.register_forward_hook(lambda *_: calls.append(1))
    saving(torch.from_numpy(x).requires_grad_())[:, 0].sum().backward()
    assert len(calls) == 2  # it recomputes again for everybody else


def test_modules_that_cannot_compute_yet_say_what_to_do():
    with pytest.raises(UnsupportedError, match=r"1.weight has no shape yet: call the network"):
        TorchAdapter(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
    with pytest.raises(UnsupportedError, match="is on the meta device and holds no numbers"):
        TorchAdapter(Spelled(nn.ReLU()).to("meta"))
    program = torch.export.export(Spelled(nn.ReLU()), (torch.zeros(1, 2, 8, 8),))
    with pytest.raises(UnsupportedError, match="give the ExportedProgram itself"):
        TorchAdapter(program.module())


def test_fixed_batch_is_cut_padded_and_joined():
    network = Spelled(nn.ReLU())
    x = np.random.default_rng(6).standard_normal((5, 2, 8, 8)).astype(np.float32)
    whole, cut = TorchAdapter(network), TorchAdapter(network)
    cut.fixed_batch = 2
    np.testing.assert_allclose(cut.run(x)["output"], whole.run(x)["output"], rtol=1e-5, atol=1e-6)
    ours, theirs = (m.pullback(x, one_hot(2), ["act"])[1]["act"] for m in (cut, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_fingerprint_follows_the_weights():
    network = Spelled(nn.ReLU())
    model = TorchAdapter(network)
    first = model.fingerprint
    assert first == TorchAdapter(Spelled(nn.ReLU())).fingerprint
    with torch.no_grad():
        network.head.bias.add_(1)
    assert model.fingerprint != first


def test_explaining_a_live_module_does_not_keep_it_alive():
    network = Spelled(nn.ReLU())
    x = np.random.default_rng(7).standard_normal((1, 2, 8, 8)).astype(np.float32)
    pellucid.explain(network, x)
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_calls():
    import resource

    model = TorchAdapter(Spelled(nn.ReLU(inplace=True)))
    x = np.random.default_rng(8).standard_normal((4, 2, 32, 32)).astype(np.float32)
    peaks = []
    for count in (100, 1000):
        for _ in range(count):
            model.pullback(x, one_hot(), ["norm", "input"], relu="guided")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 8 * 1024  # kB; one leaked activation a call would be 14 MB


def test_the_input_of_a_network_that_lists_a_dense_layer_first_is_an_image():
    class Aligning(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Linear(3 * 64, 6)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            theta = self.place(F.adaptive_avg_pool2d(x, 8).flatten(1)).view(-1, 2, 3)
            grid = F.affine_grid(theta, x.shape, align_corners=False)
            return self.conv(F.grid_sample(x, grid, align_corners=False)).mean((2, 3))

    model = TorchAdapter(Aligning(), preprocess={"size": (40, 48)})
    assert model.inputs[0].shape == (None, 3, None, None)
    assert model.layer("conv").shape == (None, 4, 38, 46)
    generator = nn.Sequential(nn.Linear(5, 48), nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 1, 3))
    assert TorchAdapter(generator).inputs[0].shape == (None, 5)

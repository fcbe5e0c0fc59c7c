"""DeepLIFT and LRP: completeness, closed forms, slow versions, captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.errors import InputError, MethodError, UnsupportedError
from pellucid.methods.objective import Objective
from pellucid.methods.propagation import deep_lift, lrp
from tests.twins import TWINS

captum = pytest.importorskip("captum.attr")


def exported(network, x):
    """Open a small network as an ONNX file."""
    from io import BytesIO

    import onnx

    file = BytesIO()
    program = torch.onnx.export(
        network.eval(), (torch.from_numpy(x),), dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    program.save(file)
    return OnnxAdapter(onnx.load_from_string(file.getvalue()))


@pytest.mark.parametrize("name", ["residual", "separable", "fused", "two_by_two", "vit", "conv3d"])
def test_deeplift_is_complete_in_every_network(name):
    twin = TWINS[name]
    model, x = OnnxAdapter(twin.onnx()), twin.inputs(2)
    objective = Objective(model, [1, 3])
    found = deep_lift(model, x, objective, baseline="blurred")
    size = np.abs(found).reshape(2, -1).sum(axis=1)
    assert (np.abs(objective.details["convergence_delta"]) <= 1e-5 * size).all()
    before, _ = objective.score(model.run((_blurred(x[0]), *x[1:]), objective.fetch))
    np.testing.assert_allclose(objective.details["baseline_score"], before, rtol=1e-4, atol=1e-5)


def _blurred(x):
    from pellucid.methods.baselines import baselines_of

    return baselines_of(x, "blurred")[0]


class Activations(nn.Module):
    """Every kind of function, product and normalisation that has a rule."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.activation(self.first(x)).amax((2, 3)))


def unit_length(x):
    return F.normalize(x, dim=1)


def maxout(x):
    one, other = x.chunk(2, 1)
    return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], 1)


def least_with(x):
    """Compare with a constant, and with what has been summed up over other axes."""
    mean = torch.einsum("nchw->nch", x)[..., None]
    return torch.minimum(torch.maximum(x, torch.full((4, 1, 1), 0.1)), mean)


@pytest.mark.parametrize(
    "activation",
    [
        nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.ELU(), nn.Softplus(), nn.Mish(),
        nn.Tanh(), nn.Sigmoid(), nn.Softmax(1), nn.LayerNorm(6), nn.PReLU(), nn.ReLU6(),
        nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), unit_length, maxout, least_with,
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__) + getattr(one, "approximate", ""),
)  # fmt: skip
def test_deeplift_is_complete_for_every_activation(activation):
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    model = exported(Activations(activation), x)
    objective = Objective(model, 1)
    found = deep_lift(model, x, objective, baseline="mean")
    assert np.abs(objective.details["convergence_delta"]).max() <= 2e-5 * np.abs(found).sum()


def test_deeplift_of_one_rectifier_by_hand():
    # relu(2 x - 1) at 3 against 0: from 0 to 5, so the multiplier is 5/6 of the weight 2.
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        network[0].weight.fill_(2)
        network[0].bias.fill_(-1)
    x = np.array([[3.0], [0.25]], np.float32)
    model = exported(network, x)
    found = deep_lift(model, x, Objective(model, 0))
    np.testing.assert_allclose(found, [[5.0], [0.0]], atol=1e-6)


class Plain(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(8 * 4 * 4, 10, bias=bias), nn.ReLU(), nn.Linear(10, 4, bias=bias)
        )

    def forward(self, x):
        return self.head(self.features(x).flatten(1))  # captum's LRP knows no nn.Flatten


def plain_network(bias=True):
    torch.manual_seed(0)
    return Plain(bias).eval()


X = np.random.default_rng(0).standard_normal((3, 3, 14, 14)).astype(np.float32)
TARGETS = [2, 0, 3]


@pytest.mark.filterwarnings("ignore:Setting")
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_deeplift_equals_captum_and_stays_complete_where_captum_does_not(pool):
    network = plain_network()
    network.features[2] = pool
    model, origin = exported(network, X), X[::-1].copy()
    objective = Objective(model, TARGETS)
    found = deep_lift(model, X, objective, baseline=origin)
    tensor, other = torch.from_numpy(X).requires_grad_(), torch.from_numpy(origin)
    theirs, delta = captum.DeepLift(network).attribute(
        tensor, other, target=torch.tensor(TARGETS), return_convergence_delta=True
    )
    theirs, scale = theirs.detach().numpy(), np.abs(theirs.detach().numpy()).max()
    if isinstance(pool, nn.AvgPool2d):
        np.testing.assert_allclose(found, theirs, atol=1e-5 * scale)
    else:  # captum's rule for maxima loses part of the difference, unless one image always wins
        assert np.abs(delta.detach().numpy()).max() > scale
    assert np.abs(objective.details["convergence_delta"]).max() < 1e-5 * scale


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z-plus"])
def test_lrp_equals_captum(rule):
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

    rules = {"epsilon": EpsilonRule, "gamma": GammaRule, "z-plus": Alpha1_Beta0_Rule}
    biased = rule == "epsilon"  # captum's other rules treat biases in ways of their own
    # and its gamma favours positive weights where the result is negative, too
    targets = [1] * 3 if rule == "gamma" else TARGETS
    network, x = plain_network(biased), np.abs(X)  # and its z-plus takes inputs as positive
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = rules[rule]()
    model = exported(plain_network(biased), x)
    found = lrp(model, x, Objective(model, targets), rule=rule)
    tensor = torch.from_numpy(x).requires_grad_()
    theirs = captum.LRP(network).attribute(tensor, target=torch.tensor(targets)).detach().numpy()
    scale = np.abs(theirs).max()
    assert scale > 0
    np.testing.assert_allclose(found, theirs, atol=1e-5 * scale)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z-plus", "composite"])
def test_without_biases_relevance_is_kept(rule):
    model = exported(plain_network(bias=False), X)
    objective = Objective(model)  # a score with nothing for it has nothing for z-plus to share
    found = lrp(model, X, objective, rule=rule)
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), objective.scores, rtol=1e-3, atol=1e-5)


def test_z_plus_equals_its_definition_term_by_term():
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(s).astype(np.float32) for s in ((5, 4), (3, 5)))
    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.from_numpy(first))
        network[2].weight.copy_(torch.from_numpy(second))
    x = rng.standard_normal((1, 4)).astype(np.float32)
    model = exported(network, x)
    objective = Objective(model, 1)
    found = lrp(model, x, objective, rule="z-plus")

    def shared(a, weights, relevance):
        terms = np.maximum(a[None] * weights, 0)  # (outputs, inputs): those that push up
        total = terms.sum(axis=1, keepdims=True)
        return (terms / np.where(total > 0, total, 1) * relevance[:, None]).sum(axis=0)

    hidden = np.maximum(first @ x[0], 0)
    at_output = np.array([0, (second @ hidden)[1], 0])
    expected = shared(x[0], first, shared(hidden, second, at_output))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)


def test_batch_normalisation_is_merged_whichever_way_it_is_written():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    merged = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())

    def network(*start):
        torch.manual_seed(1)
        return nn.Sequential(*start, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(4, 2))  # fmt: skip

    maps = [lrp(m, X, Objective(m, 1), rule="gamma")
            for m in (exported(network(conv, norm), X), exported(network(merged), X))]  # fmt: skip
    np.testing.assert_allclose(*maps, atol=1e-5 * np.abs(maps[0]).max())


class Affine(nn.Module):
    """The same network with what follows its layers in them, or in operators of their own."""

    def __init__(self, apart):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.dense = nn.Linear(6, 3)
        self.apart = apart
        self.vectors = [1 + torch.rand(size) for size in (4, 4, 6, 6, 3, 3)]

    def forward(self, x):
        a, b, c, d, e, f = self.vectors
        if self.apart:
            x = (self.conv(x) * a[:, None, None]).transpose(1, 3) - b
            x = self.up(x.transpose(1, 3).relu())
            x = (x / c[:, None, None] + d[:, None, None]).relu().mean((2, 3))
            return (f - self.dense(x)[:, None] * e).squeeze(1)
        x = F.conv2d(x, self.conv.weight * a[:, None, None, None], self.conv.bias * a - b).relu()
        weight = (self.up.weight.reshape(2, 2, 3, 2, 2) / c.reshape(2, 1, 3, 1, 1)).reshape(
            4, 3, 2, 2
        )
        x = F.conv_transpose2d(x, weight, self.up.bias / c + d, groups=2).relu().mean((2, 3))
        return F.linear(x, -self.dense.weight * e[:, None], f - self.dense.bias * e)


def assert_spelling_is_no_matter(network, rule):
    apart, within = (exported(network(one), X) for one in (True, False))
    objectives = Objective(apart, 1), Objective(within, 1)
    maps = [lrp(m, X, o, rule=rule) for m, o in zip((apart, within), objectives, strict=True)]
    np.testing.assert_allclose(objectives[0].scores, objectives[1].scores, rtol=1e-5)
    np.testing.assert_allclose(*maps, atol=1e-5 * np.abs(maps[0]).max())
    assert np.abs(maps[0]).max() > 0


@pytest.mark.parametrize("rule", ["gamma", "z-plus", "composite"])
def test_what_follows_a_layer_counts_as_part_of_it(rule):
    assert_spelling_is_no_matter(Affine, rule)


class Heads(nn.Module):
    """A dense layer whose bias is added to its heads, or is its own."""

    def __init__(self, apart):
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.head = nn.Linear(14, 6, bias=False), nn.Linear(2, 3)
        self.head.weight.data.abs_()  # so that z-plus has something to share
        self.bias, self.factor, self.apart = torch.randn(6), 1 + torch.rand(2), apart

    def forward(self, x):  # (N, 3, 14, 14)
        if self.apart:
            heads = self.dense(x).unflatten(-1, (2, 3)) + self.bias.reshape(2, 3)
            heads = heads.permute(0, 4, 1, 2, 3) * self.factor  # (N, 3, 3, 14, 2): heads last
        else:
            factor = self.factor.repeat_interleave(3)
            dense = F.linear(x, self.dense.weight * factor[:, None], self.bias * factor)
            heads = dense.unflatten(-1, (2, 3)).permute(0, 4, 1, 2, 3)
        return self.head(heads.relu().mean((1, 2, 3)))


@pytest.mark.parametrize("rule", ["gamma", "z-plus"])
def test_what_is_added_to_heads_counts_as_part_of_the_layer_before_them(rule):
    assert_spelling_is_no_matter(Heads, rule)


@pytest.mark.parametrize("rule", ["z-plus", "composite"])
def test_branches_that_cancel_make_no_relevance_of_their_own(rule):
    """Block after block, shares in proportion to the terms would grow beyond the score."""

    class Cancelling(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(6))

        def forward(self, x):
            for layer in self.layers:
                x = 10 * layer(x) - 0.9 * (10 * layer(x)).roll(1, 2)
            return x.relu().mean((2, 3))

    model = exported(Cancelling(), np.abs(X))
    objective = Objective(model)
    found = lrp(model, np.abs(X), objective, rule=rule)
    assert (objective.scores > 0).all()
    assert found.min() >= 0
    assert (found.sum(axis=(1, 2, 3)) <= objective.scores * 1.001).all()
    assert (found.sum(axis=(1, 2, 3)) > 0).all()


def test_gamma_favours_the_terms_of_the_results_sign():
    weight = torch.tensor([[2.0, -1.0, -3.0]])
    network = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(weight)
    x = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0]], np.float32)  # -2; 2 + 1 + 3
    model = exported(network, x)
    found = lrp(model, x, Objective(model, 0), rule="gamma")
    falling = np.array([2.0, -1.25, -3.75]) * -2 / (-2 - 0.25 * 4)
    np.testing.assert_allclose(found, [falling, [2.0, 1.0, 3.0]], rtol=1e-5)


def test_what_has_another_reader_stays_apart():
    """A factor behind a fork is not the layer's; the other branch would get it too."""

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.dense = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.dense((y * 3 + y.relu()).mean((2, 3)))

    model = exported(Forked(), X)
    objective = Objective(model, 1)
    lrp(model, X, objective, rule="epsilon")
    expected = Forked().eval()(torch.from_numpy(X))[:, 1].detach().numpy()
    np.testing.assert_allclose(objective.scores, expected, rtol=1e-5)


def test_pytorch_models_go_through_their_onnx_form_and_stay_what_they_are():
    (x,) = TWINS["residual"].inputs(2)
    network = TWINS["residual"].torch()
    (one, _) = pellucid.explain(network, x, "deeplift", target=2)
    assert one.provenance["engine"] == "onnx"
    assert abs(one.details["convergence_delta"]) < 1e-5 * np.abs(one.attribution).sum()
    with pytest.raises(MethodError, match="deeplift runs on the ONNX engine alone"):
        pellucid.explain(network, x, "deeplift", target=2, engine="native")
    with pytest.raises(UnsupportedError, match="a rule of the ONNX engine"):
        deep_lift(TorchAdapter(network), x, Objective(TorchAdapter(network), 1))


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_lrp_takes_the_deviation_of_a_normalisation_for_a_constant(norm):
    torch.manual_seed(0)
    network = nn.Sequential(norm, nn.Flatten(), nn.Linear(36, 2, bias=False))
    nn.init.normal_(norm.weight)
    nn.init.zeros_(norm.bias)
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
    model = exported(network, x)
    found = lrp(model, x, Objective(model, 0), rule="epsilon")
    groups = torch.from_numpy(x).reshape(2, 2 if isinstance(norm, nn.GroupNorm) else 4, -1)
    deviation = groups.var(2, correction=0, keepdim=True).add(norm.eps).sqrt()

    def linear(x):
        grouped = x.reshape(groups.shape)
        standard = ((grouped - grouped.mean(2, keepdim=True)) / deviation).reshape(x.shape)
        return network[1:](standard * norm.weight[:, None, None])[:, 0].sum()

    gradient = torch.autograd.functional.jacobian(linear, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, gradient * x, rtol=1e-4, atol=1e-6)


SAMPLED = """
    n = Shape <start = 0, end = 1> (c) size = Concat <axis = 0> (n, grid)
    all = Expand (places, size) f = GridSample (c, all)"""
FILTERED = """
    u = Unsqueeze (c, last) q = DFT (u, , axis) p = Mul (q, filter)
    b = DFT <inverse = 1> (p, , axis) s = Slice (b, zero, one, last) f = Squeeze (s, last)"""
WHOLE = {
    "LRN": "f = LRN <size = 3, alpha = 0.5, beta = 0.7, bias = 2.0> (c)",
    "GridSample": SAMPLED,
    "DFT": FILTERED,
}


def whole(body):
    """A network without biases around one function of pictures."""
    import onnx.parser

    rng = np.random.default_rng(4)
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 20]>
        graph (float[N,3,4,4] x) => (float[N,3] y)
            <int64[1] last = {{-1}}, int64 axis = {{2}}, int64[1] zero = {{0}},
             int64[1] one = {{1}}, int64[1] two = {{2}},
             int64[3] grid = {{4, 4, 2}}>
        {{ c = Conv (x, w) {body} r = Relu (f) t = Flatten (r) y = MatMul (t, d) }}
    """)
    for name, array in (
        ("w", rng.standard_normal((3, 3, 1, 1))),
        ("d", rng.standard_normal((48, 3))),
        ("places", rng.uniform(-1, 1, (1, 4, 4, 2))),
        ("filter", rng.standard_normal((4, 1, 2))),
    ):
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    return OnnxAdapter(model), rng.standard_normal((2, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("name", WHOLE)
def test_pictures_that_are_sampled_filtered_or_normalised_locally_keep_all_relevance(name):
    model, x = whole(WHOLE[name])
    objective = Objective(model, [1, 2])
    found = deep_lift(model, x, objective, baseline="blurred")
    size = np.abs(found).sum()
    assert np.abs(objective.details["convergence_delta"]).max() <= 1e-5 * size
    found = lrp(model, x, objective, rule="epsilon")
    sums = found.reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(sums, objective.scores, atol=2e-5 * np.abs(found).sum())


def test_places_that_follow_from_the_image_are_constants_of_lrp_and_refused_by_deeplift():
    body = "v = Slice (c, zero, two, one) g = Transpose <perm = [0, 2, 3, 1]> (v) "
    body += "f = GridSample (c, g)"
    model, x = whole(body)
    objective = Objective(model, 1)
    with pytest.raises(UnsupportedError, match="places that follow from the image"):
        deep_lift(model, x, objective)
    found = lrp(model, x, objective, rule="epsilon")
    sums = found.reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(sums, objective.scores, atol=2e-5 * np.abs(found).sum())


def test_what_has_no_rule_is_refused_by_name():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1).prod(1, keepdim=True)

    x = np.ones((1, 1, 2, 2), np.float32)
    model = exported(Odd(), x)
    with pytest.raises(UnsupportedError, match=r"DeepLIFT has no rule for ReduceProd"):
        deep_lift(model, x, Objective(model, 0))
    with pytest.raises(MethodError, match="rule='alpha' is unknown"):
        lrp(model, x, Objective(model, 0), rule="alpha")
    with pytest.raises(InputError, match="relu='smooth' is no rule"):
        model.pullback(x, Objective(model, 0), ["input"], relu="smooth")

"""The Keras adapter: every layer call by name, right numbers, one trace per input shape."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import torch
from torch.nn import functional as F

import pellucid
from pellucid.adapters.engine import engine_for
from pellucid.adapters.keras.adapter import KerasAdapter
from pellucid.errors import InputError, LayerError, UnsupportedError

FAMILIES = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def ones(name: str = "logits"):
    return lambda values: {name: np.ones_like(values[name])}


def images(n: int, size: int = 8, channels: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, channels, size, size)).astype(np.float32)


def small(k, activation="relu", **options):
    layers = k.layers
    x = inputs = layers.Input((8, 8, 2), **options)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation=activation, name="conv")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return k.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))


@FAMILIES
def test_model_is_traced_once_per_input_shape(k):
    class Counting(k.layers.Layer):
        calls = 0

        def call(self, x):
            Counting.calls += 1
            return x * 2

    x = inputs = k.layers.Input((None, None, 2))
    x = k.layers.Conv2D(4, 3, activation="relu", name="conv")(Counting(name="twice")(x))
    model = KerasAdapter(k.Model(inputs, k.layers.GlobalAveragePooling2D()(x)))
    model.run(images(2, 8))
    before = Counting.calls
    for n in (2, 3, 5):
        model.run(images(n, 8), ["conv"])
        model.pullback(images(n, 8), ones(), ["conv"])
        model.pullback(images(n, 8), ones(), ["input", "conv"], relu="guided")
    assert Counting.calls == before
    model.run(images(2, 9))
    assert Counting.calls == before + 1


@FAMILIES
def test_the_forward_pass_runs_once_and_the_seed_sees_its_values(k):
    seen = []

    def seed(values):
        seen.append(sorted(values))
        return {"conv": values["conv"]}

    model = KerasAdapter(small(k))
    values, gradients = model.pullback(images(2), seed, ["input"], fetch=["conv", "logits"])
    model.pullback(images(2), seed, ["input"], fetch=["conv", "logits"])
    # The first call guesses that the logits are seeded, learns better, and remembers it.
    assert seen == [["conv", "logits"]] * 2
    alone = model.pullback(images(2), seed, ["input"], fetch=["conv"])[1]["input"]
    np.testing.assert_allclose(gradients["input"], alone, rtol=1e-6, atol=1e-8)
    assert values["conv"].shape == (2, 4, 4, 4)


@FAMILIES
def test_an_exception_in_the_seed_arrives_as_it_is_and_the_model_works_on(k):
    model = KerasAdapter(small(k))

    def failing(values):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.pullback(images(1), failing, ["conv"])
    assert model.pullback(images(1), ones(), ["conv"])[1]["conv"].any()


@FAMILIES
def test_nothing_of_keras_stays_changed(k):
    operation = getattr(k, "Operation", k.layers.Layer)
    call, network = operation.__call__, small(k)
    weights = [w.copy() for w in network.get_weights()]
    model = KerasAdapter(network)
    model.pullback(images(1), ones(), ["input"], relu="guided")
    assert operation.__call__ is call
    for one, other in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    class Failing(k.layers.Layer):
        def call(self, x):
            raise ValueError("no such thing")

    broken = small(k)
    broken.layers[1].call = Failing().call
    with pytest.raises(InputError, match="cannot be called on shape"):
        KerasAdapter(broken).run(images(1))
    assert operation.__call__ is call


SMOOTH = {
    "silu": ("silu", F.silu),
    "gelu": ("gelu", F.gelu),
    "elu": ("elu", F.elu),
    "selu": ("selu", F.selu),
    "mish": ("mish", F.mish),
    "relu6": ("relu6", F.relu6),
}


@pytest.mark.parametrize("rule", ["exact", "guided", "deconv"])
@pytest.mark.parametrize("name", [*SMOOTH, "hard_silu", "prelu", "leaky_relu"])
@FAMILIES
def test_rectifier_rules_agree_with_pytorch_for_every_activation(k, name, rule):
    """The oracle rectifies the cotangent by hand and takes torch's derivative of the function."""
    activation, function = SMOOTH.get(name, (name, None))
    slope = np.array([0.1, 0.5], np.float32)
    x = inputs = k.layers.Input((8, 8, 2))
    if name == "prelu":
        layer = k.layers.PReLU(shared_axes=[1, 2], name="act")
        function = lambda z: F.prelu(z, torch.from_numpy(slope))  # noqa: E731
    elif name == "leaky_relu":
        given = {"negative_slope": 0.1} if k is keras else {"alpha": 0.1}
        layer, function = k.layers.LeakyReLU(**given, name="act"), lambda z: F.leaky_relu(z, 0.1)
    elif name == "hard_silu":
        if k is tf_keras:
            pytest.skip("tf_keras has no hard_silu")
        layer, function = k.layers.Activation("hard_silu", name="act"), F.hardswish
    elif name == "relu6" and k is tf_keras:
        layer = k.layers.ReLU(max_value=6.0, name="act")
    else:
        layer = k.layers.Activation(activation, name="act")
    network = k.Model(inputs, layer(x))
    if name == "prelu":
        layer.set_weights([slope.reshape(1, 1, 2)])
    values = 3 * images(2)
    cotangent = images(2, seed=1)
    gradient = KerasAdapter(network).pullback(
        values, lambda _: {"output": cotangent}, ["input"], fetch=["output"], relu=rule
    )[1]["input"]

    z = torch.from_numpy(values).requires_grad_()
    outward = torch.from_numpy(cotangent)
    outward = outward if rule == "exact" else outward.clamp(min=0)
    expected = outward
    if rule != "deconv":
        (expected,) = torch.autograd.grad(function(z), z, outward)
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-4, atol=1e-5)


def _spellings(k):
    import tensorflow as tf

    zero, cast = tf.zeros_like, tf.cast

    @tf.custom_gradient
    def custom(x):
        y = (x + tf.abs(x)) / 2
        return y, lambda g: g * cast(x > 0, x.dtype)

    found = {
        "times its sign": (lambda x: x * cast(x > 0, x.dtype), F.relu),
        "sign times it": (lambda x: cast(tf.greater_equal(x, 0), x.dtype) * x, F.relu),
        "maximum": (lambda x: tf.maximum(x, 0.0), F.relu),
        "maximum, zeros": (lambda x: tf.maximum(zero(x), x), F.relu),
        "where": (lambda x: tf.where(x > 0, x, 0.0), F.relu),
        "where, zeros": (lambda x: tf.where(x <= 0, zero(x), x), F.relu),
        "leaky where": (lambda x: tf.where(x > 0, x, 0.1 * x), lambda z: F.leaky_relu(z, 0.1)),
        "elu where": (lambda x: tf.where(x < 0, tf.math.expm1(x), x), F.elu),
        "mean with its magnitude": (lambda x: (x + tf.abs(x)) / 2, F.relu),
        "magnitude as a root": (lambda x: 0.5 * (x + tf.sqrt(x * x)), F.relu),
        "negative minimum": (lambda x: -tf.minimum(-x, 0.0), F.relu),
        "less its minimum": (lambda x: x - tf.minimum(x, zero(x)), F.relu),
        "with the other rectifier": (lambda x: x + tf.nn.relu(-x), F.relu),
        "times its sign and one": (lambda x: x * (tf.sign(x) + 1) / 2, F.relu),
        "mask without a gradient": (lambda x: x * tf.stop_gradient(cast(x > 0, x.dtype)), F.relu),
        "custom gradient": (custom, F.relu),
        "leaky by maximum": (lambda x: tf.maximum(x, 0.1 * x), lambda z: F.leaky_relu(z, 0.1)),
        "silu by quotient": (lambda x: x / (1 + tf.exp(-x)), F.silu),
        "hard swish": (lambda x: x * tf.nn.relu6(x + 3) / 6, F.hardswish),
        "clip": (lambda x: tf.clip_by_value(x, 0.0, 6.0), F.relu6),
        "clip by others": (lambda x: tf.maximum(tf.minimum(x, 2.0), 0.0), lambda z: z.clamp(0, 2)),
        "function": (tf.function(lambda x: tf.maximum(x, 0.0)), F.relu),
        "leaky function": (
            tf.function(lambda x: tf.where(x > 0, x, 0.1 * x)),
            lambda z: F.leaky_relu(z, 0.1),
        ),
        "where of old": (lambda x: tf.compat.v1.where(x > 0, x, zero(x)), F.relu),
        "softplus": (tf.math.softplus, None),
        "kept from zero": (lambda x: tf.maximum(x, 1e-12), None),
        "magnitude": (tf.abs, None),
        "around zero": (lambda x: tf.clip_by_value(x, -1.0, 1.0), None),
        "sum with something else": (lambda x: (x + tf.abs(x[:, ::-1])) / 2, None),
        "of something else": (lambda x: x * cast(x[:, ::-1] > 0, x.dtype), None),
        "where of two": (lambda x: tf.where(x > 0, x, x[:, ::-1]), None),
        "where not at zero": (lambda x: tf.where(x > 0, x, 1.0), None),
    }
    if k is keras:
        ops = k.ops
        found |= {
            "ops: times its sign": (lambda x: x * ops.cast(x > 0, x.dtype), F.relu),
            "ops: times its sign, uncast": (lambda x: ops.multiply(x, x > 0), F.relu),
            "ops: maximum": (lambda x: ops.maximum(x, 0), F.relu),
            "ops: maximum, zeros": (lambda x: ops.maximum(x, ops.zeros_like(x)), F.relu),
            "ops: where": (lambda x: ops.where(x > 0, x, 0.0), F.relu),
            "ops: where, zeros": (lambda x: ops.where(x > 0, x, ops.zeros_like(x)), F.relu),
        }
    return found


@pytest.mark.parametrize("rule", ["guided", "deconv"])
@FAMILIES
def test_rectifier_rules_hold_however_relu_is_written(k, rule):
    """What is no rectifier keeps its derivative."""
    values, cotangent = 3 * images(2), images(2, seed=1)
    outward = torch.from_numpy(cotangent).clamp(min=0)
    for name, (written, known) in _spellings(k).items():

        class Written(k.layers.Layer):
            def call(self, x, written=written):
                return written(x)

            def compute_output_shape(self, shape):
                return shape

        inputs = k.layers.Input((8, 8, 2))
        model = KerasAdapter(k.Model(inputs, Written()(inputs)))

        def gradient(model, relu):
            seed = lambda _: {"output": cotangent}  # noqa: E731
            return model.pullback(values, seed, ["input"], ["output"], relu)[1]["input"]

        if known is None:
            expected = gradient(model, "exact")
        elif rule == "deconv":
            expected = outward.numpy()
        else:
            z = torch.from_numpy(values).requires_grad_()
            expected = torch.autograd.grad(known(z), z, outward)[0].numpy()
        np.testing.assert_allclose(gradient(model, rule), expected, atol=1e-6, err_msg=name)


# slope below the threshold, limit, threshold
ARGUMENTS = [(0, 2, 0), (0.1, 2, 0), (0, None, 1), (0, 2, 1), (0.1, None, 1), (0.1, 2, 1)]


@FAMILIES
def test_a_relu_with_arguments_is_one_rectifier_in_both_engines(k):
    class Clip(k.layers.Layer):
        def call(self, x):
            return tf.clip_by_value(x, 0.0, 2.0)

        def compute_output_shape(self, shape):
            return shape

    layers = [Clip()]
    for slope, limit, threshold in ARGUMENTS:
        layers += [k.layers.ReLU(limit, slope, threshold)]
    inputs = [k.layers.Input((8, 8, 2)) for _ in layers]
    named = zip(layers, inputs, strict=True)
    native = KerasAdapter(k.Model(inputs, [layer(x) for layer, x in named]))
    x, cotangent = [3 * images(2, seed=i) for i in range(len(layers))], images(2, seed=99)
    ports, outputs = [p.name for p in native.inputs], [p.name for p in native.outputs]
    for model in (native, engine_for(native, "onnx")[0]):
        for rule in ("guided", "deconv"):
            seed = lambda _: dict.fromkeys(outputs, cotangent)  # noqa: E731
            found = model.pullback(x, seed, ports, outputs, rule)[1]
            for port, given, kind in zip(ports, x, [(0, 2, 0), *ARGUMENTS], strict=True):
                slope, limit, threshold = kind
                derivative = np.where(given > threshold, 1.0, slope)
                derivative[given > (limit or np.inf)] = 0
                expected = np.maximum(cotangent, 0) * (derivative if rule == "guided" else 1)
                message = f"{model.engine} {rule} {kind}"
                np.testing.assert_allclose(found[port], expected, atol=1e-6, err_msg=message)


@FAMILIES
def test_deconvnet_passes_by_what_is_between_and_keeps_its_other_uses(k):
    class Written(k.layers.Layer):
        def call(self, x):
            double = 2 * x
            magnitude = tf.abs(double)
            return (double + magnitude) / 2 + tf.sin(magnitude)

        def compute_output_shape(self, shape):
            return shape

    inputs = k.layers.Input((8, 8, 2))
    model = KerasAdapter(k.Model(inputs, Written()(inputs)))
    x, cotangent = images(2), images(2, seed=1)
    seed = lambda _: {"output": cotangent}  # noqa: E731
    found = model.pullback(x, seed, ["input"], ["output"], "deconv")[1]["input"]
    other = cotangent * np.cos(np.abs(2 * x)) * 2 * np.sign(x)
    np.testing.assert_allclose(found, 2 * np.maximum(cotangent, 0) + other, atol=1e-5)
    exact = model.pullback(x, seed, ["input"], ["output"])[1]["input"]
    np.testing.assert_allclose(exact, 2 * cotangent * (x > 0) + other, atol=1e-5)


@FAMILIES
def test_mixed_precision_gives_float32_near_the_float32_numbers(k):
    full = small(k)
    k.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed = small(k)
    finally:
        k.mixed_precision.set_global_policy("float32")
    mixed.set_weights(full.get_weights())
    for name, ours, theirs in zip(
        ("values", "gradients"),
        KerasAdapter(mixed).pullback(images(2), ones(), ["conv"]),
        KerasAdapter(full).pullback(images(2), ones(), ["conv"]),
        strict=True,
    ):
        for layer, value in theirs.items():
            assert ours[layer].dtype == np.float32
            np.testing.assert_allclose(ours[layer], value, atol=1e-2, err_msg=f"{name} {layer}")


@FAMILIES
def test_subclassed_model_lists_its_layers_and_knows_what_it_was_called_on(k):
    class Block(k.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.conv = k.layers.Conv2D(4, 3, name="conv")

        def call(self, x):
            return tf.nn.relu(self.conv(x))

    class Network(k.Model):
        def __init__(self):
            super().__init__(name="network")
            self.block, self.head = Block(name="block"), k.layers.Dense(3, name="head")

        def call(self, x):
            return self.head(tf.reduce_mean(self.block(x), axis=(1, 2)))

    network = Network()
    with pytest.raises(UnsupportedError, match="not built"):
        KerasAdapter(network).run(images(1))
    with pytest.raises(UnsupportedError, match="not built"):
        pellucid.explain(network, np.zeros((8, 8, 2), np.uint8))
    network(np.zeros((1, 8, 8, 2), np.float32))
    model = KerasAdapter(network)
    assert model.inputs[0].shape == (None, 2, 8, 8)
    values, gradients = model.pullback(images(2), ones(), ["block"], fetch=["block/conv", "logits"])
    assert [layer.name for layer in model.layers] == ["block/conv", "block", "head"]
    assert values["block/conv"].shape == gradients["block"].shape == (2, 4, 6, 6)
    expected = network(images(2).transpose(0, 2, 3, 1)).numpy()
    np.testing.assert_allclose(values["logits"], expected, rtol=1e-5, atol=1e-6)
    larger = np.random.default_rng(3).standard_normal((1, 12, 10, 2)).astype(np.float32)
    (explained,) = pellucid.explain(network, larger, layer="block")  # and what it is called on now
    assert explained.attribution.shape == (10, 8)
    assert explained.score == pytest.approx(float(network(larger).numpy().max()), rel=1e-5)


@FAMILIES
def test_recurrent_and_time_distributed_layers_are_differentiated(k):
    x = inputs = k.layers.Input((5, 8, 8, 2))
    x = k.layers.TimeDistributed(k.layers.Conv2D(3, 3), name="frames")(x)
    x = k.layers.TimeDistributed(k.layers.GlobalAveragePooling2D(), name="pooled")(x)
    x = k.layers.LSTM(4, name="lstm")(x)
    model = KerasAdapter(k.Model(inputs, k.layers.Dense(2, name="head")(x)))
    rng = np.random.default_rng(0)
    clip = rng.standard_normal((1, 2, 5, 8, 8)).astype(np.float32)
    step = rng.standard_normal(clip.shape).astype(np.float32)

    def score(batch):
        return float(model.run(batch, ["logits"])["logits"].sum())

    gradient = model.pullback(clip, ones(), ["input"])[1]["input"]
    numeric = (score(clip + 1e-2 * step) - score(clip - 1e-2 * step)) / 2e-2
    assert numeric == pytest.approx(float((gradient * step).sum()), rel=1e-2)


@FAMILIES
def test_inputs_and_outputs_by_name_keep_their_order(k):
    layers = k.layers
    named = {"left": layers.Input((4,), name="left"), "right": layers.Input((4,), name="right")}
    both = layers.Concatenate(name="both")([named["right"], named["left"]])
    network = k.Model(named, {"b": layers.Dense(2, name="b")(both), "a": layers.Dense(3)(both)})
    model = KerasAdapter(network)
    left, right = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    values = model.run({"right": right, "left": left}, ["both", "output", "output:1"])
    assert values["both"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 2
    expected = network({"left": left, "right": right})
    sizes = {values["output"].shape[1], values["output:1"].shape[1]}
    assert sizes == {2, 3}
    for name in ("output", "output:1"):
        key = "b" if values[name].shape[1] == 2 else "a"
        np.testing.assert_allclose(values[name], expected[key], rtol=1e-6)


@FAMILIES
def test_a_declared_batch_size_is_cut_padded_and_joined(k):
    free = small(k)
    fixed = small(k, batch_size=2)
    fixed.set_weights(free.get_weights())
    one, other = KerasAdapter(fixed), KerasAdapter(free)
    assert one.fixed_batch == 2
    x = images(5)
    np.testing.assert_allclose(one.run(x)["output"], other.run(x)["output"], rtol=1e-5, atol=1e-6)
    ours, theirs = (m.pullback(x, ones(), ["conv"])[1]["conv"] for m in (one, other))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@FAMILIES
def test_scaling_layers_inside_the_model_mean_raw_pixels(k):
    x = inputs = k.layers.Input((8, 8, 3))
    x = k.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(x)
    x = k.layers.Conv2D(2, 3, name="conv")(x)
    scaled = KerasAdapter(k.Model(inputs, k.layers.GlobalAveragePooling2D()(x)))
    assert scaled.scales_input
    assert not scaled.preprocessing.assumed
    picture = np.full((8, 8, 3), 255, np.uint8)
    assert (scaled.prepare(picture).batch[0] == 255).all()
    assert not KerasAdapter(small(k)).scales_input


@FAMILIES
def test_unknown_layers_say_which_are_near(k):
    model = KerasAdapter(small(k))
    with pytest.raises(LayerError, match="Did you mean 'conv'"):
        model.run(images(1), ["conv2"])
    with pytest.raises(LayerError, match="called once"):
        model.run(images(1), ["conv:1"])
    with pytest.raises(InputError, match=r"takes shape \(N, 2, 8, 8\)"):
        model.run(images(1, size=9))


def test_layer_named_like_a_port_keeps_an_address():
    x = inputs = keras.layers.Input((8, 8, 2), name="input")
    x = keras.layers.Conv2D(2, 3, name="output")(x)
    x = keras.layers.Flatten()(x)
    model = KerasAdapter(keras.Model(inputs, keras.layers.Dense(2, name="logits")(x)))
    values = model.run(images(1), ["output", "output_", "logits"])
    assert values["output_"].shape == (1, 2, 6, 6)
    assert values["output"].shape == values["logits"].shape == (1, 2)


@FAMILIES
def test_explaining_a_live_model_does_not_keep_it_alive(k):
    network = small(k)
    (explanation,) = pellucid.explain(network, images(1).transpose(0, 2, 3, 1))
    assert explanation.layer == "conv"
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_calls():
    import resource

    model = KerasAdapter(small(keras))
    x = images(16)
    peaks = []
    for count in (200, 1000):
        for _ in range(count):
            model.pullback(x, ones(), ["conv", "input"], relu="guided")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 8 * 1024  # kB; one leaked batch a call would be 8 MB


@FAMILIES
def test_grouped_convolutions_and_functions_of_tensorflow_have_a_layer_graph(k):
    @tf.function
    def folded(x):
        return tf.nn.relu(x) + tf.nn.relu(-x)

    class Folding(k.layers.Layer):
        def call(self, x):
            return folded(x)

    inputs = k.layers.Input((8, 8, 4))
    x = Folding(name="fold")(k.layers.Conv2D(6, 3, groups=2, name="conv")(inputs))
    x = k.layers.Dense(3, name="head")(k.layers.GlobalAveragePooling2D()(x))
    network = k.Model(inputs, x)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    eagerly = tf.config.functions_run_eagerly()
    native, onnx = (pellucid.explain(network, x, "saliency", engine=e) for e in ("native", "onnx"))
    for one, other in zip(native, onnx, strict=True):
        scale = one.attribution.max()
        np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-5 * scale)
    assert tf.config.functions_run_eagerly() == eagerly


@FAMILIES
def test_a_branch_that_takes_layers_from_outside_has_a_layer_graph(k):
    class Choosing(k.layers.Layer):
        def call(self, x):
            return tf.cond(tf.reduce_sum(x) > -1e9, lambda: tf.nn.relu(x), lambda: x)

        def compute_output_shape(self, shape):
            return shape

    inputs = k.layers.Input((8, 8, 3))
    x = Choosing()(k.layers.Conv2D(4, 3)(inputs))
    network = k.Model(inputs, k.layers.Dense(3)(k.layers.GlobalAveragePooling2D()(x)))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    native, onnx = (pellucid.explain(network, x, "saliency", engine=e) for e in ("native", "onnx"))
    for one, other in zip(native, onnx, strict=True):
        scale = one.attribution.max()
        np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-5 * scale)

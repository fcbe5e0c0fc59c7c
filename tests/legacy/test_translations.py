"""Every translation against the old layer's definition, written out slowly in NumPy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from legacy_files import numbers, opened, output, sequential, write  # noqa: E402

from pellucid.adapters.legacy import read  # noqa: E402
from pellucid.adapters.legacy.build import build  # noqa: E402
from pellucid.errors import LoadError  # noqa: E402

CONV = {"name": "c", "activation": "linear", "init": "zero"}


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def theano_convolution(x: Any, kernel: Any, pads: tuple[int, int], stride: int, same: bool) -> Any:
    """Theano's true convolution: the kernel runs backwards. x (N, C, H, W), kernel (F, C, h, w)."""
    _, _, height, width = x.shape
    filters, _, rows, columns = kernel.shape
    x = np.pad(x, [(0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2])
    tall = (x.shape[2] - rows) // stride + 1
    wide = (x.shape[3] - columns) // stride + 1
    if same:
        tall, wide = -(-height // stride), -(-width // stride)
    y = np.zeros((len(x), filters, tall, wide), np.float32)
    for i, j, r, c in itertools.product(range(tall), range(wide), range(rows), range(columns)):
        seen = x[:, :, i * stride + rows - 1 - r, j * stride + columns - 1 - c]
        y[:, :, i, j] += seen @ kernel[:, :, r, c].T
    return y


@pytest.mark.parametrize("size", [(3, 3), (5, 3), (1, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_theano_transposed_convolution_is_the_adjoint_of_its_convolution(
    tmp_path: Path, size: tuple[int, int], stride: int, first: bool
) -> None:
    kernel = numbers(*size, 3, 4)  # rows, columns, filters, inputs
    order = "channels_first" if first else "channels_last"
    config = {"name": "c", "activation": "linear", "filters": 3, "kernel_size": list(size),
              "strides": [stride] * 2, "padding": "same", "data_format": order,
              "use_bias": False}  # fmt: skip
    shape = (4, 5, 6) if first else (5, 6, 4)
    path = write(
        tmp_path / "m.h5", sequential(shape, ("Conv2DTranspose", config)),
        {"c": {"c/kernel:0": kernel}}, "2.0.8", "theano",
    )  # fmt: skip
    x, y = numbers(2, 4, 5, 6, seed=1), numbers(2, 3, 5 * stride, 6 * stride, seed=2)
    found = output(path, x if first else x.transpose(0, 2, 3, 1))
    found = found if first else found.transpose(0, 3, 1, 2)
    assert found.shape == y.shape
    pads = (size[0] // 2, size[1] // 2)
    forward = theano_convolution(y, kernel.transpose(3, 2, 0, 1), pads, stride, True)
    # <forward(y), x> = <y, transposed(x)>
    close((found * y).sum(), (forward * x).sum())


def test_theano_transposed_convolution_with_an_even_kernel_is_refused(tmp_path: Path) -> None:
    config = {"name": "c", "activation": "linear", "filters": 3, "kernel_size": [2, 2],
              "strides": [2, 2], "padding": "same", "use_bias": False}  # fmt: skip
    path = write(
        tmp_path / "m.h5", sequential((5, 6, 4), ("Conv2DTranspose", config)),
        {"c": {"c/kernel:0": numbers(2, 2, 3, 4)}}, "2.0.8", "theano",
    )  # fmt: skip
    with pytest.raises(LoadError, match=r"layer 'c'.*even kernel.*replace="):
        opened(path)


@pytest.mark.parametrize("size", [(3, 3), (2, 4), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["same", "valid", "full"])
def test_theano_convolution(tmp_path: Path, size: tuple[int, int], stride: int, mode: str) -> None:
    kernel, bias = numbers(4, 3, *size), numbers(4)
    config = {
        **CONV,
        "nb_filter": 4,
        "nb_row": size[0],
        "nb_col": size[1],
        "border_mode": mode,
        "subsample": [stride, stride],
        "dim_ordering": "th",
    }
    path = write(
        tmp_path / "m.h5",
        sequential((3, 7, 8), ("Convolution2D", config)),
        {"c": {"c_W": kernel, "c_b": bias}},
    )
    x = numbers(2, 3, 7, 8, seed=1)
    reach = {"same": 2, "valid": 10**6, "full": 1}[mode]
    pads = tuple((n // reach if mode == "same" else n - 1 if mode == "full" else 0) for n in size)
    wanted = theano_convolution(x, kernel, pads, stride, mode == "same")  # type: ignore[arg-type]
    close(output(path, x), wanted + bias[:, None, None])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_theano_pooling(tmp_path: Path, size: int, kind: str) -> None:
    pool = {
        "name": "p",
        "pool_size": [size, size],
        "strides": [2, 2],
        "padding": "same",
        "data_format": "channels_first",
    }
    path = write(
        tmp_path / "m.h5",
        sequential((2, 7, 6), (f"{kind}Pooling2D", pool)),
        {"p": {}},
        version="2.1.0",
        backend="theano",
    )
    x = numbers(1, 2, 7, 6)
    pad = size - 2 if size > 2 and size % 2 else size - 1
    wanted = np.zeros((1, 2, 4, 3), np.float32)
    for i, j in itertools.product(range(4), range(3)):
        top, left = 2 * i - pad, 2 * j - pad
        seen = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
        wanted[:, :, i, j] = (seen.max if kind == "Max" else seen.mean)(axis=(2, 3))
    close(output(path, x), wanted)


@pytest.mark.parametrize("order", ["tf", "th"])
@pytest.mark.parametrize("size", [9, 10])
def test_deconvolution_has_the_stated_size(tmp_path: Path, order: str, size: int) -> None:
    kernel, bias = numbers(3, 3, 5, 4), numbers(4)  # (rows, columns, channels, filters)
    stored = kernel if order == "tf" else kernel.transpose(3, 2, 0, 1)
    shape = [None, size, size, 4] if order == "tf" else [None, 4, size, size]
    config = {
        **CONV,
        "nb_filter": 4,
        "nb_row": 3,
        "nb_col": 3,
        "subsample": [2, 2],
        "border_mode": "valid",
        "dim_ordering": order,
        "output_shape": shape,
    }
    inside = (4, 4, 5) if order == "tf" else (5, 4, 4)
    path = write(
        tmp_path / "m.h5",
        sequential(inside, ("Deconvolution2D", config)),
        {"c": {"c_W:0": stored, "c_b:0": bias}},
    )
    x = numbers(1, 4, 4, 5, seed=2)
    wanted = np.zeros((1, size, size, 4), np.float32) + bias
    for i, j, r, c in itertools.product(range(4), range(4), range(3), range(3)):
        wanted[:, 2 * i + r, 2 * j + c] += x[:, i, j] @ kernel[r, c]
    given = x if order == "tf" else x.transpose(0, 3, 1, 2)
    found = output(path, given)
    close(found if order == "tf" else found.transpose(0, 2, 3, 1), wanted)


def norm_file(tmp_path: Path, mode: int, version: str, colon: str, epsilon: float) -> Any:
    names = ("gamma", "beta", "running_mean", "running_std")
    arrays = [numbers(5, seed=s) for s in range(4)]
    arrays[3] = np.abs(arrays[3])
    config = {"name": "b", "mode": mode, "axis": -1, "epsilon": epsilon, "momentum": 0.9}
    groups = {"b": {f"b_{n}{colon}": a for n, a in zip(names, arrays, strict=True)}}
    return write(
        tmp_path / "m.h5", sequential((5,), ("BatchNormalization", config)), groups, version
    ), arrays


def test_running_std_holds_the_variance(tmp_path: Path) -> None:
    path, (gamma, beta, mean, variance) = norm_file(tmp_path, 0, "1.2.2", ":0", 0.1)
    x = numbers(3, 5, seed=9)
    close(output(path, x), gamma * (x - mean) / np.sqrt(variance + 0.1) + beta)


def test_keras_1_0_on_theano_adds_epsilon_outside_the_root(tmp_path: Path) -> None:
    path, (gamma, beta, mean, variance) = norm_file(tmp_path, 0, "1.0.7", "", 0.1)
    x = numbers(3, 5, seed=9)
    close(output(path, x), gamma * (x - mean) / (np.sqrt(variance) + 0.1) + beta)


def test_mode_1_normalises_each_sample(tmp_path: Path) -> None:
    path, (gamma, beta, _, _) = norm_file(tmp_path, 1, "1.2.2", ":0", 0.1)
    x = numbers(3, 5, seed=9)
    deviation = np.sqrt(x.var(-1, keepdims=True) + 0.1) + 0.1
    close(output(path, x), gamma * (x - x.mean(-1, keepdims=True)) / deviation + beta)


def test_mode_2_normalises_by_the_batch_and_warns(tmp_path: Path) -> None:
    path, (gamma, beta, _, _) = norm_file(tmp_path, 2, "1.2.2", ":0", 0.1)
    x = numbers(3, 5, seed=9)
    legacy, model = opened(path)
    close(model(x), gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1) + beta)
    assert any("images beside it" in warning for warning in legacy.warnings)


def test_maxout_takes_the_largest(tmp_path: Path) -> None:
    weights, bias = numbers(4, 6, 3), numbers(4, 3)
    config = {"name": "m", "output_dim": 3, "nb_feature": 4, "bias": True, "input_dim": 6}
    path = write(
        tmp_path / "m.h5",
        sequential((6,), ("MaxoutDense", config)),
        {"m": {"m_W:0": weights, "m_b:0": bias}},
    )
    x = numbers(2, 6, seed=1)
    close(output(path, x), np.max([x @ w + b for w, b in zip(weights, bias, strict=True)], axis=0))


@pytest.mark.parametrize("order", ["W b W_carry b_carry", "W W_carry b b_carry"])
def test_highway_carries_by_its_gate(tmp_path: Path, order: str) -> None:
    values = {
        "W": numbers(4, 4),
        "W_carry": numbers(4, 4, seed=1),
        "b": numbers(4),
        "b_carry": numbers(4, seed=1),
    }
    config = {"name": "h", "activation": "tanh", "bias": True, "input_dim": 4}
    path = write(
        tmp_path / "m.h5",
        sequential((4,), ("Highway", config)),
        {"h": {f"h_{key}:0": values[key] for key in order.split()}},
    )
    x = numbers(2, 4, seed=3)
    gate = 1 / (1 + np.exp(-(x @ values["W_carry"] + values["b_carry"])))
    close(output(path, x), gate * np.tanh(x @ values["W"] + values["b"]) + (1 - gate) * x)


def test_srelu_has_three_pieces(tmp_path: Path) -> None:
    names = ("t_left", "a_left", "t_right", "a_right")
    arrays = {f"s_{name}:0": numbers(4, seed=s) for s, name in enumerate(names)}
    left, a_left, right, a_right = arrays.values()
    path = write(tmp_path / "m.h5", sequential((4,), ("SReLU", {"name": "s"})), {"s": arrays})
    x = numbers(9, 4, seed=7) * 2
    top = left + np.abs(right)
    wanted = np.where(x < left, left + a_left * (x - left), np.minimum(x, top))
    close(output(path, x), wanted + a_right * np.maximum(x - top, 0))


def test_parametric_softplus(tmp_path: Path) -> None:
    alpha, beta = numbers(1, 1, 3), numbers(1, 1, 3, seed=1)
    path = write(
        tmp_path / "m.h5",
        sequential((4, 4, 3), ("ParametricSoftplus", {"name": "s"})),
        {"s": {"s_alphas:0": alpha, "s_betas:0": beta}},
    )
    x = numbers(1, 4, 4, 3, seed=2)
    close(output(path, x), alpha * np.log1p(np.exp(beta * x)))


@pytest.mark.parametrize("mode", ["dot", "cos"])
def test_merge_by_product(tmp_path: Path, mode: str) -> None:
    inputs = [
        {
            "class_name": "InputLayer",
            "name": n,
            "inbound_nodes": [],
            "config": {"name": n, "batch_input_shape": [None, 5]},
        }
        for n in "ab"
    ]
    merge = {
        "class_name": "Merge",
        "name": "m",
        "inbound_nodes": [[["a", 0, 0], ["b", 0, 0]]],
        "config": {"name": "m", "mode": mode, "mode_type": "raw", "dot_axes": [-1, -1]},
    }
    config = {
        "class_name": "Model",
        "config": {
            "name": "x",
            "layers": [*inputs, merge],
            "input_layers": [["a", 0, 0], ["b", 0, 0]],
            "output_layers": [["m", 0, 0]],
        },
    }
    _, model = opened(write(tmp_path / "m.h5", config, {"m": {}}))
    a, b = numbers(3, 5), numbers(3, 5, seed=1)
    product = (a * b).sum(1)
    if mode == "dot":
        close(model([a, b]), product[:, None])
    else:
        size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        close(model([a, b]), (product / size)[:, None, None])


@pytest.mark.parametrize("first", [False, True])
def test_locally_connected(tmp_path: Path, first: bool) -> None:
    kernel = numbers(3 * 2, 2 * 3 * 4, 5)  # places, (rows, columns, channels) or (channels, ...)
    bias = numbers(*((5, 3, 2) if first else (3, 2, 5)))
    config = {
        "name": "l",
        "filters": 5,
        "kernel_size": [2, 3],
        "strides": [2, 1],
        "use_bias": True,
        "padding": "valid",
        "data_format": "channels_first" if first else "channels_last",
        "activation": "linear",
    }
    shape = (4, 6, 4) if first else (6, 4, 4)
    path = write(
        tmp_path / "m.h5",
        sequential(shape, ("LocallyConnected2D", config)),
        {"l": {"l/kernel:0": kernel, "l/bias:0": bias}},
        "2.2.4",
        "tensorflow",
    )
    x = numbers(2, *shape, seed=1)
    wanted = np.zeros((2, *bias.shape), np.float32) + bias
    for i, j in itertools.product(range(3), range(2)):
        rows, columns = slice(2 * i, 2 * i + 2), slice(j, j + 3)
        seen = x[:, :, rows, columns] if first else x[:, rows, columns]
        value = seen.reshape(2, -1) @ kernel[2 * i + j]
        wanted[(slice(None), slice(None), i, j) if first else (slice(None), i, j)] += value
    close(output(path, x), wanted)


def test_bilinear_upsampling_of_keras_2_3_has_no_half_pixel_centres(tmp_path: Path) -> None:
    config = {"name": "u", "size": [2, 3], "interpolation": "bilinear"}
    path = write(
        tmp_path / "m.h5",
        sequential((4, 5, 2), ("UpSampling2D", config)),
        {"u": {}},
        "2.3.1",
        "tensorflow",
    )
    x = numbers(1, 4, 5, 2)
    wanted = np.zeros((1, 8, 15, 2), np.float32)
    for i, j in itertools.product(range(8), range(15)):
        r, c = i / 2, j / 3
        top, left = int(r), int(c)
        low, right = min(top + 1, 3), min(left + 1, 4)
        upper = x[:, top, left] * (1 - c + left) + x[:, top, right] * (c - left)
        lower = x[:, low, left] * (1 - c + left) + x[:, low, right] * (c - left)
        wanted[:, i, j] = upper * (1 - r + top) + lower * (r - top)
    close(output(path, x), wanted)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_cudnn_lstm(tmp_path: Path) -> None:
    units, width = 3, 4
    inward = [numbers(units, width, seed=s) for s in range(4)]  # CuDNN: y = W x, gates i, f, c, o
    across = [numbers(units, units, seed=9 + s) for s in range(4)]
    bias = numbers(2, 4, units)
    kernel = np.hstack([w.reshape(width, units) for w in inward])  # as Keras stored CuDNN's memory
    stored = {
        "k/kernel:0": kernel,
        "k/recurrent_kernel:0": np.hstack(across),
        "k/bias:0": bias.ravel(),
    }
    config = {"name": "k", "units": units, "return_sequences": False}
    path = write(
        tmp_path / "m.h5",
        sequential((5, width), ("CuDNNLSTM", config)),
        {"k": stored},
        "2.2.4",
        "tensorflow",
    )
    x = numbers(2, 5, width, seed=4)
    h = c = np.zeros((2, units), np.float32)
    for t in range(5):
        i, f, g, o = (x[:, t] @ inward[n].T + h @ across[n].T + bias[:, n].sum(0) for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    close(output(path, x), h)


def dense(name: str, units: int, **more: Any) -> dict[str, Any]:
    return {"class_name": "Dense", "config": {"name": name, "units": units, **more}}


def test_a_frozen_layer_inside_a_model_moves_behind_the_trainable_ones(tmp_path: Path) -> None:
    inner = {
        "class_name": "Sequential",
        "config": {
            "name": "in",
            "layers": [dense("a", 4, batch_input_shape=[None, 3], trainable=False), dense("b", 2)],
        },
    }
    config = {"class_name": "Sequential", "config": {"name": "out", "layers": [inner]}}
    a, b = (numbers(3, 4), numbers(4)), (numbers(4, 2), numbers(2))
    # The names tell nothing, so the order decides: b is trainable, a is not.
    group = {"w0": b[0], "w1": b[1], "w2": a[0], "w3": a[1]}
    path = write(tmp_path / "m.h5", config, {"in": group}, "2.2.4", "tensorflow")
    x = numbers(2, 3, seed=5)
    close(output(path, x), (x @ a[0] + a[1]) @ b[0] + b[1])


def test_a_model_inside_time_distributed(tmp_path: Path) -> None:
    inner = {
        "class_name": "Sequential",
        "config": {
            "name": "in",
            "layers": [dense("a", 4, batch_input_shape=[None, 3]), dense("b", 2)],
        },
    }
    a, b = (numbers(3, 4), numbers(4)), (numbers(4, 2), numbers(2))
    config = sequential((5, 3), ("TimeDistributed", {"name": "t", "layer": inner}))
    group = {"a/kernel:0": a[0], "a/bias:0": a[1], "b/kernel:0": b[0], "b/bias:0": b[1]}
    legacy, model = opened(write(tmp_path / "m.h5", config, {"t": group}, "2.2.4", "tensorflow"))
    x = numbers(2, 5, 3, seed=5)
    close(model(x), (x @ a[0] + a[1]) @ b[0] + b[1])
    assert list(legacy.weights) == ["t/a", "t/b"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_become_float32(tmp_path: Path, kind: Any) -> None:
    kernel, bias = numbers(3, 4).astype(kind), numbers(4).astype(kind)
    path = write(
        tmp_path / "m.h5",
        sequential((3,), ("Dense", {"name": "d", "units": 4})),
        {"d": {"d/kernel:0": kernel, "d/bias:0": bias}},
        "2.2.4",
        "tensorflow",
    )
    legacy, model = opened(path)
    assert legacy.weights["d"]["kernel"].dtype == np.float32
    close(model(np.eye(3, dtype=np.float32)), kernel.astype(np.float32) + bias.astype(np.float32))


def test_a_name_that_keras_3_forbids_is_replaced_and_remembered(tmp_path: Path) -> None:
    config = sequential((3,), ("Dense", {"name": "head/fc 1", "units": 2}))
    group = {"head/fc 1/kernel:0": numbers(3, 2), "head/fc 1/bias:0": numbers(2)}
    path = write(tmp_path / "m.h5", config, {"head/fc 1": group}, "2.2.4", "tensorflow")
    legacy, model = opened(path)
    assert [layer.name for layer in model.layers] == ["head_fc_1"]
    assert legacy.renamed["head_fc_1"] == "head/fc 1"


def test_gates_of_keras_1_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    units = 2
    arrays = {
        f"l_{a}_{g}:0": numbers(
            *({"W": (3, units), "U": (units, units)}.get(a, (units,))), seed=ord(g)
        )
        for a in "bUW"
        for g in "ofci"
    }
    config = {
        "name": "l",
        "output_dim": units,
        "activation": "tanh",
        "input_dim": 3,
        "inner_activation": "hard_sigmoid",
        "return_sequences": False,
    }
    path = write(tmp_path / "m.h5", sequential((4, 3), ("LSTM", config)), {"l": arrays})
    x = numbers(2, 4, 3, seed=5)
    h = c = np.zeros((2, units), np.float32)
    for t in range(4):
        z = {
            g: x[:, t] @ arrays[f"l_W_{g}:0"] + h @ arrays[f"l_U_{g}:0"] + arrays[f"l_b_{g}:0"]
            for g in "ifco"
        }
        gate = {g: np.clip(0.2 * z[g] + 0.5, 0, 1) for g in "ifo"}
        c = gate["f"] * c + gate["i"] * np.tanh(z["c"])
        h = gate["o"] * np.tanh(c)
    close(output(path, x), h)


def test_operations_of_tensorflow(tmp_path: Path) -> None:
    def node(name: str, function: str, inputs: Any) -> dict[str, Any]:
        kind = "SlicingOpLambda" if "getitem" in function else "TFOpLambda"
        return {
            "class_name": kind,
            "name": name,
            "inbound_nodes": inputs,
            "config": {"name": name, "function": function},
        }

    every = {"start": None, "stop": None, "step": None}
    layers = [
        {
            "class_name": "InputLayer",
            "name": "x",
            "inbound_nodes": [],
            "config": {"name": "x", "batch_input_shape": [None, 4, 6]},
        },
        node(
            "cut",
            "__operators__.getitem",
            [["x", 0, 0, {"slice_spec": [every, {"start": 1, "stop": None, "step": 2}]}]],
        ),
        node("mul", "math.multiply", [["cut", 0, 0, {"y": ["cut", 0, 0], "name": None}]]),
        node("sub", "math.subtract", [["_CONSTANT_VALUE", -1, 1.0, {"y": ["mul", 0, 0]}]]),
        node("cat", "concat", [[["mul", 0, 0, {"axis": -1}], ["sub", 0, 0, {"axis": -1}]]]),
        node("sum", "math.reduce_sum", [["cat", 0, 0, {"axis": [1], "keepdims": True}]]),
    ]
    config = {
        "class_name": "Functional",
        "config": {
            "name": "m",
            "layers": layers,
            "input_layers": [["x", 0, 0]],
            "output_layers": [["sum", 0, 0]],
        },
    }
    path = write(tmp_path / "m.h5", config, {"sum": {}}, "2.6.0", "tensorflow")
    x = numbers(2, 4, 6)
    cut = x[:, 1::2]
    wanted = np.concatenate([cut * cut, 1 - cut * cut], -1).sum(1, keepdims=True)
    close(output(path, x), wanted)


def transposed(x: Any, kernel: Any, bias: Any) -> Any:
    y = np.zeros((len(x), 2 * x.shape[1] + 1, 2 * x.shape[2] + 1, kernel.shape[2]), np.float32)
    steps = (range(n) for n in (*x.shape[1:3], 3, 3))
    for i, j, r, c in itertools.product(*steps):
        y[:, 2 * i + r, 2 * j + c] += x[:, i, j] @ kernel[r, c].T
    return y + bias


def test_a_bias_lands_on_the_channels_where_the_width_equals_the_filters(tmp_path: Path) -> None:
    kernel, bias = numbers(3, 3, 7, 5), numbers(7)  # the output is 7 wide and has 7 channels
    config = {
        "name": "c",
        "filters": 7,
        "kernel_size": [3, 3],
        "strides": [2, 2],
        "padding": "valid",
        "data_format": "channels_first",
        "use_bias": True,
    }
    path = write(
        tmp_path / "m.h5",
        sequential((5, 4, 3), ("Conv2DTranspose", config)),
        {"c": {"c/kernel:0": kernel, "c/bias:0": bias}},
        "2.2.4",
        "tensorflow",
    )
    x = numbers(1, 4, 3, 5)
    found = output(path, x.transpose(0, 3, 1, 2))
    close(found.transpose(0, 2, 3, 1), transposed(x, kernel, bias))


# ---- cells of recurrent layers -------------------------------------------------------------------


def test_an_rnn_around_cells_is_built_from_them(tmp_path: Path) -> None:
    """One cell becomes Keras's layer of it; several stay cells."""
    recurrent = keras.layers.RNN([keras.layers.LSTMCell(4), keras.layers.GRUCell(3)], name="r")
    model = keras.Sequential([keras.Input((5, 3)), recurrent])
    one = keras.Sequential([keras.Input((5, 3)), keras.layers.RNN(keras.layers.LSTMCell(4))])
    x = numbers(2, 5, 3)
    for index, source in enumerate((model, one)):
        path = tmp_path / f"{index}.keras"
        source.save(path)
        close(output(path, x), source(x))


def test_a_cell_that_is_code_is_asked_for_by_its_own_name(tmp_path: Path) -> None:
    cell = {"class_name": "MyCell", "config": {"name": "my_cell", "units": 4}}
    config = {"name": "r", "cell": cell, "return_sequences": False}
    arrays = {"r/my_cell/kernel:0": numbers(3, 4)}
    path = write(
        tmp_path / "m.h5", sequential((5, 3), ("RNN", config)), {"r": arrays}, "2.4.0",
        "tensorflow",
    )  # fmt: skip
    (need,) = read(path).needs
    assert (need.layer, need.name) == ("r", "MyCell")

    class MyCell(keras.layers.Layer):
        def __init__(self, units: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units, self.state_size, self.output_size = units, units, units

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units))

        def call(self, x: Any, states: Any) -> Any:
            state = states[0] + x @ self.kernel
            return state, [state]

    x = numbers(2, 5, 3)
    model = build(read(path), {"MyCell": MyCell})
    close(model(x), x.sum(1) @ arrays["r/my_cell/kernel:0"])

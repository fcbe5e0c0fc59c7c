"""Keras files and SavedModels: the right values, and no Lambda or file operator ever runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pellucid.adapters.load import load
from pellucid.errors import LoadError, UnsupportedError
from pellucid.explainer import explain

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def network(package: Any = keras) -> Any:
    layers = package.layers
    package.utils.set_random_seed(0)
    return package.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv", activation="relu"),
            layers.Flatten(),
            layers.Dense(5, name="dense", activation="softmax"),
        ]
    )


def expected(model: Any) -> np.ndarray:
    return np.asarray(model(X.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_files_of_keras_3_open(tmp_path: Path, name: str) -> None:
    model = network()
    model.save(tmp_path / name)
    adapter = load(tmp_path / name, labels=list("abcde"))
    assert adapter.framework == "keras"
    np.testing.assert_allclose(adapter.run(X)["output"], expected(model), atol=1e-6)


def test_files_of_tf_keras_open(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = network(tf_keras)
    model.save(tmp_path / "model.h5")
    np.testing.assert_allclose(
        load(tmp_path / "model.h5").run(X)["output"], expected(model), atol=1e-6
    )
    np.testing.assert_allclose(load(model).run(X)["output"], expected(model), atol=1e-6)


def test_a_saved_model_of_tf_keras_keeps_its_layers(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = network(tf_keras)
    model.save(tmp_path / "saved", save_format="tf")
    adapter = load(tmp_path / "saved")
    assert "conv" in {layer.name for layer in adapter.layers}
    np.testing.assert_allclose(adapter.run(X)["output"], expected(model), atol=1e-6)


def test_a_saved_model_without_layers_gives_its_output(tmp_path: Path) -> None:
    model = network()
    model.export(tmp_path / "saved", verbose=False)
    adapter = load(tmp_path / "saved")
    np.testing.assert_allclose(adapter.run(X)["output"], expected(model), atol=1e-6)


def test_lambda_layers_are_refused_unless_code_is_allowed(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.layers.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x * 2, name="twice")]
    )
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        with pytest.raises(LoadError, match=r"twice.*allow_code"):
            load(tmp_path / name)
    adapter = load(tmp_path / "model.keras", allow_code=True)
    np.testing.assert_allclose(adapter.run(X)["output"], 2 * X, atol=1e-6)


def test_lambda_bytecode_of_old_files_is_never_unmarshalled(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    marker = tmp_path / "it-ran"
    code = f"lambda x: (__import__('os').mkdir({str(marker)!r}), x)[1]"
    layer = tf_keras.layers.Lambda(eval(code), name="harmful", output_shape=(8, 8, 3))
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"batch_input_shape": [None, 8, 8, 3], "name": "i"},
                },
                {"class_name": "Lambda", "config": layer.get_config()},
            ],
        },
    }
    wrapper = {"name": "t", "layer": config, "batch_input_shape": [None, 2, 8, 8, 3]}
    nested = {
        "class_name": "Sequential",
        "config": {
            "name": "o",
            "layers": [{"class_name": "TimeDistributed", "config": wrapper}],
        },
    }
    for description in (config, nested):
        with h5py.File(tmp_path / "old.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(description)
            file.create_group("model_weights").attrs["layer_names"] = []
        with pytest.raises(LoadError, match="harmful"):
            load(tmp_path / "old.h5")
    assert not marker.exists()


def test_a_saved_model_that_writes_files_is_refused(tmp_path: Path) -> None:
    class Writing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3))])
        def __call__(self, x):
            tf.io.write_file(str(tmp_path / "it-ran"), "harm")
            return x

    module = Writing()
    tf.saved_model.save(
        module, str(tmp_path / "saved"), signatures={"serving_default": module.__call__}
    )
    with pytest.raises(LoadError, match="WriteFile"):
        load(tmp_path / "saved")
    assert not (tmp_path / "it-ran").exists()


def test_weights_alone_need_an_architecture(tmp_path: Path) -> None:
    model = network()
    model.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "model.json").write_text(model.to_json())
    with pytest.raises(LoadError, match=r"weights only.*architecture="):
        load(tmp_path / "model.weights.h5")
    for architecture in (tmp_path / "model.json", json.loads(model.to_json()), network, model):
        adapter = load(tmp_path / "model.weights.h5", architecture=architecture)
        np.testing.assert_allclose(adapter.run(X)["output"], expected(model), atol=1e-6)


def test_a_model_its_factory_or_its_description_take_weights_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    changed = [array + 0.01 for array in model.get_weights()]
    model.set_weights(changed)
    model.save(tmp_path / "w.h5")
    (tmp_path / "model.json").write_text(model.to_json())
    monkeypatch.setitem(sys.modules, "my_keras_code", SimpleNamespace(build=network))
    for source in (network(), "my_keras_code:build", tmp_path / "model.json"):
        adapter = load(source, weights=tmp_path / "w.h5")
        np.testing.assert_allclose(adapter.run(X)["output"], expected(model), atol=1e-6)


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    model = network()
    model.save(tmp_path / "model.keras")
    (tmp_path / "model.keras").rename(tmp_path / "model.h5")
    np.testing.assert_allclose(
        load(tmp_path / "model.h5").run(X)["output"], expected(model), atol=1e-6
    )


def old_file(path: Path, names: tuple[str, str]) -> np.ndarray:
    """Write a file of Keras 2 with layers of these names; return its second kernel."""
    layers = [
        {"class_name": "Conv2D", "config": {
            "name": name, "filters": 3, "kernel_size": [1, 1], "use_bias": False, **shape,
        }}
        for name, shape in zip(names, ({"batch_input_shape": [None, 8, 8, 3]}, {}), strict=True)
    ]  # fmt: skip
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    kernels = np.random.default_rng(0).normal(size=(2, 1, 1, 3, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update(model_config=json.dumps(config), keras_version="2.2.4")
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = list(names)
        for name, kernel in zip(names, kernels, strict=True):
            inner = group.create_group(name)
            inner.attrs["weight_names"] = ["kernel:0"]
            inner["kernel:0"] = kernel
    return kernels


def test_layers_keep_names_that_keras_3_forbids(tmp_path: Path) -> None:
    first, _ = old_file(tmp_path / "model.h5", ("block/conv", "c d"))
    adapter = load(tmp_path / "model.h5")
    assert [layer.name for layer in adapter.layers] == ["block/conv", "c d"]
    value = adapter.run(X, ["block/conv"])["block/conv"]
    np.testing.assert_allclose(value, np.einsum("nchw,cd->ndhw", X, first[0, 0]), atol=1e-5)


def test_a_layer_can_be_replaced(tmp_path: Path) -> None:
    _, second = old_file(tmp_path / "model.h5", ("a", "b"))
    adapter = load(tmp_path / "model.h5", replace={"a": lambda x: x * 2})
    np.testing.assert_allclose(
        adapter.run(X)["output"], np.einsum("nchw,cd->ndhw", 2 * X, second[0, 0]), atol=1e-5
    )


def test_doubts_of_the_reader_reach_the_explanation(tmp_path: Path) -> None:
    model = network()
    kernel, *others = model.layers[0].get_weights()
    kernel[0, 0, 0, 0] = np.nan
    model.layers[0].set_weights([kernel, *others])
    model.save(tmp_path / "model.h5")
    adapter = load(tmp_path / "model.h5")
    (note,) = adapter.notes
    assert "'conv'" in note
    assert note in explain(adapter, X[:1].transpose(0, 2, 3, 1), layer="conv")[0].notes


def test_an_unknown_layer_is_said_by_name(tmp_path: Path) -> None:
    class Strange(keras.layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.layers.Input((8, 8, 3)), Strange(name="odd")])
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        with pytest.raises(LoadError, match="custom_objects"):
            load(tmp_path / name)
        adapter = load(tmp_path / name, custom_objects={"Strange": Strange})
        np.testing.assert_array_equal(adapter.run(X)["output"], X)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_backends_of_keras_are_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(UnsupportedError, match="KERAS_BACKEND"):
        load(network())


def test_a_subclassed_model_opens_by_its_class(tmp_path) -> None:
    import keras

    class Network(keras.Model):
        def __init__(self, classes: int = 3, **options):
            super().__init__(**options)
            self.classes = classes
            self.conv = keras.layers.Conv2D(4, 3, name="conv")
            self.head = keras.layers.Dense(classes, name="head")

        def call(self, x):
            return self.head(keras.ops.mean(keras.ops.relu(self.conv(x)), axis=(1, 2)))

        def get_config(self):
            return {**super().get_config(), "classes": self.classes}

    original, x = Network(), np.ones((1, 3, 8, 8), np.float32)
    expected = original(x.transpose(0, 2, 3, 1))
    original.save(tmp_path / "subclassed.keras")
    with pytest.raises(LoadError, match=r"'Network' is a subclassed model.*custom_objects="):
        load(tmp_path / "subclassed.keras")
    model = load(tmp_path / "subclassed.keras", custom_objects={"Network": Network})
    np.testing.assert_allclose(model.run(x, ["output"])["output"], expected, rtol=1e-5)
    assert [layer.name for layer in model.layers] == ["conv", "head"]

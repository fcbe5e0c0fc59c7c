"""Frozen graphs of TensorFlow 1: values, gradients, guessed ends, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.adapters.tensorflow import graphs
from pellucid.errors import LoadError, UnsupportedError

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]
v1 = tf.compat.v1


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


KERNEL, HEAD = numbers(3, 3, 3, 4) / 2, numbers(4, 3)


def converted(path: Path, *outputs: str, **inputs: Any) -> Any:
    """Convert in this process, which is faster than what `load` does."""
    from pellucid.adapters.tensorflow.conversion import Request
    from pellucid.adapters.tensorflow.conversion import converted as convert

    model, notes = convert(Request(path, inputs, outputs))
    adapter = pellucid.load(model)
    adapter.notes = tuple(notes)
    return adapter


def network(x: Any) -> Any:
    """Convolution, ReLU, mean over space, dense, softmax; then the index of the best class."""
    y = tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "SAME", name="conv"), name="relu")
    logits = tf.matmul(tf.reduce_mean(y, (1, 2), name="pool"), HEAD, name="logits")
    return tf.argmax(tf.nn.softmax(logits, name="scores"), 1, name="choice")


def saved(path: Path, build: Callable[[], Any]) -> Path:
    with tf.Graph().as_default() as graph:
        build()
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def plain(shape: Any = (None, 8, 8, 3)) -> Any:
    return network(v1.placeholder(tf.float32, shape, name="x"))


def expected(x: Array) -> tuple[Array, Array]:
    """Return the activations of the ReLU and the logits, channels last, by TensorFlow itself."""
    y = tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "SAME")).numpy()
    return y, y.mean((1, 2)) @ HEAD


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pellucid.load(saved(tmp_path_factory.mktemp("graphs") / "frozen.pb", plain))


def test_values_are_tensorflows_and_ends_are_guessed(opened: Any) -> None:
    x = numbers(2, 8, 8, 3)
    activations, logits = expected(x)
    first = x.transpose(0, 3, 1, 2)
    values = opened.run(first, ["relu", "relu:0", "logits", "output"])
    np.testing.assert_allclose(values["relu"], activations.transpose(0, 3, 1, 2), atol=1e-5)
    np.testing.assert_allclose(values["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(opened.predict(x).sum(1), 1, atol=1e-5)
    assert opened.outputs[0].activation == "softmax"
    assert any("scores" in note for note in opened.notes)  # not the index behind it


def test_grad_cam_is_the_closed_form(opened: Any) -> None:
    """The gradient of a logit at the ReLU is its head's weight over the number of positions."""
    x = numbers(1, 8, 8, 3)
    activations, _ = expected(x)
    explanation = pellucid.explain(opened, x, target=1)
    explanation = explanation[0] if isinstance(explanation, list) else explanation
    want = np.maximum((activations[0] * HEAD[:, 1]).sum(-1) / 64, 0)
    assert explanation.layer == "relu"
    np.testing.assert_allclose(explanation.attribution, want, atol=1e-6)


def test_training_switches_are_fixed(tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
        keep = v1.placeholder(tf.float32, (), name="keep_prob")
        training = v1.placeholder(tf.bool, (), name="is_training")
        network(tf.where(training, x * 0, x) * keep)

    model = converted(saved(tmp_path / "m.pb", build))
    x = numbers(2, 8, 8, 3)
    np.testing.assert_allclose(
        model.run(x.transpose(0, 3, 1, 2), ["logits"])["logits"], expected(x)[1], atol=1e-5
    )
    assert [note for note in model.notes if "keep_prob" in note and "1.0" in note]
    assert [note for note in model.notes if "is_training" in note and "False" in note]


def test_ends_and_shapes_can_be_given(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pb", lambda: plain(None))
    with pytest.raises(LoadError, match=r"shape of its input 'x'.*inputs=\{'x'"):
        converted(path)
    model = converted(path, "pool", x=(None, 8, 8, 3))
    x = numbers(2, 8, 8, 3)
    np.testing.assert_allclose(model.predict(x), expected(x)[0].mean((1, 2)), atol=1e-5)
    with pytest.raises(LoadError, match="has no output 'poll'"):
        converted(path, "poll", x=(None, 8, 8, 3))


def reading() -> None:
    content = tf.io.decode_raw(tf.io.read_file("/etc/passwd"), tf.float32)
    network(tf.reshape(content, (1, 8, 8, 3)))


def calling_python() -> None:
    network(tf.reshape(v1.py_func(lambda: np.zeros(192, "f4"), [], tf.float32), (1, 8, 8, 3)))


def with_variable() -> None:
    v1.disable_resource_variables()
    x = v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
    network(x * v1.get_variable("scale", (), use_resource=False))
    v1.enable_resource_variables()


def growing() -> None:
    x = v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
    network(x + tf.constant(1.0, name="huge"))
    node = v1.get_default_graph().get_operation_by_name("huge").node_def
    assert node.op == "Const"


REFUSED = {
    "file": (reading, "uses the operator ReadFile, which reaches outside"),
    "python": (calling_python, "uses the operator (Eager)?PyFunc"),
    "variable": (with_variable, "is not frozen: the values of 'scale'"),
    "nothing": (lambda: tf.constant(1.0), "cannot be told"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reaches_outside_or_is_incomplete_is_refused(case: str, tmp_path: Path) -> None:
    build, message = REFUSED[case]
    with pytest.raises(LoadError, match=message):
        converted(saved(tmp_path / "m.pb", build))


def test_a_constant_larger_than_the_file_is_refused_unallocated(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pb", growing)
    graph = v1.GraphDef()
    graph.ParseFromString(path.read_bytes())
    (huge,) = [node for node in graph.node if node.name == "huge"]
    huge.attr["value"].tensor.tensor_shape.dim.add().size = 10**11
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(LoadError, match=r"constant 'huge' declares the shape \(100000000000,\)"):
        converted(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no operation"), (b"\x0a\xff\xff\xff", "damaged"), (b"GIF89a;;;;", "TensorFlow graph")],
)
def test_a_damaged_graph_is_one_error(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pb"
    path.write_bytes(data)
    with pytest.raises(LoadError, match=message):
        converted(path)


@pytest.mark.parametrize(
    ("child", "message"),
    [("import os; os.abort()", "crashes on this graph"), ("import time; time.sleep(60)", "never")],
)
def test_a_graph_that_crashes_or_hangs_tensorflow_is_refused(
    child: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_CHILD", child)
    monkeypatch.setattr(graphs, "_SECONDS", 3)
    path = tmp_path / "m.pb"
    path.write_bytes(os.urandom(64))
    with pytest.raises(LoadError, match=message):
        pellucid.load(path)


def test_a_part_of_a_saved_model_says_so(tmp_path: Path) -> None:
    cases = Path(__file__).parents[1] / "legacy" / "cases" / "k36_func_export" / "exported"
    with pytest.raises(LoadError, match="part of a SavedModel: give its folder"):
        converted(cases / "saved_model.pb")


def test_ends_are_only_for_graphs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    with pytest.raises(LoadError, match="name the tensors of a TensorFlow graph"):
        pellucid.load(path, outputs=["y"])


def test_an_operation_without_onnx_form_is_named(tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
        network(tf.math.digamma(x, name="odd"))

    with pytest.raises(UnsupportedError, match=r"Digamma \(at odd"):
        converted(saved(tmp_path / "m.pb", build))

"""The doctor: what a file is, what it lacks, whether it was read right; it never fails itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pellucid.cli import main
from pellucid.doctor import Diagnosis, diagnose
from pellucid.doctor.reread import compare
from pellucid.doctor.weights import examine
from pellucid.errors import LoadError

CASES = Path(__file__).parents[1] / "legacy" / "cases"


def case(name: str, **options: Any) -> Diagnosis:
    files = json.loads((CASES / name / "meta.json").read_text())["files"]
    if "architecture" in files:
        options["weights"] = CASES / name / files["weights"]
        return diagnose(CASES / name / files["architecture"], **options)
    return diagnose(CASES / name / files["model"], **options)


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


# ---- Keras files -----------------------------------------------------------------------------


def test_a_file_of_keras_1_is_told_in_full() -> None:
    pytest.importorskip("keras")
    found = case("k107_theano_th_seq_json")
    assert found.opens
    assert found.producer["version"] == "1.0.7"
    assert (found.producer["backend"], found.producer["data_format"]) == (
        "theano",
        "channels_first",
    )
    assert any("flipped" in sentence for sentence in found.translated)
    assert found.inputs[0].shape == (None, 1, 24, 24)
    assert found.outputs[0].kind == "5 classes, softmax"
    assert [check.passed for check in found.checks] == [True, True, True]  # read twice, runs, ONNX


def test_a_translation_that_computes_new_values_is_said_not_to_be_comparable() -> None:
    pytest.importorskip("keras")
    check = case("k107_theano_th_func_merge_h5").checks[0]
    assert check.passed is None
    assert "bn cannot be compared" in check.text
    assert "folded into the variance" in check.text


def test_layers_that_scale_the_input_are_named_with_their_numbers() -> None:
    pytest.importorskip("keras")
    found = case("k315_augment_preproc_keras")
    assert found.scaling == ("rescaling (Rescaling: scale=2, offset=-1)",)


def test_a_custom_layer_comes_with_a_template_that_runs() -> None:
    pytest.importorskip("keras")
    found = case("k224_tf_custom_layer_h5")
    assert not found.opens
    (custom,) = found.custom
    assert (custom.kind, custom.name) == ("layer", "Scale")
    import keras

    scope: dict[str, Any] = {"keras": keras}
    exec(custom.template, scope)
    opened = case("k224_tf_custom_layer_h5", custom_objects={"Scale": scope["Scale"]})
    assert opened.opens
    assert opened.checks[0].passed


def test_a_lambda_is_described_without_being_read_as_code() -> None:
    found = case("k122_tf_lambda_h5")
    (custom,) = found.custom
    assert (custom.kind, custom.name) == ("lambda", "norm")
    assert "Python 3.7 or older" in custom.described
    assert "output shape" in custom.described
    assert found.outputs[0].kind == "3 classes, softmax"


@pytest.mark.parametrize(
    ("name", "problem", "version", "state"),
    [
        ("bad_wrong_shape_h5", "conv2d_2", "2.0.8", "trained"),
        ("bad_no_model_config_h5", "architecture is missing", "2.0.8", "trained"),
        ("bad_truncated_h5", "truncated", None, "unknown"),
        ("bad_text_named_h5", "HTML", None, "unknown"),
        ("bad_zero_bytes_h5", "empty", None, "unknown"),
        ("bad_keras_zip_no_weights_k36", "no weights", None, "unknown"),
    ],
)
def test_a_damaged_file_is_explained(
    name: str, problem: str, version: str | None, state: str
) -> None:
    found = case(name)
    assert not found.opens
    assert problem in found.problems[0]
    assert found.producer.get("version") == version
    assert found.state == state


def test_values_that_are_not_finite_are_found() -> None:
    pytest.importorskip("keras")
    found = case("bad_nan_weights_h5")
    assert found.opens
    assert found.state == "damaged"
    (finding,) = found.findings
    assert (finding.layer, finding.text) == ("conv2d_1", "1 of 216 values are not finite")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="There is no file"):
        diagnose(tmp_path / "none.h5")


def test_names_in_a_file_become_no_code(tmp_path: Path) -> None:
    evil = "x():\n  import os\ndef y"
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [
        {"class_name": "InputLayer", "config": {"name": "i", "batch_input_shape": [None, 3]}},
        {"class_name": evil, "config": {"name": "a", "class": 1}},
        {"class_name": "Activation", "config": {"name": "b", "activation": evil}},
    ]}}  # fmt: skip
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs.update(model_config=json.dumps(config), keras_version="2.2.4")
        file.create_group("model_weights").attrs["layer_names"] = []
    for custom in diagnose(tmp_path / "m.h5").custom:
        assert "import os" not in custom.template
        compile(custom.template, "template", "exec")


# ---- the second reading ----------------------------------------------------------------------


def test_the_second_reading_follows_transposed_joined_and_renamed_arrays() -> None:
    a, b, c = numbers(3, 3, 2, 4), numbers(4), numbers(6)
    file = {"conv": [a, b], "rest": [c[:2], c[2:]]}
    model = {"other": [c], "conv_1": [a[::-1, ::-1].transpose(3, 2, 0, 1), b]}
    assert compare(file, model, []).passed


@pytest.mark.parametrize("change", ["value", "lost", "twice"])
def test_the_second_reading_finds_what_is_wrong(change: str) -> None:
    a, b = numbers(3, 4), numbers(4)
    wrong = {"value": a.copy(), "lost": a[1:], "twice": np.concatenate([a, a])}
    wrong["value"][0, 0] += 1e-6
    check = compare({"d": [a], "e": [b]}, {"d": [wrong[change]], "e": [b]}, [])
    assert check.passed is False
    assert "differ in d" in check.text


# ---- weights ---------------------------------------------------------------------------------


def layer_weights(package: Any, *, steps: int) -> dict[str, dict[str, Any]]:
    package.utils.set_random_seed(0)
    layers = package.layers
    model = package.Sequential(
        [layers.Input((6, 6, 3)), layers.Conv2D(16, 3), layers.BatchNormalization(),
         layers.Flatten(), layers.Dense(4)]
    )  # fmt: skip
    model.compile("sgd", "mse")
    x = np.asarray(numbers(8, 6, 6, 3))
    for _ in range(steps):
        model.train_on_batch(x, np.zeros((8, 4)))
    return {layer.name: {w.name: w.numpy() for w in layer.weights} for layer in model.layers}


def test_untouched_and_trained_weights_are_told_apart() -> None:
    keras = pytest.importorskip("keras")
    assert examine(layer_weights(keras, steps=0))[0] == "untouched"
    trained = layer_weights(keras, steps=3)
    assert examine(trained)[0] == "trained"
    fresh = {f"new_{k}": v for k, v in layer_weights(keras, steps=0).items()}
    state, reason, _ = examine(trained | fresh)
    assert state == "partly untouched"
    assert "3 of 6" in reason


def test_dead_kernels_are_found_and_zero_biases_are_not_taken_for_them() -> None:
    alive = {"attention": {"query.kernel": numbers(8, 2, 4), "query.bias": np.zeros((2, 4))}}
    assert examine(alive)[0] != "dead"
    dead = {**alive, "conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}}
    state, reason, findings = examine(dead)
    assert (state, reason) == ("dead", "the kernel of conv is zero throughout")
    assert [f.text for f in findings] == ["all values are zero"]


# ---- other frameworks and the command --------------------------------------------------------


def test_an_onnx_file_is_described(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    kernel = numpy_helper.from_array(numbers(4, 3, 3, 3), "c.weight")
    node = helper.make_node("Conv", ["x", "c.weight"], ["y"], name="c")
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 8, 8]), ("y", ["n", 4, 6, 6]))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [kernel])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, producer_name="me", opset_imports=opsets, ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    found = diagnose(tmp_path / "m.onnx")
    assert found.opens
    assert (found.producer["library"], found.producer["opset"]) == ("me", "17")
    assert found.parameters == 108
    assert found.checks[0].passed


def test_the_command_prints_the_program_to_fill_in(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("keras")
    path = CASES / "k224_tf_custom_layer_h5" / "model.h5"
    assert main(["doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert "keras 2.2.4, tensorflow, hdf5" in said
    assert "class Scale(keras.layers.Layer):" in said
    assert "custom_objects={'Scale': Scale}" in said


def test_the_command_gives_json_of_a_damaged_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(CASES / "bad_truncated_h5" / "model.h5"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["opens"] is False
    assert "truncated" in found["problems"][0]


def test_weights_alone_are_examined_with_code_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("keras")
    folder = CASES / "k224_tf_weights_only"
    code = f"import runpy, keras\nscope = runpy.run_path({str(folder / 'build.py')!r})\n"
    (tmp_path / "my_doctor_network.py").write_text(
        code + "def build():\n    return scope['build'](keras)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    files = json.loads((folder / "meta.json").read_text())["files"]
    arguments = ["--architecture", "my_doctor_network:build", "--json"]
    assert main(["doctor", str(folder / files["weights"]), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["opens"]
    assert [check["passed"] for check in found["checks"]] == [True, True, True]

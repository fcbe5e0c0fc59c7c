"""Genuine files of Keras 1.0 to 3 as the reader sees them; test_explain has what comes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_cases import CASES, GOOD, GRAPHS, HERE, meta, opening

from pellucid.adapters.legacy import LegacyModel, read
from pellucid.errors import LoadError, UnsupportedError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")


def open_case(name: str, **options: Any) -> LegacyModel:
    return read(**opening(name), **options)


@pytest.mark.parametrize("name", GOOD)
def test_reading_uses_every_array_and_names_the_producer(name: str) -> None:
    about = meta(name)
    if about["format"] in GRAPHS:
        pytest.skip("a graph without layers")
    legacy = open_case(name)
    producer = about["producer"]
    assert legacy.producer.backend == producer["backend"]
    if legacy.producer.version and about["format"].startswith(("whole", "keras_v3")):
        assert legacy.producer.version.split("-")[0] == producer["keras"].split("-")[0]
    assert legacy.producer.data_format == about["data_format"]
    unread = sum(  # what batch normalisation of Keras 1 and `Normalization` count or keep
        int(np.size(array)) for layer in legacy.weights.values() for array in layer.values()
    )
    assert unread >= about["n_params"]


DAMAGED = {
    "bad_keras_zip_no_config": "config.json: missing",
    "bad_keras_zip_no_weights_k36": "model.weights.h5: missing",
    "bad_no_model_config_h5": "architecture is missing",
    "bad_text_named_h5": "HTML",
    "bad_truncated_h5": "truncated",
    "bad_wrong_shape_h5": r"layer 'conv2d_2'.*\(3, 2, \?, 16\).*\(3, 2, 8, 13\)",
    "bad_zero_bytes_h5": "empty",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_error(name: str) -> None:
    with pytest.raises(LoadError, match=DAMAGED[name]) as caught:
        open_case(name)
    assert meta(name)["files"]["model"] in str(caught.value)


def test_a_non_finite_weight_is_warned_of() -> None:
    (warning,) = open_case("bad_nan_weights_h5").warnings
    assert "'conv2d_1'" in warning
    assert "1 of 216" in warning


def test_a_zip_member_that_points_outside_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    legacy = open_case("bad_keras_zip_traversal")
    assert "'../../evil.txt'" in legacy.warnings[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bad_keras_lambda_unsafe", "k122_tf_lambda_h5"])
def test_bytecode_is_refused_and_the_error_says_what_to_pass(name: str) -> None:
    from pellucid.adapters.legacy.build import build

    legacy = open_case(name)
    with pytest.raises(LoadError, match=r"'norm'.*Lambda.*(?s:.*)replace=\{'norm'"):
        build(legacy)


def test_bytecode_of_another_python_is_refused_though_code_is_allowed() -> None:
    from pellucid.adapters.legacy.build import build

    with pytest.raises(LoadError, match=r"written by Python 3\.7 or older"):
        build(open_case("k122_tf_lambda_h5"), allow_code=True)


@pytest.mark.parametrize("name", ["k224_tf_custom_layer_h5", "tf211_custom_layer_h5"])
def test_a_custom_layer_is_asked_for_by_name(name: str) -> None:
    from pellucid.adapters.legacy.build import build

    with pytest.raises(LoadError, match=r"'scale'.*custom layer 'Scale'.*custom_objects"):
        build(open_case(name))


def test_keras_1_on_theano_is_told_from_the_names_of_the_weights() -> None:
    assert open_case("k107_theano_th_seq_json").producer.backend == "theano"
    assert open_case("k107_theano_th_seq_json", backend="tensorflow").producer.backend == (
        "tensorflow"
    )


def test_reading_imports_no_framework() -> None:
    program = (
        "import sys; from pellucid.adapters.legacy import read; "
        f"model = read({str(HERE / 'k231_tf_unet_h5' / 'model.h5')!r}); "
        "import json; json.dumps(model.config); "
        "print(sorted({'tensorflow', 'keras', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_saved_model_without_its_variables_says_so() -> None:
    if "bad_savedmodel_no_variables" not in CASES:
        pytest.skip("in the larger corpus only")
    with pytest.raises(LoadError, match=r"variables\.index: missing"):
        open_case("bad_savedmodel_no_variables")


@pytest.mark.parametrize("name", ["k36_func_export", "tf115_seq_simple_save_clean"])
def test_a_graph_without_layers_is_told_apart(name: str) -> None:
    if name not in CASES:
        pytest.skip("in the larger corpus only")
    with pytest.raises(UnsupportedError, match="no Keras layers"):
        open_case(name)

"""Files made to harm: each ends in one `LoadError`; memory is bounded, no code runs."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from legacy_files import numbers, sequential, write

from pellucid.adapters.legacy import read
from pellucid.errors import LoadError

HERE = Path(__file__).parent
DENSE = sequential((3,), ("Dense", {"name": "d", "units": 2, "activation": "linear"}))


def dense_file(path: Path, config: Any = DENSE) -> Path:
    groups = {"d": {"d/kernel:0": numbers(3, 2), "d/bias:0": numbers(2)}}
    return write(path, config, groups, "2.2.4", "tensorflow")


def test_a_dataset_that_declares_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = dense_file(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/d"]
        del group["d/kernel:0"]
        group.create_dataset("d/kernel:0", (1 << 20, 1 << 18), "f4", chunks=(64, 64))
    with pytest.raises(LoadError, match=r"layer 'd', array 'd/kernel:0': it declares .* bytes"):
        read(path)


@pytest.mark.parametrize("link", [h5py.SoftLink("/model_weights"), h5py.ExternalLink("x.h5", "/")])
def test_links_are_not_followed(tmp_path: Path, link: Any) -> None:
    path = dense_file(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights/d/d/kernel:0"]
        file["model_weights/d/d/kernel:0"] = link
    with pytest.raises(LoadError, match="links are not followed"):
        read(path)


def test_data_outside_the_file_is_not_read(tmp_path: Path) -> None:
    path = dense_file(tmp_path / "m.h5")
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 24)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/d"]
        del group["d/kernel:0"]
        group.create_dataset("d/kernel:0", (3, 2), "f4", external=[(str(secret), 0, 24)])
    with pytest.raises(LoadError, match="not an array stored in this file"):
        read(path)


def test_a_layer_that_asks_for_more_than_the_file_holds_is_refused_unallocated(
    tmp_path: Path,
) -> None:
    config = sequential((3,), ("Dense", {"name": "d", "units": 10**12, "activation": "linear"}))
    with pytest.raises(LoadError, match=r"layer 'd'.*kernel.*1000000000000"):
        read(dense_file(tmp_path / "m.h5", config))


def test_an_input_too_wide_for_the_weights_is_refused_unallocated(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    from pellucid.adapters.legacy.build import build

    layer = {"name": "d", "units": 2, "activation": "linear"}
    legacy = read(dense_file(tmp_path / "m.h5", sequential((10**12,), ("Dense", layer))))
    with pytest.raises(LoadError, match=r"layer 'd'.*\(1000000000000, 2\).*\(3, 2\)"):
        build(legacy)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"class_name": 3}', "{}", "3"])
def test_text_that_is_no_architecture(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=r"m\.json"):
        read(path, weights=dense_file(tmp_path / "w.h5"))


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    path, mark = tmp_path / "m.yaml", tmp_path / "mark"
    path.write_text(f"class_name: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(LoadError, match=r"m\.yaml"):
        read(path, weights=dense_file(tmp_path / "w.h5"))
    assert not mark.exists()


def test_yaml_aliases_do_not_multiply(tmp_path: Path) -> None:
    lines = ["class_name: Sequential", "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "m.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(LoadError, match="too large"):
        read(path, weights=dense_file(tmp_path / "w.h5"))


def keras_zip(path: Path, config: Any, weights: bytes, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.6.0"}))
        archive.writestr("model.weights.h5", weights)
        for name, data in more.items():
            archive.writestr(name, data)
    return path


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", DENSE, b"\0" * (200 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(LoadError, match=r"model\.weights\.h5: it declares 209,715,200 bytes"):
        read(path)


def lambda_file(path: Path, function: Any) -> Path:
    code = base64.b64encode(marshal.dumps(function.__code__)).decode()
    stored = {"class_name": "__lambda__", "config": {"code": code}}
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [
        {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, 3]}},
        {"class_name": "Lambda", "config": {"name": "f", "function": stored, "arguments": {}}},
    ]}}  # fmt: skip
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_group("layers")
    return keras_zip(path, config, memory.getvalue())


def test_bytecode_of_this_python_runs_only_where_code_is_allowed(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    from pellucid.adapters.legacy.build import build

    legacy = read(lambda_file(tmp_path / "m.keras", lambda x: x * 2.0 - 1.0))
    with pytest.raises(LoadError, match="allow_code"):
        build(legacy)
    x = numbers(2, 3)
    np.testing.assert_allclose(build(legacy, allow_code=True)(x), x * 2 - 1, rtol=1e-6)
    np.testing.assert_allclose(build(legacy, replace={"f": lambda t: t + 1})(x), x + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["TFSMLayer", "TorchModuleWrapper", "JaxLayer", "Layer", "os"])
def test_a_class_that_is_no_plain_layer_is_not_looked_up(tmp_path: Path, kind: str) -> None:
    config = sequential((3,), (kind, {"name": "x", "filepath": "/"}))
    path = write(tmp_path / "m.h5", config, {"x": {}}, "3.6.0", "tensorflow")
    (need,) = read(path).needs
    assert (need.layer, need.name, need.kind) == ("x", kind, "layer")


def test_an_operation_that_is_not_in_the_table_is_asked_for(tmp_path: Path) -> None:
    node = {"class_name": "TFOpLambda", "name": "o", "inbound_nodes": [["x", 0, 0, {}]],
            "config": {"name": "o", "function": "io.read_file"}}  # fmt: skip
    entry = {"class_name": "InputLayer", "name": "x", "inbound_nodes": [],
             "config": {"name": "x", "batch_input_shape": [None, 3]}}  # fmt: skip
    config = {"class_name": "Functional", "config": {"name": "m", "layers": [entry, node],
              "input_layers": [["x", 0, 0]], "output_layers": [["o", 0, 0]]}}  # fmt: skip
    (need,) = read(write(tmp_path / "m.h5", config, {"o": {}}, "2.6.0", "tensorflow")).needs
    assert need.name == "io.read_file"


# Kind, file, and the file of its weights; PELLUCID_MUTATIONS says how often each is damaged.
_SEEDS = {
    "h5": ("k224_tf_custom_layer_h5/model.h5", None),
    "keras": ("k36_newlayers_keras/model.keras", None),
    "json": ("k107_theano_th_seq_json/model.json", "k107_theano_th_seq_json/weights.h5"),
    "yaml": ("k122_tf_seq_yaml/model.yaml", "k122_tf_seq_yaml/weights.h5"),
    "savedmodel": ("k36_func_export/exported", None),
    "graph": ("", None),
}
_KINDS = {"json": "text", "yaml": "text", "savedmodel": "program"}
_COUNT = int(os.environ.get("PELLUCID_MUTATIONS", "40"))


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashes the HDF5 library"),
        ("import time; time.sleep(60)", "never ends"),
    ],
)
def test_a_file_that_crashes_or_hangs_the_hdf5_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, message: str
) -> None:
    from pellucid.adapters.legacy import isolation

    monkeypatch.setattr(isolation, "_CHILD", child)
    monkeypatch.setattr(isolation, "_SECONDS", 5)
    with pytest.raises(LoadError, match=message):
        read(dense_file(tmp_path / "m.h5"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", _SEEDS)
def test_damaged_files_raise_nothing_else(tmp_path: Path, seed: str) -> None:
    """A program of its own damages the file in its bytes and structure, and opens what results."""
    name, weights = _SEEDS[seed]
    source = HERE / "cases" / name
    if seed == "graph":
        pytest.importorskip("tensorflow")
        source = frozen_graph(tmp_path / "frozen.pb")
    extra = [str(HERE / "cases" / weights)] if weights else []
    command = [str(Path(__file__).with_name("mutations.py")), _KINDS.get(seed, seed), str(source),
               str(_COUNT), "1", *extra]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False,
        timeout=300 + 2 * _COUNT, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["refused"] > _COUNT // 4
    assert {path.name for path in tmp_path.iterdir()} <= {"frozen.pb"}  # nothing was written


def frozen_graph(path: Path) -> Path:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), name="x")
        y = tf.nn.relu(tf.nn.conv2d(x, numbers(3, 3, 3, 4), 1, "SAME"))
        tf.nn.softmax(tf.matmul(tf.reduce_mean(y, (1, 2)), numbers(4, 3)), name="scores")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path

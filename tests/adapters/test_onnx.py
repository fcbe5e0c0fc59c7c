"""ONNX files: values against PyTorch's own, cut sessions against whole ones, and bad files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pellucid.adapters.onnx import sessions
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.onnx.graph import read_layers
from pellucid.adapters.onnx.sessions import open_session
from pellucid.errors import (
    InputError,
    LayerError,
    LoadError,
    PellucidError,
    UnsupportedError,
)
from pellucid.graph import protobuf
from pellucid.graph.runtime import operator_threads
from pellucid.graph.shapes import known_shapes

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

WEIGHTS = {
    "w1": (6, 3, 3, 3), "b1": (6,), "w2": (8, 6, 3, 3), "b2": (8,), "w3": (8, 5), "b3": (5,),
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {k: random.normal(0, 0.3, s).astype(np.float32) for k, s in WEIGHTS.items()}


def network(
    batch: int | str = "N",
    tail: str = "softmax",
    channels_last: bool = False,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """conv - relu - pool - conv (unnamed) - relu - mean - dense [- softmax - reshape]."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["relu"]),  # its tensor is named as a node is
        helper.make_node("ReduceMean", ["relu", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "w3", "b3"], ["g"], "dense"),
    ]
    arrays = {**weights(), "axes": np.array([2, 3], np.int64)}
    source = "x"
    if channels_last:
        nodes.insert(0, helper.make_node("Transpose", ["image"], ["x"], "t", perm=[0, 3, 1, 2]))
        source = "image"
    if element != TensorProto.FLOAT:
        nodes.insert(0, helper.make_node("Cast", ["raw"], ["x"], "cast", to=TensorProto.FLOAT))
        source = "raw"
    output, shape = "g", [batch, 5]
    if tail == "softmax":
        nodes.append(helper.make_node("Softmax", ["g"], ["s"], "softmax", axis=1))
        nodes.append(helper.make_node("Reshape", ["s", "target"], ["y"], "reshape"))
        arrays["target"] = np.array([-1, 5, 1, 1], np.int64)
        output, shape = "y", [batch, 5, 1, 1]
    given = [batch, 16, 16, 3] if channels_last else [batch, 3, 16, 16]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(source, element, given)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def reference(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same network, written in PyTorch."""
    w = {k: torch.from_numpy(v) for k, v in weights().items()}
    f = torch.nn.functional
    v = {"conv1": f.conv2d(torch.from_numpy(x), w["w1"], w["b1"], padding=1)}
    v["relu"] = v["conv1"].relu()
    v["pool"] = f.max_pool2d(v["relu"], 2)
    v["c2"] = f.conv2d(v["pool"], w["w2"], w["b2"], padding=1)
    v["relu:1"] = v["c2"].relu()
    v["mean"] = v["relu:1"].mean((2, 3))
    v["dense"] = v["mean"] @ w["w3"] + w["b3"]
    v["softmax"] = v["dense"].softmax(1)
    return {k: t.numpy() for k, t in v.items()}


def batch(count: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def adapter() -> OnnxAdapter:
    return OnnxAdapter(network())


def test_every_layer_has_the_value_pytorch_computes(adapter: OnnxAdapter) -> None:
    x, names = batch(), [layer.name for layer in adapter.layers if layer.name != "reshape"]
    values, expected = adapter.run(x, names), reference(x)
    assert names == list(expected)
    for name in names:
        assert values[name].dtype == np.float32
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-4, atol=1e-5)


def test_layers_say_what_they_are(adapter: OnnxAdapter) -> None:
    found = {layer.name: (layer.kind, layer.shape, layer.layout) for layer in adapter.layers}
    assert found == {
        "conv1": ("Conv2D", (None, 6, 16, 16), "spatial"),
        "relu": ("ReLU", (None, 6, 16, 16), "spatial"),
        "pool": ("MaxPool2D", (None, 6, 8, 8), "spatial"),
        "c2": ("Conv2D", (None, 8, 8, 8), "spatial"),
        "relu:1": ("ReLU", (None, 8, 8, 8), "spatial"),
        "mean": ("GlobalAveragePool2D", (None, 8), "features"),
        "dense": ("Dense", (None, 5), "features"),
        "softmax": ("Softmax", (None, 5), "features"),
        "reshape": ("Reshape", (None, 5, 1, 1), "spatial"),
    }


def test_a_cut_session_gives_what_the_whole_one_gives(adapter: OnnxAdapter) -> None:
    x = batch()
    everything = adapter.run(x, [layer.name for layer in adapter.layers])
    for name in ("conv1", "pool", "relu:1", "dense"):
        np.testing.assert_allclose(adapter.run(x, [name])[name], everything[name], atol=1e-6)


def test_a_cut_keeps_only_what_the_wanted_tensor_needs() -> None:
    part = protobuf.cut(network(), ["p1"])
    assert [node.op_type for node in part.graph.node] == ["Conv", "Relu", "MaxPool"]
    assert {tensor.name for tensor in part.graph.initializer} == {"w1", "b1"}


def test_logits_are_the_output_before_softmax_in_the_shape_of_the_output(
    adapter: OnnxAdapter,
) -> None:
    x = batch()
    values, expected = adapter.run(x, ["logits", "output"]), reference(x)
    assert adapter.outputs[0].activation == "softmax"
    assert values["logits"].shape == values["output"].shape == (3, 5, 1, 1)
    np.testing.assert_allclose(values["logits"][..., 0, 0], expected["dense"], atol=1e-5)
    np.testing.assert_allclose(values["output"][..., 0, 0], expected["softmax"], atol=1e-5)


def test_logits_are_the_output_where_there_is_no_activation() -> None:
    plain = OnnxAdapter(network(tail=""))
    values = plain.run(batch(), ["logits", "output"])
    assert plain.outputs[0].activation is None
    np.testing.assert_array_equal(values["logits"], values["output"])


def test_tensors_and_ports_can_be_fetched_by_name(adapter: OnnxAdapter) -> None:
    x = batch()
    values = adapter.run(x, ["input", "c1", "x"])
    np.testing.assert_array_equal(values["input"], x)
    np.testing.assert_array_equal(values["x"], x)
    np.testing.assert_allclose(values["c1"], reference(x)["conv1"], atol=1e-5)


def test_an_unknown_layer_is_named_with_its_neighbours(adapter: OnnxAdapter) -> None:
    with pytest.raises(LayerError, match="conv1"):
        adapter.run(batch(), ["conv"])


def test_a_fixed_batch_is_cut_and_padded() -> None:
    fixed, free, x = OnnxAdapter(network(batch=2)), OnnxAdapter(network()), batch(5)
    assert (fixed.fixed_batch, free.fixed_batch) == (2, None)
    for name in ("output", "pool", "logits"):
        np.testing.assert_allclose(fixed.run(x, [name])[name], free.run(x, [name])[name], atol=1e-6)


def test_a_channels_last_model_takes_channels_first_batches() -> None:
    last, x = OnnxAdapter(network(channels_last=True)), batch()
    port = last.inputs[0]
    assert (port.shape, port.own_shape) == ((None, 3, 16, 16), (None, 16, 16, 3))
    np.testing.assert_allclose(last.run(x, ["dense"])["dense"], reference(x)["dense"], atol=1e-5)
    np.testing.assert_array_equal(last.run(x, ["input"])["input"], x)
    np.testing.assert_array_equal(last.run(x, ["image"])["image"], x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("element", "dtype"), [(TensorProto.UINT8, "uint8"), (TensorProto.FLOAT16, "float16")]
)
def test_inputs_are_cast_to_the_element_type_of_the_model(element: int, dtype: str) -> None:
    typed = OnnxAdapter(network(element=element))
    x = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16)).astype(np.float32)
    assert typed.inputs[0].dtype == dtype
    np.testing.assert_allclose(
        typed.run(x, ["dense"])["dense"], reference(x)["dense"], rtol=1e-4, atol=1e-3
    )


def test_tensors_captured_by_a_subgraph_are_kept_by_the_cut() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["doubled", "x"], [name])  # both from outside
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [value])

    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["doubled"], "twice"),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If",
                ["positive"],
                ["chosen"],
                "choice",
                then_branch=branch("a", "Add"),
                else_branch=branch("b", "Mul"),
            ),
            helper.make_node("Relu", ["chosen"], ["y"], "relu"),
        ],
        "choosing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = np.array([[1, 2, 3]], np.float32)
    choosing = OnnxAdapter(model)
    np.testing.assert_array_equal(choosing.run(x, ["choice"])["choice"], 3 * x)
    np.testing.assert_array_equal(choosing.run(-x, ["choice"])["choice"], 2 * x * x)


def test_token_layers_are_told_from_spatial_ones_of_rank_3() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Flatten3", ["x"], ["f"], "patches", domain="made.up"),
            helper.make_node("LayerNormalization", ["t", "s"], ["n"], "norm"),
            helper.make_node("Relu", ["n"], ["r"], "relu"),
            helper.make_node("Conv", ["c", "w"], ["v"], "conv"),
            helper.make_node("Relu", ["v"], ["u"], "relu1d"),
        ],
        "layouts",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 7, 4]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 2, 9]),
        ],
        [],
        [
            numpy_helper.from_array(np.ones(4, np.float32), "s"),
            numpy_helper.from_array(np.ones((5, 2, 3), np.float32), "w"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("made.up", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    layers = read_layers(model, known_shapes(model))
    assert {name: (layer.kind, layer.layout) for name, (layer, _) in layers.items()} == {
        "patches": ("Flatten3", "features"),
        "norm": ("LayerNorm", "tokens"),
        "relu": ("ReLU", "tokens"),
        "conv": ("Conv1D", "spatial"),
        "relu1d": ("ReLU", "spatial"),
    }


def test_shape_arithmetic_is_no_layer() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["shape"], "shape"),
            helper.make_node("Gather", ["shape", "zero"], ["count"], "gather"),
            helper.make_node("Concat", ["count", "rest"], ["target"], "concat", axis=0),
            helper.make_node("Reshape", ["x", "target"], ["y"], "flat"),
        ],
        "bookkeeping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([6], np.int64), "rest"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert [(layer.name, layer.shape) for layer in OnnxAdapter(model).layers] == [
        ("flat", (None, 6))
    ]


def test_scaling_at_the_input_is_seen(adapter: OnnxAdapter) -> None:
    model = network()
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, helper.make_node("Div", ["x", "k"], ["scaled"], "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "k"))
    assert OnnxAdapter(model).scales_input
    assert not adapter.scales_input


@pytest.mark.slow
def test_a_network_exported_by_pytorch_has_pytorchs_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 8, 3, stride=2, groups=8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(72, 4),
    ).eval()
    path, x = tmp_path / "exported.onnx", batch(4)
    torch.onnx.export(
        module,
        (torch.from_numpy(x),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("N")},),
    )
    exported = OnnxAdapter.from_file(path)
    assert exported.fixed_batch is None
    value, expected = torch.from_numpy(x), {}
    with torch.no_grad():
        for layer in module:
            value = layer(value)
            expected[type(layer).__name__] = value.numpy()  # the last one of each class
    kinds = {"ReLU": "ReLU", "MaxPool2d": "MaxPool2D", "Linear": "Dense"}
    for name, kind in kinds.items():
        last = [layer.name for layer in exported.layers if layer.kind == kind][-1]
        found = exported.run(x, [last])[last]
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exported.run(x)["output"], expected["Linear"], atol=1e-5)


# ---- identity -------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_weights_and_not_where_they_are_kept(tmp_path: Path) -> None:
    first, again, other = network(), network(), network()
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(weights()["w1"] + 1e-6, other.graph.initializer[0].name)
    )
    outside = network()
    onnx.save_model(
        outside,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    prints = [OnnxAdapter(model).fingerprint for model in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64
    changed = tmp_path / "m.bin"
    before = OnnxAdapter.from_file(tmp_path / "m.onnx").fingerprint
    data = bytearray(changed.read_bytes())
    data[0] ^= 1
    changed.write_bytes(bytes(data))
    assert OnnxAdapter.from_file(tmp_path / "m.onnx").fingerprint != before


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_external_data_is_read_or_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("pellucid.adapters.onnx.files._IN_MEMORY", limit)
    monkeypatch.setattr("pellucid.adapters.onnx.files._SMALL", 100)
    path = tmp_path / "m.onnx"
    onnx.save_model(network(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    x = batch()
    values = OnnxAdapter.from_file(path).run(x, ["dense", "pool", "output"])
    for name in ("dense", "pool"):
        np.testing.assert_allclose(values[name], reference(x)[name], rtol=1e-4, atol=1e-5)


def test_a_model_too_large_for_one_protobuf_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_LIMIT", 100)
    x = batch()
    large = OnnxAdapter(network())
    np.testing.assert_allclose(large.run(x, ["pool"])["pool"], reference(x)["pool"], atol=1e-5)
    assert large.model.graph.initializer[0].raw_data  # saving did not empty the model


def test_threads_do_not_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= operator_threads() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("2,1", 2), ("0", None), ("", None)])
def test_threads_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = operator_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert operator_threads() == (expected or every)
    options = open_session(network(), source="network").get_session_options()
    assert options.intra_op_num_threads == (expected or every)


# ---- what it refuses ------------------------------------------------------------------------


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnsupportedError, match="CUDA"):
        OnnxAdapter(network(), device="cuda")
    with pytest.raises(InputError, match="device"):
        OnnxAdapter(network(), device="tpu")


def test_cuda_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers: make(model, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(UnsupportedError, match="did not start"):
        OnnxAdapter(network(), device="cuda")


def test_a_missing_onnxruntime_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pellucid\[cpu\]"):
        OnnxAdapter(network())


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_files_that_are_no_onnx_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = network().SerializeToString()
    for data in (
        b"",
        b"<html><body>Not found</body></html>",
        whole[: len(whole) // 2],
        whole[:-1],
        b"\x08\x09" + bytes(range(256)),
        b"PK\x03\x04 and so on",
    ):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        with pytest.raises(LoadError) as error:
            OnnxAdapter.from_file(path)
        assert "model.onnx" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(LoadError, match=str(tmp_path)):
            OnnxAdapter.from_file(path)


def test_a_missing_initializer_is_named(tmp_path: Path) -> None:
    model = network()
    del model.graph.initializer[0]
    with pytest.raises(LoadError, match="w1"):
        OnnxAdapter.from_file(saved(tmp_path, model))


def test_a_graph_that_the_checker_rejects_is_refused(tmp_path: Path) -> None:
    model = network()
    del model.graph.node[1].output[:]
    model.graph.node[1].output.append("c1")  # two nodes give one tensor
    with pytest.raises(LoadError, match="not a valid ONNX model"):
        OnnxAdapter.from_file(saved(tmp_path, model))


def test_an_unknown_operator_is_named_in_one_line(tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].op_type = "Sparkle"
    model.graph.node[1].domain = "made.up"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    with pytest.raises(LoadError, match="Sparkle") as error:
        OnnxAdapter.from_file(saved(tmp_path, model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "missing.bin", ""])
def test_external_data_outside_the_folder_or_missing_is_refused(
    tmp_path: Path, location: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    folder = tmp_path / "inside"
    folder.mkdir()
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(LoadError, match=r"model\.onnx"):
        OnnxAdapter.from_file(saved(folder, model))


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(LoadError, match="outside its own folder"):
        OnnxAdapter.from_file(saved(folder, model))


def test_a_batch_of_the_wrong_shape_is_refused(adapter: OnnxAdapter) -> None:
    for shape in ((2, 3, 15, 16), (2, 16, 16, 3), (2, 3, 16)):
        with pytest.raises(PellucidError, match="channels first"):
            adapter.run(np.zeros(shape, np.float32))

"""What cannot be exported or read is said in one line, and everything else still works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pellucid
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.errors import LoadError, PellucidError, UnsupportedError


def test_a_branch_on_values_in_pytorch_is_named() -> None:
    import torch

    from pellucid.adapters.torch.adapter import TorchAdapter

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            if y.mean() > 0:
                y = -y
            return y

    adapter = TorchAdapter(Branching())
    with pytest.raises(UnsupportedError, match=r"depends on the values.*mean\(\) > 0") as error:
        _ = adapter.graph
    assert "\n" not in str(error.value)
    x = np.zeros((2, 3, 8, 8), np.float32)
    assert adapter.run(x, ["conv"])["conv"].shape == (2, 4, 6, 6)


def test_what_has_no_export_is_not_exported_for_every_explanation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from pellucid.adapters.torch.adapter import TorchAdapter

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = torch.nn.Conv2d(3, 4, 4, 4), torch.nn.LayerNorm(4)

        def forward(self, x):
            tokens = self.norm(self.patches(x).flatten(2).mT).mean(1)
            return tokens if tokens.sum() > 0 else -tokens

    adapter, tried = TorchAdapter(Tokens()), []
    own = adapter._export
    monkeypatch.setattr(adapter, "_export", lambda: tried.append(1) or own())
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    for _ in range(2):
        assert pellucid.explain(adapter, x)[0].layer == "patches"
    assert len(tried) == 1
    assert not adapter.has_form
    with torch.no_grad():
        adapter.module.norm.weight.mul_(2)
    with pytest.raises(UnsupportedError, match="depends on the values"):
        _ = adapter.form
    assert len(tried) == 2  # of other weights nothing is known


def test_an_operation_that_only_the_graph_names_is_refused_with_the_layers_around_it() -> None:
    from pellucid.adapters.torch.adapter import TorchAdapter
    from pellucid.errors import LayerError
    from tests.graph.networks import adapter
    from tests.twins import TWINS

    known, x = adapter("residual", "torch"), TWINS["residual"].inputs(1)
    assert known.graph["block1.add"].inputs == ("block1.norm2", "relu")
    fresh = TorchAdapter(TWINS["residual"].torch())
    fresh.batch(TWINS["residual"].inputs(2))
    for one in (known, fresh):  # with the graph in memory, and with that kept on disk
        with pytest.raises(LayerError, match=r"no layer.* 'block1\.relu:1' or 'block1\.norm2'"):
            one.run(x, ["block1.add"])
    with pytest.raises(LayerError, match=r"There is no layer 'block1\.sub'"):
        known.run(x, ["block1.sub"])


def test_an_operation_of_tensorflow_without_an_onnx_form_is_named() -> None:
    import keras
    import tensorflow as tf

    from pellucid.adapters.keras.adapter import KerasAdapter

    class Odd(keras.layers.Layer):
        def call(self, x):
            return tf.math.betainc(tf.abs(x) + 1, tf.abs(x) + 1, tf.sigmoid(x))

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, Odd(name="odd")(keras.layers.Conv2D(4, 3)(image)))
    adapter = KerasAdapter(model)
    with pytest.raises(UnsupportedError, match=r"Betainc .*odd") as error:
        _ = adapter.graph
    assert "\n" not in str(error.value)
    x = np.zeros((2, 3, 8, 8), np.float32)
    assert adapter.run(x, ["odd"])["odd"].shape == (2, 4, 6, 6)


def saved(folder: Path, nodes: list[onnx.NodeProto], *tensors: TensorProto) -> Path:
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        list(tensors),
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("made.up", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    with pytest.raises(LoadError, match=r"model\.onnx"):
        OnnxAdapter.from_file(saved(tmp_path, nodes))


def test_a_small_file_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    claim = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[30_000, 25_000])
    path = saved(tmp_path, [helper.make_node("Add", ["x", "w"], ["y"])], claim)
    assert path.stat().st_size < 1000
    with pytest.raises(LoadError, match=r"model\.onnx"):
        OnnxAdapter.from_file(path)


def test_shape_arithmetic_that_claims_gigabytes_is_not_carried_out(tmp_path: Path) -> None:
    shape = onnx.numpy_helper.from_array(np.array([30_000, 25_000]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], "zeros"),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], "sum", keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"], "add"),
    ]
    from pellucid.graph.form import OnnxForm, PortForm
    from pellucid.graph.reading import read_graph

    model = onnx.load(saved(tmp_path, nodes, shape))
    form = OnnxForm(model, (PortForm("input", "x"),), (PortForm("output", "y"),))
    graph = read_graph(form)
    assert [layer.name for layer in graph] == ["input", "add", "output"]
    assert graph["add"].shape == (None, 3)


def test_an_unknown_operator_of_a_file_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sparkle", ["x"], ["y"], "glitter", domain="made.up")]
    with pytest.raises(PellucidError, match="Sparkle"):
        OnnxAdapter.from_file(saved(tmp_path, nodes))


def test_a_graph_with_an_unknown_operator_can_be_read(tmp_path: Path) -> None:
    from pellucid.graph.form import OnnxForm, PortForm
    from pellucid.graph.reading import read_graph

    nodes = [
        helper.make_node("Sparkle", ["x"], ["a"], "glitter", domain="made.up"),
        helper.make_node("Relu", ["a"], ["y"], "relu"),
    ]
    model = onnx.load(saved(tmp_path, nodes))
    form = OnnxForm(model, (PortForm("input", "x"),), (PortForm("output", "y"),))
    graph = read_graph(form)
    assert graph["glitter"].kind == "Sparkle"
    assert graph["relu"].inputs == ("glitter",)

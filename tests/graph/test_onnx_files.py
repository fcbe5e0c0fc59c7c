"""Layers of ONNX files: by the names that exporters left, and by pattern where there are none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.errors import LayerError
from pellucid.graph.layer_table import shown_shape
from pellucid.graph.layers import LayerGraph
from tests.graph.networks import values
from tests.twins import TWINS


def anonymous(name: str) -> LayerGraph:
    """A twin's graph from a file without any name or metadata."""
    model = TWINS[name].onnx(optimize=False)
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    return OnnxAdapter(model).graph


def test_modules_are_found_by_pytorchs_metadata() -> None:
    graph = OnnxAdapter(TWINS["residual"].onnx(optimize=False)).graph
    assert {"conv", "norm", "block1.conv1", "stage.block2.relu:1", "dense"} <= {
        layer.name for layer in graph
    }
    assert graph["stage.block1.shortcut_norm"].path == ("stage", "stage.block1")
    assert graph["stage.block1.shortcut_norm"].framework_class == "BatchNorm2d"
    assert graph.parameters == 6514


def test_attention_in_primitives_is_one_layer() -> None:
    kinds = Counter(layer.kind for layer in anonymous("vit"))
    assert kinds["Attention"] == 2
    assert kinds["Dense"] == 2 * 6 + 1
    assert not kinds["MatMul"]
    assert not kinds["Softmax"]


def node(operator: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def read(nodes: list[onnx.NodeProto], **arrays: np.ndarray) -> LayerGraph:
    """The graph of a file whose input is `x`, (N, 3, 8), and whose output is `y`."""
    graph = helper.make_graph(
        nodes,
        "spelled out",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 8])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return OnnxAdapter(helper.make_model(graph, opset_imports=opsets, ir_version=9)).graph


NUMBERS = {
    "half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5),
    "two": np.float32(2), "eps": np.float32(1e-5), "last": np.array([-1]),
    "scale": np.ones(8, np.float32), "shift": np.ones(8, np.float32),
}  # fmt: skip
GELU = [
    node("Div", "x root", "a"), node("Erf", "a", "b"), node("Add", "b one", "c"),
    node("Mul", "x c", "d"), node("Mul", "d half", "y"),
]  # fmt: skip
LAYER_NORM = [
    node("ReduceMean", "x last", "m"), node("Sub", "x m", "a"), node("Pow", "a two", "b"),
    node("ReduceMean", "b last", "v"), node("Add", "v eps", "e"), node("Sqrt", "e", "s"),
    node("Div", "a s", "n"), node("Mul", "n scale", "w"), node("Add", "w shift", "y"),
]  # fmt: skip
SILU = [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")]
RMS_NORM = [
    node("Pow", "x two", "b"), node("ReduceMean", "b last", "v"), node("Add", "v eps", "e"),
    node("Sqrt", "e", "s"), node("Div", "x s", "n"), node("Mul", "n scale", "y"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "nodes", "parameters"),
    [
        ("GELU", GELU, 0), ("LayerNorm", LAYER_NORM, 16), ("SiLU", SILU, 0),
        ("RMSNorm", RMS_NORM, 8),
    ],
)  # fmt: skip
def test_layers_in_primitives_are_one_layer(kind: str, nodes: list, parameters: int) -> None:
    graph = read(nodes, **NUMBERS)
    (layer,) = [layer for layer in graph if not layer.is_port]
    assert (layer.kind, layer.inputs, layer.outputs) == (kind, ("input",), ("output",))
    assert layer.shape == (None, 3, 8)
    assert layer.parameters == parameters
    assert layer.tensor == "y"


def test_a_pattern_that_something_else_reads_into_stays_apart() -> None:
    for last in ("d c", "d x"):
        graph = read([*GELU[:-1], node("Mul", last, "z"), node("Mul", "z b", "y")], **NUMBERS)
        assert "GELU" not in {layer.kind for layer in graph}


def test_a_dense_product_takes_its_bias_in() -> None:
    nodes = [node("MatMul", "x w", "p"), node("Add", "p shift", "y")]
    graph = read(nodes, w=np.ones((8, 8), np.float32), shift=np.ones(8, np.float32))
    (layer,) = [layer for layer in graph if not layer.is_port]
    assert (layer.kind, layer.parameters, layer.multiply_adds) == ("Dense", 72, 3 * 8 * 8)


def test_shape_arithmetic_connects_nothing() -> None:
    nodes = [
        node("Relu", "x", "r"), node("Shape", "r", "s"),
        node("Sigmoid", "x", "g"), node("Reshape", "g s", "y"),
    ]  # fmt: skip
    graph = read(nodes)
    assert graph["y"].inputs == ("g",)
    assert graph["r"].outputs == ()


def test_every_tensor_of_a_file_keeps_its_value() -> None:
    model = TWINS["inception"].onnx(optimize=False)
    adapter, x = OnnxAdapter(model), TWINS["inception"].inputs(2)
    for name, value in values(adapter.graph, x).items():
        if name.startswith("output"):
            continue
        np.testing.assert_allclose(adapter.run(x, [name])[name], value, rtol=1e-4, atol=1e-5)


# ---- walking, by hand -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual() -> LayerGraph:
    return OnnxAdapter(TWINS["residual"].onnx(optimize=False)).graph


def test_ancestors_and_descendants(residual: LayerGraph) -> None:
    assert residual.ancestors("norm") == {"input", "conv"}
    assert residual.descendants("dense") == {"softmax", "output"}
    with pytest.raises(LayerError, match="Did you mean 'block1"):
        residual.ancestors("block1.conv3")


def test_paths_take_the_block_and_the_shortcut(residual: LayerGraph) -> None:
    found = list(residual.paths("relu", "block1.relu:1"))
    add = residual["block1.relu:1"].inputs[0]
    block = [f"block1.{part}" for part in ("conv1", "norm1", "relu", "conv2", "norm2")]
    assert sorted(found) == sorted(
        [("relu", add, "block1.relu:1"), ("relu", *block, add, "block1.relu:1")]
    )
    assert list(residual.paths("dense", "conv")) == []
    assert list(residual.paths("conv", "conv")) == [("conv",)]


def test_slicing_from_layer_to_layer(residual: LayerGraph) -> None:
    part = residual["block1.conv1":"block1.norm2"]
    assert next(layer.name for layer in part) == "block1.conv1"
    assert len(part) == 5
    assert part["block1.conv1"].inputs == ()
    assert len(residual[:]) == len(residual)
    with pytest.raises(LayerError, match="No way leads"):
        residual["dense":"conv"]


def test_networkx_has_the_same_connections(residual: LayerGraph) -> None:
    graph = residual.to_networkx()
    assert set(graph.edges) == set(residual.edges)
    assert graph.nodes["conv"]["kind"] == "Conv2D"


def test_the_table_names_layers_shapes_and_totals(residual: LayerGraph) -> None:
    lines = str(residual).splitlines()
    (row,) = [line for line in lines if line.startswith("stage.block1.conv1 ")]
    shape = shown_shape((None, 12, 8, 8)).split()
    assert row.split() == ["stage.block1.conv1", "Conv2D", *shape, "864", "55.30", "k",
                           "block1.relu:1"]  # fmt: skip
    assert "6,514 parameters" in lines[-1]

"""A file that onnxruntime optimised is explained as the file that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import pellucid
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.errors import UnsupportedError
from tests.twins import TWINS


def optimised(folder: Path, level: str) -> OnnxAdapter:
    """The residual network as an optimiser saves it."""
    plain, saved = folder / "plain.onnx", folder / f"{level}.onnx"
    onnx.save(TWINS["residual"].onnx(), plain)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(saved)
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    return OnnxAdapter.from_file(saved)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> OnnxAdapter:
    return optimised(tmp_path_factory.mktemp("extended"), "ORT_ENABLE_EXTENDED")


METHODS = ["grad-cam", "guided-backprop", "fullgrad", "lrp", "score-cam"]


@pytest.mark.parametrize("method", METHODS)
def test_explanations_are_the_same(fused: OnnxAdapter, method: str) -> None:
    assert "FusedConv" in {node.op_type for node in fused.model.graph.node}
    plain, x = pellucid.load(TWINS["residual"].onnx()), TWINS["residual"].inputs(1)
    one, other = (pellucid.explain(model, x, method=method) for model in (plain, fused))
    pairs = zip(*(e if isinstance(e, list) else [e] for e in (one, other)), strict=True)
    for expected, found in pairs:
        scale = np.abs(expected.attribution).max()
        np.testing.assert_allclose(
            found.attribution, expected.attribution, rtol=1e-4, atol=1e-5 * scale
        )


def test_the_layers_have_shapes_kinds_and_costs(fused: OnnxAdapter) -> None:
    plain = pellucid.load(TWINS["residual"].onnx())
    names = {n.name for n in fused.model.graph.node if n.op_type == "FusedConv"}
    assert names
    assert {fused.layer(name).kind for name in names} == {"Conv2D"}
    assert all(layer.shape for layer in fused.layers)
    assert fused.graph.multiply_adds == plain.graph.multiply_adds


def test_a_file_for_one_kind_of_processor_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = optimised(tmp_path, "ORT_ENABLE_ALL")
    if not any("nchwc" in node.domain for node in model.model.graph.node):
        pytest.skip("onnxruntime has no blocked convolutions on this processor")
    with pytest.raises(UnsupportedError, match=r"nchwc\..*ORT_ENABLE_EXTENDED"):
        pellucid.explain(model, TWINS["residual"].inputs(1), method="saliency")

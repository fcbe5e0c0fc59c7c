"""ONNX files that no one here made: the text classifier, recogniser and detector of PaddlePaddle.

The oracle is numeric differentiation in float64, by onnx's own evaluator in NumPy. In float32 a
difference along a direction is noise over a step: where the step is large enough for the noise, it
crosses kinks of rectifiers, and the two agree to a percent only, which would hide a wrong rule. In
float64 a step of 1e-7 crosses none: analytic and numeric gradient then agree to 1e-7 in all three
networks, while at 1e-5 the recogniser is off by 1e-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from skimage import data

import pellucid
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.graph.prepare import prepare

MODELS = {
    "classifier": ("ch_ppocr_mobile_v2.0_cls_infer", (48, 96)),
    "recogniser": ("ch_PP-OCRv4_rec_infer", (48, 64)),
    "detector": ("ch_PP-OCRv4_det_infer", (32, 64)),
}
PAPER = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "scale": 1 / 255}


def path_of(name: str) -> Path:
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr_onnxruntime is not installed")
    return Path(spec.origin).parent / "models" / f"{MODELS[name][0]}.onnx"


@cache
def model(name: str) -> OnnxAdapter:
    return OnnxAdapter.from_file(path_of(name))


def in_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float32 made float64."""
    double = onnx.ModelProto()
    double.CopyFrom(proto)
    graph = double.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in tensors_of(graph):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return double


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))


def text(name: str) -> np.ndarray:
    height, width = MODELS[name][1]
    crop = data.page()[20 : 20 + height, 10 : 10 + width].astype(np.float32)
    return np.repeat((crop / 127.5 - 1)[None, None], 3, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_differences_in_float64(name):
    adapter, x, rng = model(name), text(name), np.random.default_rng(0)
    logits = adapter.run(x, ["logits"])["logits"]
    cotangent = (rng.standard_normal(logits.shape) / logits.size).astype(np.float32)
    _, gradients = adapter.pullback(x, lambda _: {"logits": cotangent}, ["input"])
    part = adapter.part([adapter.tensor("logits")])
    evaluator = ReferenceEvaluator(in_float64(ir.to_proto(prepare(part))))

    def logits_at(x: np.ndarray) -> np.ndarray:
        return evaluator.run(None, {adapter.inputs[0].own_name: x})[0]

    exact = logits_at(x.astype(np.float64))
    assert exact.dtype == np.float64
    assert np.abs(exact - logits).max() < 1e-4 * np.abs(exact).max()  # it is the same network
    length = np.linalg.norm(gradients["input"])
    step = 1e-7
    for _ in range(3):
        direction = rng.standard_normal(x.shape)
        ahead, behind = (logits_at(x + sign * step * direction) for sign in (1, -1))
        numeric = ((ahead - behind) * cotangent).sum() / (2 * step)
        analytic = (gradients["input"] * direction).sum()
        assert abs(analytic - numeric) < 1e-4 * length


def test_the_detectors_map_lies_on_the_lines_of_text():
    detector = pellucid.load(path_of("detector"), preprocess={**PAPER, "size": (192, 384)})
    page = np.repeat(data.page()[:, :, None], 3, axis=2)
    explanation = pellucid.explain(detector, page, target=0)
    text = detector.predict(page)[0, 0, :191] > 0.5  # (192, 384), stretched from 191 rows
    assert 0.05 < text.mean() < 0.3
    assert explanation.heatmap[text].sum() / explanation.heatmap.sum() > 0.6
    assert explanation.heatmap[128:158, 200:].max() < 0.1  # the empty part of the page


def test_a_region_of_a_dense_output_is_a_target():
    detector = pellucid.load(path_of("detector"), preprocess={**PAPER, "size": (192, 384)})
    page = np.repeat(data.page()[:, :, None], 3, axis=2)

    def title(output):
        functional = np.zeros_like(output)
        functional[:, :, 18:28, 15:285] = 1 / 2700
        return (functional * output).sum((1, 2, 3)), functional

    layer = next(layer.name for layer in detector.layers if layer.kind == "Concat")
    whole = pellucid.explain(detector, page, target=0, layer=layer).heatmap
    part = pellucid.explain(detector, page, target=title, layer=layer).heatmap
    inside = (slice(10, 35), slice(0, 300))
    assert part[inside].sum() / part.sum() > whole[inside].sum() / whole.sum()
    assert part[:40].max() == pytest.approx(1, abs=0.01)

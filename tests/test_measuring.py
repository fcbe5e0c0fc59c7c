"""Numbers per layer, on a network whose numbers can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.adapters.base import Adapter
from pellucid.errors import InputError
from pellucid.graph.measuring import _by_layer, layer_values
from pellucid.measuring import MEASURES

X = np.arange(1, 19, dtype=np.float32).reshape(2, 1, 3, 3)  # two images, all positive


class Doubled(nn.Module):
    """A channel that passes, one that is turned around; both rectified, added to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(18, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
            self.fc.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1).expand(3, 18))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        return self.fc(torch.flatten(x + x, 1))


@pytest.fixture(scope="module")
def model() -> Adapter:
    adapter = pellucid.load(Doubled().eval())
    adapter.batch(X)
    return adapter


def test_mean_activation_is_that_of_absolute_values(model: Adapter) -> None:
    found = pellucid.measure(model, X, "mean_activation").values
    assert found["conv"] == pytest.approx(X.mean())  # as large in both channels
    assert found["relu"] == pytest.approx(X.mean() / 2)  # one of them is 0
    assert found["add"] == pytest.approx(X.mean())  # spelled out in the code, not a module


def test_a_channel_is_dead_if_it_is_zero_everywhere(model: Adapter) -> None:
    paint = pellucid.measure(model, X, "dead_channels")
    assert paint.values["conv"] == 0.0
    assert paint.values["relu"] == 0.5
    assert paint.shown(0.5) == "50 %"
    alive_in_one = np.stack([X[0], -X[1]])
    assert pellucid.measure(model, alive_in_one, "dead_channels").values["relu"] == 0.0


def test_gradient_energy_is_the_sum_of_squares(model: Adapter) -> None:
    found = pellucid.measure(model, X, "gradient_energy").values
    assert found["fc"] == 1.0  # one-hot at the top class
    assert found["relu"] == pytest.approx(18 * (2 * 3.0) ** 2)  # class 2, and the sum doubles
    assert found["conv"] == pytest.approx(9 * (2 * 3.0) ** 2)  # through one channel only
    found = pellucid.measure(model, X, "gradient_energy", target=0).values
    assert found["conv"] == pytest.approx(9 * (2 * 1.0) ** 2)


def test_every_layer_that_computes_has_a_time(model: Adapter) -> None:
    paint = pellucid.measure(model, X, "time")
    assert {"conv", "relu", "add", "fc"} <= set(paint.values)
    assert min(paint.values.values()) > 0
    assert paint.unit == "milliseconds"


def test_times_are_medians_over_runs_of_sums_over_nodes() -> None:
    def event(node: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{node}_kernel_time", "dur": microseconds}

    runs = [(900, 900), (10, 1), (50, 2), (20, 3)]  # the first warms up
    events = [e for a, b in runs for e in (event("a", a), event("b", b), event("other", 7))]
    events.append({"cat": "Session", "name": "model_run", "dur": 10**6})
    found = _by_layer(events, {"a": "layer", "b": "layer"}, runs=3)
    assert found == {"layer": pytest.approx(23e-6)}  # of 11, 52 and 23


def test_values_are_fetched_in_parts_that_fit_in_memory(
    model: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {layer.name: value for layer, value in layer_values(model.graph, (X,))}
    monkeypatch.setattr("pellucid.graph.measuring._AT_ONCE", 1)
    for layer, value in layer_values(model.graph, (X,)):
        np.testing.assert_array_equal(value, whole[layer.name])
    np.testing.assert_array_equal(whole["conv"], model.run(X, ["conv"])["conv"])


@pytest.mark.parametrize("what", MEASURES)
def test_measures_can_be_painted(model: Adapter, tmp_path: Path, what: str) -> None:
    path = model.graph.draw(tmp_path / "a.svg", paint=pellucid.measure(model, X, what))
    assert MEASURES[what].title in path.read_text()


def test_an_unknown_measure_is_said(model: Adapter) -> None:
    with pytest.raises(InputError, match="dead_channels"):
        pellucid.measure(model, X, "dead_chanels")

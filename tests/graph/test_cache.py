"""Forms on disk: found again, never trusted when damaged."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pellucid.graph import cache
from pellucid.graph.form import Call, OnnxForm, PortForm
from tests.twins import TWINS

KEY = ["torch", "fingerprint"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    return tmp_path / "forms"


class Maker:
    """Makes a form and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> OnnxForm:
        self.count += 1
        call = Call("conv1", "Conv2D", "Conv2d", shape=(None, 8, 32, 32), outputs=("conv1",),
                    weights={"conv1.weight": 216})  # fmt: skip
        ports = (PortForm("input", "image", to_own=(0, 2, 3, 1)),), (PortForm("output", "y"),)
        return OnnxForm(TWINS["plain"].onnx(), *ports, (call,), "/", {"conv1.weight": 216}, "net")


def test_a_form_is_made_once_and_comes_back_equal(place: Path) -> None:
    make = Maker()
    first, second = cache.cached_form(KEY, make), cache.cached_form(KEY, make)
    assert make.count == 1
    assert second == first


def test_another_key_is_another_entry(place: Path) -> None:
    make = Maker()
    for key in (["torch", "a"], ["torch", "b"], ["torch", "a", ""], ["torcha"]):
        cache.cached_form(key, make)
    assert make.count == len(cache.entries()) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_entry_is_made_anew(place: Path, damage: str) -> None:
    make = Maker()
    form = cache.cached_form(KEY, make)
    (path,) = place.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(
        {"cut": whole[:-7], "flipped": flipped, "empty": b"", "other": b"x" * 99}[damage]
    )
    assert cache.cached_form(KEY, make) == form
    assert make.count == 2
    assert path.read_bytes() == whole


def test_a_new_version_of_the_cache_finds_nothing_old(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    cache.cached_form(KEY, make)
    monkeypatch.setattr(cache, "_VERSION", "another")
    cache.cached_form(KEY, make)
    assert make.count == 2


def test_writers_at_the_same_time_leave_one_whole_entry(place: Path) -> None:
    make = Maker()
    with ThreadPoolExecutor(4) as pool:
        forms = list(pool.map(lambda _: cache.cached_form(KEY, make), range(4)))
    assert len(list(place.iterdir())) == 1
    assert all(form == forms[0] for form in forms)
    count = make.count
    assert cache.cached_form(KEY, make) == forms[0]
    assert make.count == count


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "file"))
    assert cache.cached_form(KEY, Maker()).name == "net"
    monkeypatch.setenv("PELLUCID_CACHE", "off")
    assert cache.cached_form(KEY, Maker()).name == "net"
    assert cache.entries() == []


def test_entries_are_listed_and_cleared(place: Path) -> None:
    cache.cached_form(["a"], Maker())
    cache.cached_form(["b"], Maker())
    entries = cache.entries()
    assert cache.clear() == sum(entry.bytes for entry in entries)
    assert cache.entries() == []


def test_the_longest_unused_makes_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        cache.cached_form([name], Maker())
    oldest = cache.entries()[-1]
    os.utime(oldest.path, (0, 0))
    monkeypatch.setattr(cache, "_MOST_BYTES", int(2.5 * oldest.bytes))
    cache.cached_form(["c"], Maker())
    assert oldest.path not in [entry.path for entry in cache.entries()]
    assert len(cache.entries()) == 2


def test_a_second_adapter_reads_what_the_first_one_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pellucid.adapters.torch.adapter import TorchAdapter

    twin = TWINS["plain"]
    first, second = TorchAdapter(twin.torch()), TorchAdapter(twin.torch())
    for adapter in (first, second):
        adapter.batch(twin.inputs())
    expected = first.graph
    monkeypatch.setattr(second, "_export", lambda: pytest.fail("exported again"))
    assert second.graph == expected
    with __import__("torch").no_grad():
        second.module.conv1.weight.mul_(2)
    with pytest.raises(BaseException, match="exported again"):
        _ = second.graph


def test_a_second_start_runs_no_forward_pass(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.adapters.torch import adapter as torch_adapter
    from pellucid.adapters.torch.adapter import TorchAdapter

    expected = TorchAdapter(TWINS["residual"].torch()).graph
    monkeypatch.setattr(torch_adapter, "probe", lambda *_: pytest.fail("ran the network"))
    again = TorchAdapter(TWINS["residual"].torch())
    assert again.graph == expected
    other = TorchAdapter(TWINS["residual"].torch(), preprocess={"size": (64, 64)})
    with pytest.raises(BaseException, match="ran the network"):
        _ = other.graph


def test_a_module_that_is_set_otherwise_is_exported_anew(place: Path) -> None:
    import torch

    class Scaled(torch.nn.Module):
        def __init__(self, by: int) -> None:
            super().__init__()
            self.conv, self.by = torch.nn.Conv2d(3, 4, 3, stride=2), by
            torch.nn.init.ones_(self.conv.weight)
            torch.nn.init.ones_(self.conv.bias)

        def forward(self, x):
            y = self.conv(x)
            return y.flatten(1) if self.by else y

    from pellucid.adapters.torch.adapter import TorchAdapter

    one, other = (TorchAdapter(Scaled(by)) for by in (0, 1))
    assert "flatten" not in one.graph
    assert {"Flatten", "Reshape"} & {layer.kind for layer in other.graph}
    assert one.fingerprint != other.fingerprint


def test_notes_are_kept_cleared_and_never_trusted_when_damaged(place: Path) -> None:
    assert cache.cached_note(["a"], lambda: [[1, 2]]) == [[1, 2]]
    assert cache.cached_note(["a"], lambda: pytest.fail("made again")) == [[1, 2]]
    (path,) = place.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.cached_note(["a"], lambda: "new") == "new"
    cache.clear()
    assert not list(place.iterdir())

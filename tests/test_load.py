"""`load`: every kind of source gives the right adapter with the right values, and no code runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.adapters.load import load
from pellucid.errors import InputError, LoadError, UnsupportedError

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.relu(self.conv(x)))


class Network(torch.nn.Module):
    """A residual network with an in-place rectifier that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        )
        self.block = Block()
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.pool(self.block(self.stem(x))).flatten(1)).softmax(1)


def made() -> torch.nn.Module:
    return Network().eval()


def broken() -> torch.nn.Module:
    raise ValueError("no such thing")


READY = made()
LAYERS = ("stem.0", "stem", "block.relu", "block.relu:1", "block", "pool", "head")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A path that exists only if a file's code has run."""
    return tmp_path / "it-ran"


# ---- live models ----------------------------------------------------------------------------


def test_importing_load_imports_no_framework() -> None:
    code = "import sys, pellucid.adapters.load; print([m for m in ('torch', 'tensorflow', 'keras', 'onnx', 'onnxruntime') if m in sys.modules])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_live_module_and_an_adapter_are_taken_as_they_are() -> None:
    module = made()
    adapter = load(module, labels=["a", "b", "c", "d", "e"])
    assert adapter.framework == "torch"
    assert adapter.module is module
    assert load(adapter) is adapter
    assert list(load(adapter, labels=["x"]).labels) == ["x"]


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(InputError, match="dict"):
        load({"weights": 1})


# ---- TorchScript and exported programs ------------------------------------------------------


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(made()), path)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(made(), torch.from_numpy(X)), path)


def exported(path: Path, batch: int = 2, free: bool = True) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(made(), (torch.from_numpy(X[:batch]),), dynamic_shapes=shapes)
    torch.export.save(program, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (scripted, "model.pt"),
        (traced, "model.pth"),
        (exported, "model.pt2"),
        (lambda path: exported(path, 1, free=False), "model.pt2"),
    ],
)
def test_files_give_the_values_and_gradients_of_the_module_they_were_made_from(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    write(tmp_path / name)
    found, expected = load(tmp_path / name), load(made())
    assert [(a.name, a.kind, a.shape) for a in found.layers] == [
        (a.name, a.kind, a.shape) for a in expected.layers
    ]
    assert found.outputs[0].activation == "softmax"
    names = (*LAYERS, "logits", "output")
    for rule in ("exact", "guided"):

        def seed(values):
            return {"logits": np.sign(values["logits"])}

        results = [
            adapter.pullback(X, seed, ("input", *LAYERS[:5]), names, rule)
            for adapter in (found, expected)
        ]
        for mine, theirs in zip(*results, strict=True):
            for key in mine:
                np.testing.assert_allclose(mine[key], theirs[key], atol=1e-6, err_msg=key)


def test_a_live_script_module_is_taken_too() -> None:
    script = torch.jit.script(made())
    np.testing.assert_allclose(
        load(script).run(X, ["pool"])["pool"], load(made()).run(X, ["pool"])["pool"], atol=1e-6
    )


class Branching(torch.nn.Module):
    """Control flow, lists and scalars, as scripting keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x, scale: float = 2.0):
        found = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            found.append(x.mean((2, 3)))
        if x.sum() > 0 and len(found) == 3:
            found[0] = found[0] * scale
        total = torch.zeros_like(found[0])
        for i in range(len(found)):
            total = total + found[i] * (i + 1)
        height, width = x.shape[2:]
        return total / (height * width // 2)


def test_scripted_control_flow_runs_as_the_module_does() -> None:
    from pellucid.adapters.torch.torchscript import from_script

    torch.manual_seed(0)
    module, x = Branching(), torch.from_numpy(X)
    for given in (x, -x):
        expected = module(given)
        assert torch.equal(from_script(torch.jit.script(module))(given), expected)


# ---- nothing in a file runs -----------------------------------------------------------------


def test_a_pickled_module_is_refused_and_never_unpickled(tmp_path: Path, traces: Path) -> None:
    module = made()
    module.extra = Harmful(traces)
    torch.save(module, tmp_path / "whole.pt")
    torch.save(module, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful(traces)))
    for name in ("whole.pt", "old.pt", "bare.pth"):
        with pytest.raises(LoadError, match="runs whatever code"):
            load(tmp_path / name)
    assert not traces.exists()


def test_a_pickled_module_opens_when_code_is_allowed(tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), tmp_path / "whole.pt")
    assert load(tmp_path / "whole.pt", allow_code=True).layers[0].kind == "Conv2D"


def test_harmful_weights_are_never_unpickled(tmp_path: Path, traces: Path) -> None:
    torch.save({"state_dict": made().state_dict(), "more": Harmful(traces)}, tmp_path / "w.pth")
    with pytest.raises(LoadError, match="could run code"):
        load(made(), weights=tmp_path / "w.pth")
    assert not traces.exists()


def rewritten(path: Path, change: Callable[[str, bytes], bytes], extra: str = "") -> Path:
    changed = path.with_name("changed" + path.suffix)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
        if extra:
            new.writestr(old.namelist()[0].partition("/")[0] + "/" + extra, b"harm")
    return changed


def edited(path: Path, old: str, new: str) -> Path:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        text = data.decode()
        assert old in text
        return text.replace(old, new).encode()

    return rewritten(path, change)


def test_an_exported_program_cannot_run_code(tmp_path: Path, traces: Path) -> None:
    path = tmp_path / "model.pt2"
    exported(path)
    shell = json.dumps(f"__import__('os').mkdir('{traces}')")[1:-1]
    with zipfile.ZipFile(path) as archive:
        program = next(archive.read(n) for n in archive.namelist() if n.endswith("model.json"))
    symbol = json.loads(program)["range_constraints"].keys()
    expression = f"Symbol('{next(iter(symbol))}', positive=True, integer=True)"
    for old, new in (
        (expression, shell),
        ("torch.ops.aten.max_pool2d.default", "torch.os.mkdir"),
        ("torch.ops.aten.max_pool2d.default", "torch.ops.aten.save.default"),
        ("torch.ops.aten.max_pool2d.default", "torch.ops.aten.add.__init__"),
        ('"name": "x"', f'"name": "x={shell}"'),
        ("builtins.tuple", "collections.defaultdict"),
    ):
        with pytest.raises(LoadError, match="refused"):
            load(edited(path, old, new))
    for member in ("data/aotinductor/model/x.so", "data/constants/opaque_obj_0"):
        with pytest.raises(LoadError, match="refused"):
            load(rewritten(path, lambda _, data: data, member))
    assert not traces.exists()


def test_pickled_sample_inputs_of_an_exported_program_are_never_unpickled(
    tmp_path: Path, traces: Path
) -> None:
    path = tmp_path / "model.pt2"
    exported(path)
    torch.save(((Harmful(traces),), {}), tmp_path / "inputs.pt")
    harm = (tmp_path / "inputs.pt").read_bytes()
    changed = rewritten(path, lambda n, data: harm if "sample_inputs" in n else data)
    with pytest.raises(LoadError):
        load(changed)
    assert not traces.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_script_that_writes_files_is_refused(tmp_path: Path, traces: Path) -> None:
    class Writing(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            torch.save(x, self.path)
            return self.conv(x)

    torch.jit.save(torch.jit.script(Writing(str(traces))), tmp_path / "writing.pt")
    with pytest.raises((LoadError, UnsupportedError), match="aten::save"):
        load(tmp_path / "writing.pt").run(X)
    assert not traces.exists()


def test_a_script_that_runs_while_it_is_opened_is_refused(tmp_path: Path, traces: Path) -> None:
    class Waking(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

        @torch.jit.export
        def __getstate__(self):
            return (self.path, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path = state[0]
            self.training = state[1]
            torch.save(1, state[0])

    torch.jit.save(torch.jit.script(Waking(str(traces))), tmp_path / "waking.pt")
    with pytest.raises(LoadError, match="__setstate__"):
        load(tmp_path / "waking.pt")
    assert not traces.exists()


# ---- factories and weights ------------------------------------------------------------------


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module that builds the network."""
    text = """
        import torch
        def small():
            torch.manual_seed(1)
            return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(),
                                       torch.nn.Linear(144, 5)).eval()
        class Small(torch.nn.Sequential):
            def __init__(self):
                super().__init__(*small())
        ready = small()
        def broken():
            raise ValueError("no such thing")
        number = 3
    """
    (tmp_path / "pellucid_made.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pellucid_made", raising=False)
    return "pellucid_made"


@pytest.mark.parametrize("attribute", ["small", "Small", "ready"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "backbone."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_state_dict", "ema"])
def test_weights_are_found_under_any_usual_name(
    factory: str, tmp_path: Path, attribute: str, prefix: str, nested: str | None
) -> None:
    torch.manual_seed(2)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    state: dict[str, Any] = {prefix + k: v for k, v in module.state_dict().items()}
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "w.pth")
    adapter = load(f"{factory}:{attribute}", weights=tmp_path / "w.pth")
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(adapter.run(X)["output"], expected, atol=1e-6)


def test_a_live_module_given_weights_is_left_as_it_is(tmp_path: Path) -> None:
    module = made()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.save({k: v + 1 for k, v in before.items()}, tmp_path / "w.pth")
    adapter = load(module, weights=tmp_path / "w.pth")
    assert adapter.module is not module
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_weights_that_do_not_fit_are_listed(factory: str, tmp_path: Path) -> None:
    state = {
        "0.weight": torch.zeros(4, 3, 5, 5),
        "2.weight": torch.zeros(5, 144),
        "x": torch.ones(1),
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(LoadError) as error:
        load(f"{factory}:small", weights=tmp_path / "w.pth")
    said = str(error.value)
    assert "missing: 0.bias, 2.bias" in said
    assert "unexpected: x" in said
    assert "(4, 3, 5, 5) in the file, (4, 3, 3, 3) in the network" in said


def test_factories_that_fail_say_why(factory: str) -> None:
    for name, words in (
        (f"{factory}:smal", "small"),
        (f"{factory}:broken", "no such thing"),
        (f"{factory}:number", "no model"),
        ("not_a_module_at_all:net", "cannot be imported"),
    ):
        with pytest.raises((LoadError, InputError), match=words):
            load(name)


def test_a_file_of_code_is_run_where_it_lies(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts_beside.py").write_text("width = 5\n")
    path = tmp_path / "torch.py"  # a name that is taken
    code = (tmp_path / "pellucid_made.py").read_text().replace("5)", "width)")
    path.write_text(f"from parts_beside import width\n{code}")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    before = list(sys.path)
    assert load(f"{path}:small").outputs[0].shape == (None, 5)
    assert sys.path == before
    monkeypatch.chdir(tmp_path)
    assert load("torch.py:ready").outputs[0].shape == (None, 5)
    path.write_text("import no_such_package_anywhere")
    monkeypatch.delitem(sys.modules, f"pellucid:{path}")
    for name, words in (("torch.py", "no_such_package"), ("none.py", "No such file")):
        with pytest.raises(LoadError, match=words):
            load(f"{name}:small")


def test_a_state_dict_alone_is_no_model(tmp_path: Path) -> None:
    torch.save(made().state_dict(), tmp_path / "weights.pth")
    torch.save(made().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "old.pth"):
        with pytest.raises(LoadError, match=r"weights and no network.*factory"):
            load(tmp_path / name)


# ---- paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", [".onnx", ".keras", ".h5", ".hdf5", ".pt2", ".pt", ".pth", ".xyz", ""]
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    scripted(tmp_path / "good.zip")
    good = (tmp_path / "good.zip").read_bytes()
    for data in (
        b"",
        b"<!DOCTYPE html><html>404</html>",
        b"\x89HDF\r\n\x1a\n and so on",
        good[: len(good) // 2],
        b"\x80\x02 a pickle, cut short",
        bytes(range(256)),
    ):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(data)
        with pytest.raises(LoadError) as error:
            load(path)
        assert f"model{suffix}" in str(error.value)
        assert "\n" not in str(error.value)


def test_missing_files_and_plain_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match=r"other\.onnx"):
        load(str(tmp_path / "model.onnx"))
    with pytest.raises(LoadError, match=r"saved_model\.pb"):
        load(tmp_path)


def test_weights_go_with_code_only(tmp_path: Path) -> None:
    scripted(tmp_path / "model.pt")
    with pytest.raises(LoadError, match="factory"):
        load(tmp_path / "model.pt", weights=tmp_path / "w.pth")

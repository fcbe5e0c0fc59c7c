"""The command line: what it prints, what it writes, and how it says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cli import main
from pellucid.cli.outputs import planned
from pellucid.cli.quiet import talk_aside
from pellucid.cli.terminal import item, plain, styled, table
from pellucid.cli.wording import in_options
from pellucid.errors import PellucidError
from pellucid.explanation import Explanation

NETWORK = """
import torch
from torch import nn

print("the network's own chatter")

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4, 6)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(self.drop(x.mean((2, 3))))

class Fixed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))

def build():
    torch.manual_seed(0)
    return Tiny()

def leave():
    raise SystemExit(0)
"""
LABELS = ["ant", "bee", "cat", "dog", "emu", "fox"]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module name of NETWORK, which must be new for every test: modules stay imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"network_{os.urandom(6).hex()}"
    Path(f"{name}.py").write_text(NETWORK)
    return name


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with one photograph in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "PELLUCID_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    _photograph("photo.png")
    return tmp_path


def _photograph(name: str, size: tuple[int, int] = (40, 30)) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


Command = Callable[..., SimpleNamespace]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process and return its status, output and errors."""

    def run(*argv: str) -> SimpleNamespace:
        status = main(argv)
        out, err = capfd.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def _said(err: str) -> str:
    """The one line of the command itself."""
    lines = [line for line in err.splitlines() if line != "the network's own chatter"]
    assert len(lines) == 1, err
    assert lines[0].startswith("pellucid: ")
    return lines[0]


# ---- explain ---------------------------------------------------------------------------------


def test_explain_prints_predictions_target_layer_and_file(run: Command, network: str) -> None:
    result = run("explain", f"{network}:build", "photo.png")

    assert result.status == 0
    model = pellucid.load(sys.modules[network].build())
    expected: Any = pellucid.explain(model, "photo.png")
    lines = result.out.splitlines()
    assert lines[0] == "photo.png"
    assert lines[1].split() == ["probability", "class"]
    printed = [line.split() for line in lines[2:7]]
    assert printed == [[f"{p:.1%}", str(i)] for i, _, p in expected.top]
    assert f"class {expected.target}, the top class ({expected.score_text})" in result.out
    assert f"{expected.layer}: {expected.layer_reason}" in result.out
    assert "assumed: the ImageNet mean" in result.out
    assert "photo-grad-cam.png" in result.out
    with Image.open("photo-grad-cam.png") as picture:
        assert picture.format == "PNG"


def test_an_onnx_file_is_explained(run: Command, network: str) -> None:
    run("layers", f"{network}:build")
    model = sys.modules[network].build().eval()
    torch.onnx.export(model, (torch.zeros(1, 3, 30, 40),), "tiny.onnx", dynamo=True, verbose=False)
    size = {"scale": 1 / 255, "size": [30, 40]}
    options = ("--json", "--preprocess", json.dumps(size))
    result = run("explain", "tiny.onnx", "photo.png", *options)

    assert result.status == 0, result.err
    ours = json.loads(result.out)["explanations"][0]
    expected: Any = pellucid.explain(pellucid.load(model, preprocess=size), "photo.png")
    assert ours["score"] == pytest.approx(expected.score, rel=1e-4)
    assert ours["layer"] == "node_relu_1"


def test_columns_of_the_predictions_line_up(run: Command, network: str) -> None:
    Path("labels.txt").write_text("\n".join(LABELS))
    result = run("explain", f"{network}:build", "photo.png", "--labels", "labels.txt")
    head, *rows = result.out.splitlines()[1:7]
    assert head.split() == ["probability", "class", "label"]
    for row in rows:
        assert row.index("%") == head.index("probability") + len("probability") - 1
        assert row[head.index("label") :] in LABELS


def test_labels_name_the_target(run: Command, network: str) -> None:
    Path("labels.json").write_text(json.dumps(LABELS))
    given = ("explain", f"{network}:build", "photo.png", "--labels", "labels.json", "--json")
    by_name = json.loads(run(*given, "--target", "Dog").out)["explanations"][0]
    by_index = json.loads(run(*given, "--target", "3").out)["explanations"][0]
    from_the_end = json.loads(run(*given, "--target", "-3").out)["explanations"][0]
    assert by_name["label"] == by_index["label"] == from_the_end["label"] == "dog"
    assert by_name["attribution"] == by_index["attribution"]


def test_several_images_are_one_batch_and_get_a_grid(
    run: Command, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _photograph("other.png", (25, 60))
    batches: list[int] = []
    original = pellucid.Adapter.pullback

    def counted(self: Any, x: Any, *args: Any, **options: Any) -> Any:
        batches.append(len(x[0]))
        return original(self, x, *args, **options)

    monkeypatch.setattr(pellucid.Adapter, "pullback", counted)
    result = run("explain", f"{network}:build", "photo.png", "--top", "2", "other.png")
    assert result.status == 0
    assert batches == [2]
    assert {path.name for path in Path().glob("*-grad-cam.png")} == {
        "photo-grad-cam.png",
        "other-grad-cam.png",
        "grid-grad-cam.png",
    }
    assert "side by side in grid-grad-cam.png" in result.out


def test_json_is_one_document_and_nothing_else(run: Command, network: str) -> None:
    _photograph("other.png")
    result = run("explain", f"{network}:build", "photo.png", "other.png", "--json", "--out", "to")
    document = json.loads(result.out)
    assert result.err == "the network's own chatter\n"
    assert document["files"] == [
        str(Path("to", f"{name}-grad-cam.png")) for name in ("photo", "other", "grid")
    ]
    assert all(Path(file).is_file() for file in document["files"])
    first = document["explanations"][0]
    assert (first["path"], first["file"]) == ("photo.png", document["files"][0])
    assert first["provenance"]["framework"] == "torch"
    assert len(first["top"]) == 5


@pytest.mark.parametrize("top", [0, 2, 5, 6])
def test_top_says_how_many_predictions(run: Command, network: str, top: int) -> None:
    given = ("explain", f"{network}:build", "photo.png", "--top", str(top))
    found = json.loads(run(*given, "--json").out)["explanations"][0]["top"]
    assert len(found) == top
    assert found == sorted(found, key=lambda entry: -entry["score"])
    if top == 6:
        assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-5)
    assert run(*given).out.count("%") == top


def test_weights_preprocessing_layer_and_options_reach_the_method(
    run: Command, network: str
) -> None:
    run("layers", f"{network}:build")  # imports it
    torch.manual_seed(5)
    trained = sys.modules[network].Tiny()
    torch.save(trained.state_dict(), "trained.pth")
    Path("prepare.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5], "size": [24, 20]}')
    result = run(
        "explain", f"{network}:build", "photo.png", "--weights", "trained.pth",
        "--preprocess", "prepare.json", "--layer", "conv1", "--layer", "conv2", "--space",
        "probability", "--option", "relu=False", "--option", "fuse=max", "--out", "map.npz",
    )  # fmt: skip
    assert result.status == 0, result.err
    preprocess = {"mean": (0.5, 0.5, 0.5), "std": (0.5,), "size": (24, 20)}
    expected: Any = pellucid.explain(
        pellucid.load(trained, preprocess=preprocess), "photo.png", layer=["conv1", "conv2"],
        space="probability", relu=False, fuse="max",
    )  # fmt: skip
    written = Explanation.load("map.npz")
    np.testing.assert_array_equal(written.attribution, expected.attribution)
    assert written.score == expected.score
    assert "conv1, conv2" in result.out
    assert "note" not in result.out  # the preprocessing was given


def test_preprocessing_as_json_on_the_command_line(run: Command, network: str) -> None:
    spec = '{"mean": 0.5, "std": 0.5, "size": [24, 20]}'
    result = run("explain", f"{network}:build", "photo.png", "--preprocess", spec, "--json")
    used = json.loads(result.out)["explanations"][0]["provenance"]["preprocessing"]
    assert (used["size"], used["assumed"]) == ([24, 20], False)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".npz", ".json"])
def test_out_takes_a_file_of_any_kind_and_makes_its_folder(
    run: Command, network: str, suffix: str
) -> None:
    path = Path("deep", "er", f"map{suffix}")
    assert run("explain", f"{network}:build", "photo.png", "--out", str(path)).status == 0
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".npz": b"PK", ".json": b"{"}
    assert path.read_bytes().startswith(starts[suffix])
    assert list(path.parent.iterdir()) == [path]


def test_colormap_changes_the_picture(run: Command, network: str) -> None:
    run("explain", f"{network}:build", "photo.png", "--out", "a.png")
    run("explain", f"{network}:build", "photo.png", "--out", "b.png", "--colormap", "jet")
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


# ---- where files go --------------------------------------------------------------------------


def test_names_stay_apart_and_spare_the_images() -> None:
    images = [Path("a/cat.png"), Path("b/cat.png"), Path("cat-grad-cam.png"), Path("grid.png")]
    outputs = planned(images, "grad-cam", None)
    assert [str(file) for file in outputs.files] == [
        "cat-2-grad-cam.png",  # cat-grad-cam.png is an image of this command
        "cat-3-grad-cam.png",
        "cat-grad-cam-grad-cam.png",
        "grid-grad-cam.png",
    ]
    assert str(outputs.grid) == "grid-2-grad-cam.png"


def test_an_existing_folder_may_be_called_like_a_file(folder: Path) -> None:
    (folder / "results.png").mkdir()
    outputs = planned([Path("a.png")], "grad-cam", "results.png")
    assert outputs.files == (Path("results.png/a-grad-cam.png"),)
    assert outputs.grid is None


def test_earlier_results_are_replaced(run: Command, network: str) -> None:
    Path("photo-grad-cam.png").write_bytes(b"old")
    run("explain", f"{network}:build", "photo.png")
    assert Path("photo-grad-cam.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("photo.png", "would overwrite"),
        ("./../{}/photo.png", "would overwrite"),
        ("link.png", "would overwrite"),
        ("a.jpg", "ends in .png"),
        ("plain", "give a folder"),
        ("plain/sub", "plain is no folder"),
        ("plain/map.png", "plain is no folder"),
    ],
)
def test_unfit_places_are_refused(folder: Path, out: str, said: str) -> None:
    Path("plain").write_text("")
    Path("link.png").symlink_to("photo.png")
    with pytest.raises(PellucidError, match=said):
        planned([Path("photo.png")], "grad-cam", out.format(folder.name))


def test_a_folder_in_the_place_of_a_result_is_refused() -> None:
    Path("photo-grad-cam.png").mkdir()
    with pytest.raises(PellucidError, match="is a folder"):
        planned([Path("photo.png")], "grad-cam", None)


def test_several_images_do_not_fit_one_file() -> None:
    with pytest.raises(PellucidError, match="2 images: give a folder"):
        planned([Path("a.png"), Path("b.png")], "grad-cam", "map.pdf")


# ---- bad input -------------------------------------------------------------------------------

BAD = {
    "missing model": (["missing.h5", "photo.png"], "There is no file missing.h5"),
    "folder": ([".", "photo.png"], "no SavedModel"),
    "text named .onnx": (["page.onnx", "photo.png"], "page.onnx is no ONNX file: it is a text"),
    "text named .keras": (
        ["page.keras", "photo.png"],
        "page.keras: this is an HTML or XML page, not a model",
    ),
    "pickled module": (["pickled.pt", "photo.png"], "runs whatever code it holds"),
    "pickled module, what to do": (["pickled.pt", "photo.png"], "--allow-code opens it"),
    "old pickle": (["old.pt", "photo.png"], "runs whatever code it holds"),
    "unknown factory": (["NETWORK:biuld", "photo.png"], "Did you mean 'build'"),
    "factory that leaves": (["NETWORK:leave", "photo.png"], "called sys.exit"),
    "unknown layer": (["NETWORK:build", "photo.png", "--layer", "conv3"], "'conv2' or 'conv1'"),
    "unknown label": (
        ["NETWORK:build", "photo.png", "--labels", "labels.txt", "--target", "catt"],
        "Did you mean 'cat'",
    ),
    "label without labels": (["NETWORK:build", "photo.png", "--target", "cat"], "give --labels"),
    "index out of range": (["NETWORK:build", "photo.png", "--target", "6"], "0 to 5"),
    "labels of another network": (
        ["NETWORK:build", "photo.png", "--labels", "imagenet"],
        "1000 labels, but the model has 6 classes",
    ),
    "wrong input shape": (
        ["NETWORK:Fixed", "photo.png", "--preprocess", '{"size": 32}'],
        "takes shape (3, 28, 28)",
    ),
    "missing image": (["NETWORK:build", "photo.png", "missing.png"], "no file missing.png"),
    "no image": (["NETWORK:build", "page.onnx"], "page.onnx is no image"),
    "damaged image": (["NETWORK:build", "half.png"], "half.png"),
    "image is a folder": (["NETWORK:build", "."], "is a folder, not an image"),
    "labels missing": (["NETWORK:build", "photo.png", "--labels", "x.txt"], "no file of labels"),
    "weights missing": (["NETWORK:build", "photo.png", "--weights", "x.pth"], "no file x.pth"),
    "unknown preset": (
        ["NETWORK:build", "photo.png", "--preprocess", "imagnet"],
        "Did you mean 'imagenet'",
    ),
    "bad JSON": (["NETWORK:build", "photo.png", "--preprocess", "{mean: 1}"], "no valid JSON"),
    "JSON list": (["NETWORK:build", "photo.png", "--preprocess", "[1, 2]"], "no JSON object"),
    "JSON file missing": (["NETWORK:build", "photo.png", "--preprocess", "x.json"], "No such file"),
    "unknown method": (["NETWORK:build", "photo.png", "--method", "gradcam"], "'grad-cam'"),
    "unknown library": (["NETWORK:build", "photo.png", "--like", "captm"], "'captum'"),
    "unknown colours": (["NETWORK:build", "photo.png", "--colormap", "infern"], "'inferno'"),
    "unknown option": (["NETWORK:build", "photo.png", "--option", "rlu=1"], "'relu'"),
    "half an option": (["NETWORK:build", "photo.png", "--option", "relu"], "NAME=VALUE"),
    "option of explain": (["NETWORK:build", "photo.png", "--option", "layer=x"], "--layer"),
    "option of load": (["NETWORK:build", "photo.png", "--option", "labels=x"], "--labels"),
    "over the image": (["NETWORK:build", "photo.png", "--out", "photo.png"], "would overwrite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(
    run: Command, network: str, folder: Path, case: str
) -> None:
    Path("page.onnx").write_text("<html>404</html>")
    Path("page.keras").write_text("<html>404</html>")
    Path("labels.txt").write_text("\n".join(LABELS))
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:200])
    torch.save(torch.nn.Linear(1, 1), "pickled.pt")
    Path("old.pt").write_bytes(pickle.dumps(print))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    argv, expected = BAD[case]

    result = run("explain", *[part.replace("NETWORK", network) for part in argv])

    assert result.status == 2
    assert expected in _said(result.err)
    assert result.out == ""
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    assert {path.name for path in folder.iterdir() if path.is_dir()} <= {"__pycache__"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["explian", "model.h5"], "Did you mean 'explain'?"),
        (["explain", "m.h5", "a.png", "--targt", "3"], "Did you mean '--target'"),
        (["explain", "m.h5", "a.png", "--targt=3"], "no option '--targt'"),
        (["explain", "m.h5"], "required: IMAGE"),
        (["explain", "m.h5", "a.png", "--space", "log"], "choose from"),
        (["explain", "m.h5", "a.png", "--top", "-1"], "'-1' is no whole number"),
        (["layers"], "required: MODEL"),
        (["--vresion"], "--vresion"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    run: Command, argv: list[str], expected: str
) -> None:
    result = run(*argv)
    assert (result.status, result.out) == (2, "")
    assert expected in _said(result.err)
    assert "--help` tells more" in result.err


def test_options_may_stand_anywhere(run: Command, network: str) -> None:
    result = run("explain", "--top", "1", f"{network}:build", "--json", "photo.png")
    assert len(json.loads(result.out)["explanations"]) == 1


def test_a_fault_of_the_program_is_one_line_and_exit_1(
    run: Command, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("pellucid.explainer.explain", fails)
    result = run("explain", f"{network}:build", "photo.png")
    assert result.status == 1
    expected = "unexpected ZeroDivisionError: first second (PELLUCID_DEBUG=1 shows where)"
    assert expected in _said(result.err)
    monkeypatch.setenv("PELLUCID_DEBUG", "1")
    assert "Traceback" in run("explain", f"{network}:build", "photo.png").err


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [(KeyboardInterrupt, 130, "pellucid: interrupted\n"), (BrokenPipeError, 141, "")],
)
def test_interrupts_and_closed_pipes_are_no_faults(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: type[BaseException],
    status: int,
    said: str,
) -> None:
    def stop(_: Any) -> None:
        raise raised

    monkeypatch.setattr("pellucid.cli.layers.run", stop)
    assert main(["layers", "model.h5"]) == status
    assert capsys.readouterr() == ("", said)


# ---- layers ----------------------------------------------------------------------------------


def test_layers_marks_the_layer_that_grad_cam_takes(run: Command, network: str) -> None:
    result = run("layers", f"{network}:build")
    rows = [line.split() for line in result.out.splitlines()]
    assert rows[0][0] == f"{network}:build:"
    size = ["4", "x", "110", "x", "110"]
    assert ["*", "conv2", "Conv2D", *size, *["5", "x", "5,", "every", "2"]] in rows
    assert ["fc", "Dense", "6"] in rows
    assert "Grad-CAM looks here: the last layer with a spatial grid" in result.out
    assert "drop" not in result.out
    assert "1 more that change nothing" in result.out
    assert "drop" in run("layers", f"{network}:build", "--all").out


def test_layers_as_json_are_those_of_the_adapter(run: Command, network: str) -> None:
    document = json.loads(run("layers", f"{network}:build", "--json").out)
    model = pellucid.load(sys.modules[network].build())
    assert [layer["name"] for layer in document["layers"]] == [x.name for x in model.layers]
    assert [tuple(layer["shape"]) for layer in document["layers"]] == [
        x.shape for x in model.layers
    ]
    assert document["grad_cam"]["layer"] == "conv2"
    assert document["outputs"][0]["shape"] == [None, 6]


def test_layers_shows_the_energy_of_the_gradient_for_images(run: Command, network: str) -> None:
    document = json.loads(
        run("layers", f"{network}:build", "--images", "photo.png", "--target", "2", "--json").out
    )
    model = pellucid.load(sys.modules[network].build())
    x = model.prepare("photo.png").batch
    seed = np.eye(6, dtype=np.float32)[2:3]
    _, gradients = model.pullback(x, lambda _: {"logits": seed}, ["conv1", "conv2"])
    for candidate in document["candidates"]:
        expected = (gradients[candidate["name"]] ** 2).sum()
        assert candidate["energy"] == pytest.approx(expected, rel=1e-5)
    assert [c["receptive_field"]["size"] for c in document["candidates"]] == [[3, 3], [5, 5]]
    assert [c["chosen"] for c in document["candidates"]] == [False, True]


def test_layers_of_a_file_marks_the_node_that_its_layer_ends_in(
    run: Command, tmp_path: Path
) -> None:
    import onnx

    from tests.twins import TWINS

    onnx.save(TWINS["vit"].onnx(), tmp_path / "vit.onnx")
    lines = run("layers", str(tmp_path / "vit.onnx")).out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("*  ")]
    assert row[2:] == ["LayerNorm", *["17", "x", "24", "tokens", "(4", "x", "4)", "whole", "image"]]
    assert lines[-1].startswith("* Grad-CAM looks here, at block2.norm1: the last tokens (4 x 4)")


def test_layers_of_a_missing_model(run: Command) -> None:
    result = run("layers", "missing.keras")
    assert result.status == 2
    assert "There is no file missing.keras" in _said(result.err)


# ---- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["explain", "--help"], ["layers", "--help"]])
def test_help_has_examples_and_loads_no_library(argv: list[str]) -> None:
    code = f"""
import sys
from pellucid.cli import main
status = main({argv!r})
heavy = {{"numpy", "matplotlib", "PIL", "torch", "tensorflow", "keras", "onnx", "scipy", "skimage"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples:" in done.stdout


def test_version(run: Command) -> None:
    assert run("--version").out == f"pellucid {pellucid.__version__}\n"


def test_no_command_shows_the_help(run: Command) -> None:
    result = run()
    assert (result.status, result.out) == (2, "")
    assert "commands:" in result.err


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "pellucid", "layers", "missing.h5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pellucid: There is no file missing.h5.\n"


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pellucid", "layers", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


# ---- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Give allow_code=True if you trust it.", "Give --allow-code if you trust it."),
        ("load it with weights=, or not", "load it with --weights, or not"),
        ("and weights='a.pth'.", "and --weights 'a.pth'."),
        ("preprocess={'size': (2, 3)}", "--preprocess '{\"size\": [2, 3]}'"),
        ("There is no file layer=3.onnx.", "There is no file layer=3.onnx."),
        ("There is no file runs/target=1/a.png.", "There is no file runs/target=1/a.png."),
        ("size=3 is unknown", "size=3 is unknown"),
    ],
)
def test_advice_is_given_in_options(message: str, expected: str) -> None:
    assert in_options(message, ["explain", "layer=3.onnx"]) == expected


def test_text_of_others_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[31mb\nc\udc80") == "a\\x1b[31mb c\\udc80"


def test_colours_only_on_a_terminal_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert styled("text", "bold") == "text"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert styled("text", "bold") == "\x1b[1mtext\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("text", "bold") == "text"


def test_long_text_is_indented_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert item("note", "word " * 40).count("\n") == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    first, *others = item("note", "word " * 40).splitlines()
    assert others
    assert all(len(line) <= 60 for line in (first, *others))
    assert all(line.startswith(" " * 12 + "word") for line in others)


def test_tables_line_up_wide_letters() -> None:
    assert table([("猫", "1"), ("cat", "22")], "<>") == ["猫    1", "cat  22"]


# ---- noise -----------------------------------------------------------------------------------

TALK = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1795308544.764236   10752 port.cc:153] oneDNN custom operations are on.\n"
)
ERROR = b"E0000 00:00:1795308544.764236   10752 port.cc:153] The disk is full.\n"


def test_start_up_talk_is_dropped_and_errors_are_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with talk_aside():
        os.write(2, TALK + ERROR + b"Illegal instruction\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == ERROR.decode() + "Illegal instruction\nafterwards\n"


def test_last_words_before_a_crash_get_through() -> None:
    code = f"""
import os
from pellucid.cli.quiet import talk_aside
with talk_aside():
    os.write(2, {TALK + ERROR!r})
    os._exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, ERROR)


@pytest.mark.parametrize("value", ["0", "1"])
def test_who_asks_tensorflow_for_its_log_gets_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", value)
    with talk_aside():
        os.write(2, TALK)
    assert capfd.readouterr().err == TALK.decode()


@pytest.mark.slow
def test_a_keras_file_is_explained_without_a_word_of_tensorflow() -> None:
    import keras

    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(3, 3, name="conv2d"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    network.save("tiny.keras")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pellucid", "explain", "tiny.keras", "photo.png"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "conv2d: the last layer with a spatial grid (3 channels on 14 x 14)" in done.stdout
    assert Path("photo-grad-cam.png").is_file()


def test_help_names_every_method() -> None:
    import re

    from pellucid.cli.explain import _METHODS
    from pellucid.methods.registry import METHODS

    assert re.findall(r"[a-z][a-z+-]+", _METHODS.replace("(the default)", "")) == list(METHODS)


def test_graph_is_printed_drawn_and_kept_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    import torch
    from torch import nn

    from pellucid.cli import main

    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    program = torch.export.export(network, (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, "tiny.pt2")
    assert main(["graph", "tiny.pt2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == 4 * 3 * 3 * 3 + 4
    assert document["multiply_adds"] == 14 * 14 * 4 * 3 * 3 * 3
    assert main(["graph", "tiny.pt2", "-o", "tiny.svg"]) == 0
    assert Path("tiny.svg").read_text().count("Conv2D") >= 1
    _photograph("photo.png", (16, 16))
    for paint in ("parameters", "dead_channels", "gradient_energy"):
        arguments = ["graph", "tiny.pt2", "-o", "painted.svg", "--paint", paint]
        assert main([*arguments, "--image", "photo.png", "--target", "1"]) == 0
        assert "Conv2D" in Path("painted.svg").read_text()
    assert main(["graph", "tiny.pt2", "--paint", "time", "-o", "painted.svg"]) == 2
    assert "--image" in capsys.readouterr().err
    assert main(["graph", "tiny.pt2", "--paint", "parameters"]) == 2
    assert "-o FILE" in capsys.readouterr().err
    assert main(["cache", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 1
    assert main(["cache", "--clear"]) == 0
    assert "Removed 1 exports" in capsys.readouterr().out
    assert main(["cache"]) == 0
    assert "Nothing is kept" in capsys.readouterr().out

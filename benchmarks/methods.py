"""Each method of ResNet-50 against its peers: ratio of time, and added peak memory.

Run `python -m benchmarks.methods` on a quiet machine; it takes about twenty minutes and writes its
section of RESULTS.md. `--quick` takes fewer rounds and a smaller image, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import redirect_stderr
from dataclasses import asdict
from datetime import UTC, datetime
from io import StringIO

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
from tests.parity.peers import stand_ins

TARGET, LAYER = 7, "layer4.2"
ROUNDS = {"score-cam": 3, "ablation-cam": 3, "integrated-gradients": 5}
PACKAGES = ("torch", "captum", "grad-cam", "numpy")
CAPTUM = {
    "saliency": "Saliency",
    "input-x-gradient": "InputXGradient",
    "guided-backprop": "GuidedBackprop",
    "deconvnet": "Deconvolution",
    "integrated-gradients": "IntegratedGradients",
}
CAMS = {
    "grad-cam++": "GradCAMPlusPlus",
    "xgrad-cam": "XGradCAM",
    "hires-cam": "HiResCAM",
    "layer-cam": "LayerCAM",
    "eigen-cam": "EigenCAM",
    "eigengrad-cam": "EigenGradCAM",
    "score-cam": "ScoreCAM",
    "ablation-cam": "AblationCAM",
}
SIZE = int(os.environ.get("PELLUCID_BENCHMARK_SIZE", "224"))


def contenders(method: str) -> dict[str, Contender]:
    """Build what is timed: the plain forward pass, Pellucid, and the peer."""
    import torch

    torch.set_num_threads(cores())
    import pellucid
    from benchmarks.networks import torch_resnet50
    from pellucid.methods.objective import Objective
    from pellucid.methods.registry import METHODS

    model = torch_resnet50()
    batch = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), np.float32)
    tensor = torch.from_numpy(batch)
    adapter = pellucid.load(model)
    adapter.prepare(batch)  # looks at the network, once
    found = METHODS[method]
    layers = [[LAYER]] if found.layer else []

    def forward() -> object:
        with torch.no_grad():
            return model(tensor)

    def ours() -> object:
        return found.function(adapter, batch, Objective(adapter, TARGET), *layers)

    made: dict[str, Contender] = {"plain forward": forward, "Pellucid": ours}
    if method in CAPTUM:
        made["captum"] = _captum(CAPTUM[method], model, tensor)
    if method in CAMS:
        made["pytorch-grad-cam"] = _pytorch_grad_cam(CAMS[method], model, tensor)
    return made


def _captum(name: str, model, tensor) -> Contender:  # type: ignore[no-untyped-def]
    import captum.attr

    def call() -> object:
        leaf = tensor.clone().requires_grad_()
        return getattr(captum.attr, name)(model).attribute(leaf, target=TARGET)

    return call


def _pytorch_grad_cam(name: str, model, tensor) -> Contender:  # type: ignore[no-untyped-def]
    with stand_ins():
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def call() -> object:
        with (
            redirect_stderr(StringIO()),  # its progress bar cannot be turned off
            getattr(pytorch_grad_cam, name)(model, [model.get_submodule(LAYER)]) as cam,
        ):
            return cam(tensor, [ClassifierOutputTarget(TARGET)])

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--time", nargs=2, metavar=("METHOD", "ROUNDS"))
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "CONTENDER"))
    arguments = parser.parse_args()
    if arguments.time:
        method, rounds = arguments.time
        times = alternated(contenders(method), int(rounds))
        print(json.dumps({name: asdict(ratio) for name, ratio in times.items()}))
    elif arguments.memory:
        method, name = arguments.memory
        made = contenders(method)
        print(json.dumps(added_memory(made["plain forward"], made[name])))
    else:
        if arguments.quick:
            os.environ["PELLUCID_BENCHMARK_SIZE"] = "96"
        text = section(1 if arguments.quick else None, 96 if arguments.quick else SIZE)
        if arguments.quick:
            print(text)
        else:
            write_section("The methods on ResNet-50", text)


def section(rounds: int | None, size: int) -> str:
    """Measure everything and write the section of the results."""
    today = datetime.now(UTC).date()
    lines = [
        f"{size} x {size}, random weights, batch 1, in PyTorch; class activation maps at the last "
        f"block's output; {today}. Load average before the run, on {cores()} cores: "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "Time is in units of the plain forward pass of the same round: median and quartiles. The "
        "last column of times is the peer's shortest time over Pellucid's. Memory is what a "
        "contender adds to the peak of a fresh process that has run the plain forward pass.",
        "",
        machine(PACKAGES),
        "",
        "| method | Pellucid | peer | peer / Pellucid | memory | memory of the peer |",
        "|---|---|---|---|---|---|",
    ]
    for method in (*CAPTUM, *CAMS):
        count = rounds or ROUNDS.get(method, 10)
        measured = in_subprocess("benchmarks.methods", "--time", method, str(count))
        times = {name: Ratio(**ratio) for name, ratio in measured.items()}
        peer = list(times)[-1]
        memory = {
            name: in_subprocess("benchmarks.methods", "--memory", method, name)
            for name in ("Pellucid", peer)
        }
        lines.append(
            f"| {method} | {_shown(times['Pellucid'])} | {peer} {_shown(times[peer])} "
            f"| **{times[peer].seconds / times['Pellucid'].seconds:.2f}** "
            f"| {memory['Pellucid']:.0f} MiB | {memory[peer]:.0f} MiB |"
        )
    return "\n".join(lines)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()

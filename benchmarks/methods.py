"""Each method of ResNet-50 against its peers: ratio of time, and added peak memory.

Run `python -m benchmarks.methods` on a quiet machine; it takes about eight minutes and writes its
section of RESULTS.md. `--quick` takes fewer rounds and a smaller image, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import asdict
from datetime import UTC, datetime
from io import StringIO
from time import perf_counter
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
from tests.parity.peers import stand_ins

MODULE = "benchmarks.methods"
TARGET, LAYER = 7, "layer4.2"
LAYERS = {"score-cam": "layer3.5"}  # 1024 channels, so half as many passes
ROUNDS = {"integrated-gradients": 3}
ONCE = ("score-cam", "ablation-cam")  # minutes in the peer: one call in a process of its own
SHARE = {"ablation-cam": 8}  # the peer ablates one channel in so many
OURS, EXPORTED = "Pellucid", "Pellucid, onnxruntime"
PACKAGES = ("torch", "onnxruntime", "captum", "grad-cam", "numpy")
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
PEERS = ("captum", "pytorch-grad-cam")
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
    layer = LAYERS.get(method, LAYER)
    layers = [[layer]] if found.layer else []

    def forward() -> object:
        with torch.no_grad():
            return model(tensor)

    def ours() -> object:
        return found.function(adapter, batch, Objective(adapter, TARGET), *layers)

    made: dict[str, Contender] = {"plain forward": forward, OURS: ours}
    if method in CAPTUM:
        made["captum"] = _captum(CAPTUM[method], model, tensor)
    if method in CAMS:
        made["pytorch-grad-cam"] = _pytorch_grad_cam(
            method, model.get_submodule(layer), model, tensor
        )
    return made


def _captum(name: str, model: Any, tensor: Any) -> Contender:
    import captum.attr

    def call() -> object:
        leaf = tensor.clone().requires_grad_()
        return getattr(captum.attr, name)(model).attribute(leaf, target=TARGET)

    return call


def _pytorch_grad_cam(method: str, layer: Any, model: Any, tensor: Any) -> Contender:
    with stand_ins():
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    share = {"ratio_channels_to_ablate": 1 / SHARE[method]} if method in SHARE else {}

    def call() -> object:
        with (
            redirect_stderr(StringIO()),  # its progress bar cannot be turned off
            getattr(pytorch_grad_cam, CAMS[method])(model, [layer], **share) as cam,
        ):
            return cam(tensor, [ClassifierOutputTarget(TARGET)])

    return call


def exported(method: str) -> Contender:
    """Build the method on the export, which is made and opened here."""
    import pellucid
    from benchmarks.networks import torch_resnet50
    from pellucid.adapters.engine import engine_for
    from pellucid.methods.objective import Objective
    from pellucid.methods.registry import METHODS

    batch = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), np.float32)
    adapter = pellucid.load(torch_resnet50())
    adapter.prepare(batch)
    engine, _ = engine_for(adapter, "onnx")
    engine.run(batch)
    layers = [LAYERS.get(method, LAYER)]
    return lambda: METHODS[method].function(engine, batch, Objective(engine, TARGET), layers)


def once(method: str, name: str) -> Mapping[str, float]:
    """Call a contender once; return its seconds, in forward passes too, and the memory it adds."""
    made = contenders(method)
    forward = alternated({"plain forward": made["plain forward"]}, 10)["plain forward"].seconds
    contender = exported(method) if name == EXPORTED else made[name]
    began = perf_counter()
    memory = added_memory(lambda: None, contender)
    seconds = (perf_counter() - began) * (SHARE.get(method, 1) if name in PEERS else 1)
    return {"seconds": seconds, "forwards": seconds / forward, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--time", nargs=2, metavar=("METHOD", "ROUNDS"))
    parser.add_argument("--once", nargs=2, metavar=("METHOD", "CONTENDER"))
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "CONTENDER"))
    arguments = parser.parse_args()
    if arguments.time:
        method, rounds = arguments.time
        times = alternated(contenders(method), int(rounds))
        print(json.dumps({name: asdict(ratio) for name, ratio in times.items()}))
    elif arguments.once:
        print(json.dumps(once(*arguments.once)))
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
        "Time is in units of the plain forward pass of the same round: median and quartiles, the "
        "contenders taking turns. The bold figure is the peer's shortest time over Pellucid's. "
        "Memory is what a contender adds to the peak of a fresh process that has run the plain "
        "forward pass. The forward-only methods take minutes in the peer, so each contender is "
        f"called once in a process of its own: Score-CAM at `{LAYERS['score-cam']}` (1024 "
        f"channels), and Ablation-CAM's peer with one channel in {SHARE['ablation-cam']}, its time "
        f"multiplied by {SHARE['ablation-cam']}. On onnxruntime, which `explain` takes for these "
        "where an export is at hand, the memory of export and session hides what the method adds.",
        "",
        machine(PACKAGES),
        "",
        "| method | Pellucid | peer | peer / Pellucid | memory | memory of the peer |",
        "|---|---|---|---|---|---|",
    ]
    fast = [method for method in (*CAPTUM, *CAMS) if method not in ONCE]
    times = {method: _times(method, rounds or ROUNDS.get(method, 10)) for method in fast}
    asked = [(method, name) for method in fast for name in (OURS, list(times[method])[-1])]
    with ThreadPoolExecutor(2) as pool:  # memory does not mind company
        found = pool.map(lambda one: in_subprocess(MODULE, "--memory", *one), asked)
        memory = dict(zip(asked, found, strict=True))
    for method in fast:
        ours, peer = times[method][OURS], list(times[method])[-1]
        theirs = times[method][peer]
        lines.append(
            f"| {method} | {_shown(ours)} | {peer} {_shown(theirs)} "
            f"| **{theirs.seconds / ours.seconds:.2f}** "
            f"| {memory[method, OURS]:.0f} MiB | {memory[method, peer]:.0f} MiB |"
        )
    for method in ONCE:
        peer = "pytorch-grad-cam"
        each = {
            name: in_subprocess(MODULE, "--once", method, name) for name in (OURS, EXPORTED, peer)
        }
        for name, own in ((OURS, "memory"), (EXPORTED, "")):
            added = f"{each[name][own]:.0f} MiB" if own else ""
            lines.append(
                f"| {method}{name.removeprefix(OURS)} | {each[name]['forwards']:.0f} "
                f"| {peer} {each[peer]['forwards']:.0f} "
                f"| **{each[peer]['seconds'] / each[name]['seconds']:.2f}** "
                f"| {added} | {each[peer]['memory']:.0f} MiB |"
            )
    return "\n".join(lines)


def _times(method: str, rounds: int) -> dict[str, Ratio]:
    measured = in_subprocess(MODULE, "--time", method, str(rounds))
    return {name: Ratio(**ratio) for name, ratio in measured.items()}


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()

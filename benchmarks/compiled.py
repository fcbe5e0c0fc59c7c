"""Compiled explanations of ResNet-50: onnxruntime's own forward pass, PyTorch's, and captum.

Run `python -m benchmarks.compiled` on a quiet machine. It writes its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
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

ROUNDS = {1: 12, 8: 6}
TARGET = 7
PACKAGES = ("torch", "onnxruntime", "onnx", "captum", "numpy")
METHODS = ("grad-cam", "saliency", "guided-backprop")


def contenders(n: int, only: str | None = None) -> dict[str, Contender]:
    """Build what is timed, onnxruntime's plain forward pass first; `only` leaves others out."""
    import onnx
    import torch
    from captum.attr import GuidedBackprop, LayerGradCam

    from benchmarks.networks import torch_resnet50
    from pellucid.compiling import compile_explainer
    from pellucid.graph.runtime import session

    torch.set_num_threads(cores())
    network = torch_resnet50()
    batch = np.random.default_rng(0).standard_normal((n, 3, 224, 224), np.float32)
    tensor = torch.from_numpy(batch)
    file = io.BytesIO()
    program: Any = torch.onnx.export(
        network,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(file)
    model = onnx.load_from_string(file.getvalue())

    def running(model: onnx.ModelProto) -> Contender:
        opened = session(model)
        feeds = {opened.get_inputs()[0].name: batch}
        return lambda: opened.run(None, feeds)

    def forward() -> object:
        with torch.no_grad():
            return network(tensor)

    made: dict[str, Contender] = {"onnxruntime's forward": running(model)}
    for method in METHODS:
        name = f"compiled {method}"
        if only in (None, name):
            made[name] = running(compile_explainer(model, method, target=TARGET).model)
    cam, guided = LayerGradCam(network, network.layer4[2]), GuidedBackprop(network)
    made |= {
        "PyTorch's forward": forward,
        "captum Grad-CAM": lambda: cam.attribute(tensor, target=TARGET),
        "captum guided backprop": lambda: guided.attribute(tensor, target=TARGET),
    }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", metavar="N", type=int)
    parser.add_argument("--memory", nargs=2, metavar=("N", "CONTENDER"))
    arguments = parser.parse_args()
    if arguments.time:
        times = alternated(contenders(arguments.time), ROUNDS[arguments.time])
        print(json.dumps({name: asdict(ratio) for name, ratio in times.items()}))
    elif arguments.memory:
        n, name = arguments.memory
        made = contenders(int(n), name)
        print(json.dumps(added_memory(next(iter(made.values())), made[name])))
    else:
        write_section("Compiled explanations of ResNet-50", section())


def section() -> str:
    """Measure everything and write the section of the results."""
    load, module, today = os.getloadavg()[0], "benchmarks.compiled", datetime.now(UTC).date()
    times: dict[int, dict[str, Ratio]] = {}
    for n in ROUNDS:
        measured = in_subprocess(module, "--time", str(n))
        times[n] = {name: Ratio(**ratio) for name, ratio in measured.items()}
    lines = [
        f"224 x 224, random weights; {today}. Load average before the run, on {cores()} cores: "
        f"{load:.1f}. {machine(PACKAGES)}.",
        "",
        "Time in units of onnxruntime's plain forward pass of the same round: median and "
        "quartiles, then shortest over shortest. Compiled explanations give the prediction and "
        "the heatmap too. Memory is what is added to the peak of that forward pass.",
        "",
        "| | batch 1 | best | batch 8 | best | added memory, batch 8 |",
        "|---|---|---|---|---|---|",
    ]
    base, *others = times[8]
    seconds = [f"1 = {1000 * times[n][base].seconds:.0f} ms | 1" for n in ROUNDS]
    lines.append(f"| {base} | {' | '.join(seconds)} | |")
    for name in others:
        cells = [name]
        for n in ROUNDS:
            ratio = times[n][name]
            cells += [f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"]
            cells += [f"{ratio.best:.2f}"]
        cells.append(f"{in_subprocess(module, '--memory', '8', name):.0f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

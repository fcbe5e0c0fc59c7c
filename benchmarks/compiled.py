"""Compiled explanations of ResNet-50, and what the frameworks and captum take for the same.

Run `python -m benchmarks.compiled` on a quiet machine; it takes about six minutes and writes its
section of RESULTS.md. Every engine has a process of its own, since the threads of one that has just
run stay awake and slow the next one down; the processes take turns, so that what else the machine
does touches all alike.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.measure import (
    Contender,
    Ratio,
    added_memory,
    cores,
    in_subprocess,
    limited,
    machine,
    ratio,
)
from benchmarks.results import write_section

ROUNDS = {1: 16, 8: 8}
TARGET = 7
LAYER = "layer4.2"
PACKAGES = ("torch", "tensorflow", "onnxruntime", "onnx", "captum", "grad-cam", "numpy")
METHODS = ("grad-cam", "saliency", "guided-backprop")
ENGINES = ("onnxruntime", "torch", "tensorflow")
PAUSE = 0.3  # seconds after which the threads of the process before have gone to sleep


def batch_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 224, 224), np.float32)


def in_onnxruntime(n: int, only: str | None = None) -> dict[str, Contender]:
    """Build the plain forward pass and the compiled explanations; `only` leaves others out."""
    import onnx
    import torch

    from benchmarks.networks import torch_resnet50
    from pellucid.compiling.compile import compile_explainer
    from pellucid.graph.runtime import session

    file = io.BytesIO()
    program: Any = torch.onnx.export(
        torch_resnet50(),
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(file)
    model = onnx.load_from_string(file.getvalue())

    def running(model: onnx.ModelProto) -> Contender:
        opened = session(model)
        feeds = {opened.get_inputs()[0].name: batch_of(n)}
        return lambda: opened.run(None, feeds)

    made = {"onnxruntime's forward": running(model)}
    for method in METHODS:
        name = f"compiled {method}"
        if only in (None, name):
            made[name] = running(compile_explainer(model, method, target=TARGET).model)
    return made


def in_torch(n: int, only: str | None = None) -> dict[str, Contender]:
    """Build PyTorch's forward pass, the library on PyTorch, and its peers."""
    import torch
    from captum.attr import GuidedBackprop, LayerGradCam

    import pellucid
    from benchmarks.networks import torch_resnet50
    from pellucid.methods.cam import grad_cam
    from pellucid.methods.gradient import guided_backprop
    from pellucid.methods.objective import Objective
    from tests.parity.peers import stand_ins

    with stand_ins():
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    torch.set_num_threads(cores())
    network, batch = torch_resnet50(), batch_of(n)
    tensor, layer = torch.from_numpy(batch), network.get_submodule(LAYER)
    adapter = pellucid.load(network)
    adapter.prepare(batch)  # looks at the network, once
    cam, guided = LayerGradCam(network, layer), GuidedBackprop(network)

    def forward() -> object:
        with torch.no_grad():
            return network(tensor)

    def pytorch_grad_cam() -> object:
        with GradCAM(network, [layer]) as peer:
            return peer(tensor, [ClassifierOutputTarget(TARGET)] * n)

    return {
        "PyTorch's forward": forward,
        "Pellucid on PyTorch, Grad-CAM": lambda: grad_cam(
            adapter, batch, Objective(adapter, TARGET), [LAYER]
        ),
        "captum Grad-CAM": lambda: cam.attribute(tensor, target=TARGET),
        "pytorch-grad-cam": pytorch_grad_cam,
        "Pellucid on PyTorch, guided backprop": lambda: guided_backprop(
            adapter, batch, Objective(adapter, TARGET)
        ),
        "captum guided backprop": lambda: guided.attribute(tensor, target=TARGET),
    }


def in_tensorflow(n: int, only: str | None = None) -> dict[str, Contender]:
    """Build TensorFlow's forward pass, as a `tf.function`."""
    import tensorflow as tf

    from benchmarks.networks import keras_resnet50

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    model, tensor = keras_resnet50(), tf.constant(batch_of(n).transpose(0, 2, 3, 1))
    forward = tf.function(lambda x: model(x, training=False))
    return {"TensorFlow's forward": lambda: forward(tensor).numpy()}


CONTENDERS = {"onnxruntime": in_onnxruntime, "torch": in_torch, "tensorflow": in_tensorflow}


def serve(engine: str, n: int) -> None:
    """Say the names of the contenders, then time one for each name that comes in."""
    made = CONTENDERS[engine](n)
    for contender in made.values():
        contender()
    print(json.dumps(list(made)), flush=True)
    for line in sys.stdin:
        made[line.strip()]()  # wakes its threads, and has its memory at hand
        began = time.perf_counter()
        made[line.strip()]()
        print(time.perf_counter() - began, flush=True)


class Served:
    """A contender in a process of its own."""

    def __init__(self, engine: str, n: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compiled", "--serve", engine, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            **limited(),
        )
        self.names: list[str] = json.loads(self._said(start="["))

    def seconds(self, name: str) -> float:
        """Time one call of a contender."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self._said())

    def _said(self, start: str = "") -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"A benchmark process ended: {self.process.args}")

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def timed(n: int) -> dict[str, Ratio]:
    """Time all contenders in turn; the first one is the baseline."""
    served = [Served(engine, n) for engine in ENGINES]
    where = {name: one for one in served for name in one.names}
    taken: dict[str, list[float]] = {name: [] for name in where}
    for round_number in range(ROUNDS[n]):
        for name in list(where)[:: 1 if round_number % 2 == 0 else -1]:
            time.sleep(PAUSE)
            taken[name].append(where[name].seconds(name))
    for one in served:
        one.close()
    baseline = np.array(next(iter(taken.values())))
    return {name: ratio(np.array(seconds), baseline) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("ENGINE", "N"))
    parser.add_argument("--memory", nargs=3, metavar=("ENGINE", "N", "CONTENDER"))
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]))
    elif arguments.memory:
        engine, n, name = arguments.memory
        made = CONTENDERS[engine](int(n), name)
        print(json.dumps(added_memory(next(iter(made.values())), made[name])))
    else:
        write_section("Compiled explanations of ResNet-50", section())


def section() -> str:
    """Measure everything and write the section of the results."""
    load, today = os.getloadavg()[0], datetime.now(UTC).date()
    times = {n: timed(n) for n in ROUNDS}
    owner = {name: engine for engine, names in _names(times[8]).items() for name in names}
    lines = [
        f"224 x 224, random weights; {today}. Load average before the run, on {cores()} cores: "
        f"{load:.1f}. {machine(PACKAGES)}.",
        "",
        "Time in units of onnxruntime's plain forward pass of the same round: median and "
        "quartiles, then shortest over shortest. Every engine runs in its own process; they take "
        "turns. Compiled explanations give the prediction and the heatmap too. Memory is what is "
        "added to the peak of a fresh process that has run its engine's forward pass.",
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
            found = times[n][name]
            cells += [f"**{found.median:.2f}** ({found.low:.2f} to {found.high:.2f})"]
            cells += [f"{found.best:.2f}"]
        plain = name.endswith("forward")
        module, engine = "benchmarks.compiled", owner[name]
        added = "" if plain else f"{in_subprocess(module, '--memory', engine, '8', name):.0f} MiB"
        lines.append(f"| {' | '.join([*cells, added])} |")
    return "\n".join(lines)


def _names(times: dict[str, Ratio]) -> dict[str, list[str]]:
    """Tell which engine a contender runs on; each engine's forward pass comes first."""
    found: dict[str, list[str]] = {}
    engines = iter(ENGINES)
    for name in times:
        if name.endswith("'s forward"):
            found[engine := next(engines)] = []
        found[engine].append(name)
    return found


if __name__ == "__main__":
    main()

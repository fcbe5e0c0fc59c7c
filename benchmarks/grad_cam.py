"""Grad-CAM of ResNet-50: Pellucid, its peers and the framework's plain forward pass.

Run `python -m benchmarks.grad_cam` on a quiet machine. Nothing else should run beside it: on a
busy machine the quartiles lie far apart. It takes a few minutes and writes its section of
RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

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

ROUNDS = {1: 14, 8: 8}
TARGET = 4  # a class for which something speaks: an empty map would be examined too
TORCH_LAYER = "layer4.2"
KERAS_LAYER = "conv5_block3_out"
PACKAGES = {
    "torch": ("torch", "captum", "grad-cam", "numpy"),
    "keras": ("tensorflow", "keras", "tf-keras-vis", "numpy"),
}
TITLES = {"torch": "PyTorch", "keras": "Keras 3 on TensorFlow"}


def torch_contenders(n: int) -> dict[str, Contender]:
    """Build what is timed in PyTorch, the plain forward pass first."""
    import torch

    torch.set_num_threads(cores())
    from captum.attr import LayerGradCam

    with stand_ins():
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    import pellucid
    from benchmarks.networks import torch_resnet50
    from pellucid.methods.cam import grad_cam
    from pellucid.methods.objective import Objective

    model = torch_resnet50()
    layer = model.get_submodule(TORCH_LAYER)
    batch = np.random.default_rng(0).standard_normal((n, 3, 224, 224), np.float32)
    tensor = torch.from_numpy(batch)
    adapter = pellucid.load(model)
    adapter.prepare(batch)  # looks at the network, once

    def forward() -> object:
        with torch.no_grad():
            return model(tensor)

    def pytorch_grad_cam() -> object:
        with GradCAM(model, [layer]) as cam:
            return cam(tensor, [ClassifierOutputTarget(TARGET)] * n)

    return {
        "plain forward": forward,
        "Pellucid, the method": lambda: grad_cam(
            adapter, batch, Objective(adapter, TARGET), [TORCH_LAYER]
        ),
        "Pellucid, `explain`": lambda: pellucid.explain(
            adapter, batch, layer=TORCH_LAYER, target=TARGET
        ),
        "captum": lambda: LayerGradCam(model, layer).attribute(tensor, target=TARGET),
        "pytorch-grad-cam": pytorch_grad_cam,
    }


def keras_contenders(n: int) -> dict[str, Contender]:
    """Build what is timed in Keras, the forward pass as a `tf.function` first."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(cores())
    with stand_ins():
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
        from tf_keras_vis.utils.scores import CategoricalScore

    import pellucid
    from benchmarks.networks import keras_resnet50
    from pellucid.methods.cam import grad_cam
    from pellucid.methods.objective import Objective

    model = keras_resnet50()
    batch = np.random.default_rng(0).standard_normal((n, 224, 224, 3), np.float32)
    tensor = tf.constant(batch)
    channels_first = batch.transpose(0, 3, 1, 2)
    forward = tf.function(lambda x: model(x, training=False))
    adapter = pellucid.load(model)
    peer = Gradcam(model, model_modifier=ReplaceToLinear())

    return {
        "plain forward": lambda: forward(tensor).numpy(),
        "eager call": lambda: model(tensor, training=False).numpy(),
        "`model.predict`": lambda: model.predict(batch, verbose=0),
        "Pellucid, the method": lambda: grad_cam(
            adapter, channels_first, Objective(adapter, TARGET), [KERAS_LAYER]
        ),
        "Pellucid, `explain`": lambda: pellucid.explain(
            adapter, batch, layer=KERAS_LAYER, target=TARGET
        ),
        "tf-keras-vis": lambda: peer(
            CategoricalScore(TARGET),
            tensor,
            penultimate_layer=KERAS_LAYER,
            seek_penultimate_conv_layer=False,
        ),
    }


CONTENDERS = {"torch": torch_contenders, "keras": keras_contenders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", nargs=2, metavar=("FRAMEWORK", "N"))
    parser.add_argument("--memory", nargs=3, metavar=("FRAMEWORK", "N", "CONTENDER"))
    arguments = parser.parse_args()
    if arguments.time:
        framework, n = arguments.time
        times = alternated(CONTENDERS[framework](int(n)), ROUNDS[int(n)])
        print(json.dumps({name: asdict(ratio) for name, ratio in times.items()}))
    elif arguments.memory:
        framework, n, name = arguments.memory
        contenders = CONTENDERS[framework](int(n))
        print(json.dumps(added_memory(contenders["plain forward"], contenders[name])))
    else:
        write_section("Grad-CAM of ResNet-50", section())


def section() -> str:
    """Measure everything and write the section of the results."""
    module = "benchmarks.grad_cam"
    today = datetime.now(UTC).date()
    parts = [
        f"224 x 224, random weights, the map at the last block's output; {today}. "
        f"Load average before the run, on {cores()} cores: {os.getloadavg()[0]:.1f}.",
        "",
        "Time is in units of the plain forward pass of the same round (PyTorch under `no_grad`, "
        "Keras in a `tf.function`): median and, in brackets, quartiles over the rounds; then "
        f"shortest over shortest. {ROUNDS[1]} rounds at batch 1, {ROUNDS[8]} at batch 8, the "
        "contenders taking turns in one process. Memory is what a contender adds to the peak of "
        "a fresh process that has run the plain forward pass. `the method` is Grad-CAM over the "
        "adapter, `explain` the public call with pictures, heatmaps, predictions and provenance.",
    ]
    for framework in CONTENDERS:
        times: dict[int, dict[str, Ratio]] = {}
        for n in ROUNDS:
            measured = in_subprocess(module, "--time", framework, str(n))
            times[n] = {name: Ratio(**ratio) for name, ratio in measured.items()}
        memory = {
            name: in_subprocess(module, "--memory", framework, "8", name)
            for name in list(times[8])[1:]
        }
        parts += ["", f"### {TITLES[framework]}", "", machine(PACKAGES[framework]), ""]
        parts += table(times, memory)
    return "\n".join(parts)


def table(times: Mapping[int, Mapping[str, Ratio]], memory: Mapping[str, float]) -> list[str]:
    """Write one row per contender."""
    lines = [
        "| | batch 1 | best | batch 8 | best | added memory, batch 8 |",
        "|---|---|---|---|---|---|",
    ]
    for name in times[8]:
        cells = [name]
        for n in ROUNDS:
            ratio = times[n][name]
            if name in memory:
                spread = f"({ratio.low:.2f} to {ratio.high:.2f})"
                cells += [f"**{ratio.median:.2f}** {spread}", f"{ratio.best:.2f}"]
            else:
                cells += [f"1 = {1000 * ratio.seconds:.0f} ms", "1"]
        cells.append(f"{memory[name]:.0f} MiB" if name in memory else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()

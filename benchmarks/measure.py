"""Measuring contenders side by side, so that what else the machine does touches all alike."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Contender",
    "Ratio",
    "added_memory",
    "alternated",
    "cores",
    "in_subprocess",
    "limited",
    "machine",
    "ratio",
]

Contender = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Time of a contender in units of the baseline's.

    Attributes
    ----------
    median, low, high : median and quartiles over the rounds, each against the same round's
        baseline.
    best : shortest time over shortest time.
    seconds : shortest time of the contender itself.
    """

    median: float
    low: float
    high: float
    best: float
    seconds: float


def alternated(
    contenders: Mapping[str, Contender], rounds: int, warm_ups: int = 1
) -> dict[str, Ratio]:
    """Time the contenders in turn, many times over; the first one is the baseline.

    Every second round goes backwards, so that no contender always follows the same other one.
    """
    for contender in contenders.values():
        for _ in range(warm_ups):
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds):
        order = list(contenders)[:: 1 if round_number % 2 == 0 else -1]
        for name in order:
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    baseline = np.array(next(iter(seconds.values())))
    return {name: ratio(np.array(taken), baseline) for name, taken in seconds.items()}


def ratio(taken: np.ndarray, baseline: np.ndarray) -> Ratio:
    """Compare seconds per round with those of the baseline in the same rounds."""
    low, median, high = np.quantile(taken / baseline, (0.25, 0.5, 0.75))
    best = taken.min() / baseline.min()
    return Ratio(float(median), float(low), float(high), float(best), float(taken.min()))


def added_memory(baseline: Contender, contender: Contender) -> float:
    """Return by how many MiB a contender raises this process's peak over the baseline's.

    Only meaningful in a process that has run nothing else: see `in_subprocess`.
    """
    baseline()
    before = _peak()
    contender()
    return _peak() - before


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_subprocess(module: str, *arguments: str) -> Any:
    """Run a module of this folder in a fresh process and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        **limited(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def limited() -> dict[str, Any]:
    """Return the folder and the environment of a process that is to be measured."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cores()))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    return {"cwd": Path(__file__).parent.parent, "env": {**os.environ, **limits, **quiet}}


def cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(packages: Sequence[str]) -> str:
    """Describe the machine and the versions in one line."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    processor = f"{cores()} {platform.machine()} cores"
    return f"{processor}, {platform.system()}, Python {platform.python_version()}; {versions}"

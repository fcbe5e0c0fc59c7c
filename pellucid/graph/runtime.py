"""Opening ONNX graphs with onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from pellucid.errors import UnsupportedError

__all__ = ["operator_threads", "session"]

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def session(proto: onnx.ModelProto, *, optimize: bool = True, threads: int | None = None) -> Any:
    """Open a model on the CPU.

    Parameters
    ----------
    proto : the model.
    optimize : whether the runtime may rewrite the graph; it pays for all but single runs.
    threads : threads within an operator, by default those of `operator_threads`.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(
            "Running ONNX graphs needs onnxruntime: pip install 'pellucid[cpu]' or 'pellucid[gpu]'."
        ) from error
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or operator_threads() if optimize else 1
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def operator_threads() -> int:
    """Count the threads within an operator: `OMP_NUM_THREADS`, else one for each physical core.

    More than that are slower: they wait for each other by spinning. NumPy and PyTorch obey the
    variable by themselves, onnxruntime does not.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # then those of inner loops
    if given.isdecimal() and int(given):
        return int(given)
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(_SIBLINGS.format(cpu)).read_text())
        except OSError:
            return len(allowed)
    return max(1, min(len(siblings), len(allowed)))

"""Opening ONNX graphs with onnxruntime."""

from __future__ import annotations

import os
from typing import Any

import onnx

from pellucid.errors import UnsupportedError

__all__ = ["session"]


def session(proto: onnx.ModelProto, *, optimize: bool = True, threads: int | None = None) -> Any:
    """Open a model on the CPU.

    Parameters
    ----------
    proto : the model.
    optimize : whether the runtime may rewrite the graph; it pays for all but single runs.
    threads : threads within an operator, by default one for each core this process may use;
        more than that makes onnxruntime twice as slow.
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
    options.intra_op_num_threads = threads or cores() if optimize else 1
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

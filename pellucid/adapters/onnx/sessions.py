"""Making onnxruntime sessions: options, providers, models too large for one protobuf."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from pellucid.errors import InputError, LoadError, UnsupportedError, first_line
from pellucid.graph.runtime import operator_threads

__all__ = ["open_session"]

_LIMIT = (1 << 31) - 1  # bytes of one protobuf


def open_session(
    model: ModelProto, *, source: str, device: str | None = None, folder: Path | None = None
) -> Any:
    """Return an `onnxruntime.InferenceSession` for a model.

    Parameters
    ----------
    model : the model, or the part of it that is wanted.
    source : its name in messages.
    device : None (CUDA if onnxruntime offers it), "cpu", "cuda" or "cuda:1".
    folder : where the model's external data lies, if it is not in memory.

    Raises
    ------
    UnsupportedError : onnxruntime is not installed, or CUDA was asked for and does not come up.
    LoadError : onnxruntime cannot run the model.
    """
    if find_spec("onnxruntime") is None:
        raise UnsupportedError(
            "ONNX files need onnxruntime: install 'pellucid[cpu]' or 'pellucid[gpu]'."
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(
            f"onnxruntime does not start ({first_line(error)}). Install "
            "'pellucid[cpu]' or 'pellucid[gpu]', not both."
        ) from error
    providers = _providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = operator_threads()
    options.log_severity_level = 4  # errors are raised
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    try:
        session = _created(onnxruntime, model, options, providers)
    except Exception as error:
        raise LoadError(f"onnxruntime cannot run {source}: {first_line(error)}") from error
    if (device or "").startswith("cuda") and "CUDAExecutionProvider" not in session.get_providers():
        raise UnsupportedError(
            "The CUDA provider of onnxruntime did not start (a CUDA or cuDNN library of the right "
            "version is missing, or there is no GPU). Use device='cpu', or mend the installation."
        )
    return session


def _created(onnxruntime: Any, model: ModelProto, options: Any, providers: list[Any]) -> Any:
    if model.ByteSize() <= _LIMIT:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    # The weights of one tensor always fit into a protobuf, those of this model do not.
    with tempfile.TemporaryDirectory(prefix="pellucid-") as temporary:
        path = Path(temporary) / "model.onnx"
        copy = ModelProto()
        copy.CopyFrom(model)  # saving with external data empties the model that is saved
        onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin")
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _providers(device: str | None, available: list[str]) -> list[Any]:
    wanted = "cuda" if device is None and "CUDAExecutionProvider" in available else device or "cpu"
    name, _, index = wanted.partition(":")
    if name == "cpu":
        return ["CPUExecutionProvider"]
    if name != "cuda" or (index and not index.isdigit()):
        raise InputError(f"device={device!r} is not known: use 'cpu', 'cuda' or 'cuda:1'.")
    if "CUDAExecutionProvider" not in available:
        raise UnsupportedError(
            "This onnxruntime has no CUDA provider. Install 'pellucid[gpu]' in place of "
            "'pellucid[cpu]', or use device='cpu'."
        )
    cuda = ("CUDAExecutionProvider", {"device_id": index or "0"})
    return [cuda, "CPUExecutionProvider"]

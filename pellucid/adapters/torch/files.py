"""What turns a path, or "package.module:factory", into a PyTorch module.

A `.pt` file may be TorchScript, a state dict, or a pickled module; only its content tells. The
last is refused, because unpickling runs whatever the file says.
"""

from __future__ import annotations

import copy
import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.adapters.files import DESCRIBED, content_of
from pellucid.adapters.torch.exported import Exported, read_exported, repacked
from pellucid.adapters.torch.torchscript import read_script
from pellucid.errors import LoadError, first_line

__all__ = ["load_weights", "open_torch", "read_weights"]

_NESTED = ("state_dict", "model_state_dict", "model", "ema", "model_ema", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_SHOWN = 3
_INFLATION = 50  # PyTorch compresses little but program text

_USE_FACTORY = (
    "save the weights with torch.save(model.state_dict(), ...) and load "
    "'package.module:factory' with weights=, or export the model with torch.export"
)


def open_torch(path: Path, *, allow_code: bool = False) -> nn.Module | Exported:
    """Open an exported program, a TorchScript file or, if that is allowed, a pickled module.

    Raises
    ------
    LoadError : the file is none of these, or is refused.
    """
    content = content_of(path)
    if content == "pickle":
        return _pickled(path, allow_code)
    if content != "zip":
        raise LoadError(
            f"{path} is no PyTorch model: it is {DESCRIBED[content]}. Download or save it again."
        )
    members = _members(path)
    if "archive_format" in members or "serialized_exported_program.json" in members:
        return read_exported(members, str(path))
    code = [name for name in members if name.startswith("code/")]
    if code and "constants.pkl" in members:
        return _scripted(path, members, allow_code)
    if "data.pkl" in members:
        return _pickled(path, allow_code)
    raise LoadError(
        f"{path} is a zip archive, but no PyTorch model. (A Keras model? Name it .keras.)"
    )


def _members(path: Path) -> dict[str, bytes]:
    """Read the archive's files, by their names inside its top folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            names = [info.filename.partition("/")[2] or info.filename for info in infos]
            if len(set(names)) < len(names):
                raise LoadError(f"{path} is refused: it holds one file twice. Save it again.")
            if sum(info.file_size for info in infos) > _INFLATION * path.stat().st_size:
                raise LoadError(f"{path} is refused: unpacked it would be far larger than it is.")
            return {name: archive.read(info) for name, info in zip(names, infos, strict=True)}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise LoadError(
            f"{path} is damaged or cut short ({first_line(error)}). Download or save it again."
        ) from error


def _scripted(path: Path, members: Mapping[str, bytes], allow_code: bool) -> nn.Module:
    texts = [data for name, data in members.items() if name.startswith("code/")]
    pickles = [data for name, data in members.items() if name.endswith(".pkl")]
    if not allow_code:
        # Opening runs these; everything else runs operator by operator, under our eyes.
        if any(b"__setstate__" in text for text in texts):
            raise LoadError(
                f"{path} is refused: it holds a __setstate__ method, which runs as the file is "
                "opened. Give allow_code=True if you trust the file."
            )
        if any(b"torch.classes" in data for data in (*texts, *pickles)):
            raise LoadError(
                f"{path} is refused: it holds objects of custom C++ classes. Give "
                "allow_code=True if you trust the file."
            )
    return read_script(repacked(members).getvalue(), str(path))


def _pickled(path: Path, allow_code: bool) -> nn.Module:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not allow_code:
            raise LoadError(
                f"{path} is a pickled PyTorch object, and opening a pickle runs whatever code it "
                f"holds. Where you have the model, {_USE_FACTORY}. allow_code=True opens it all "
                "the same."
            ) from error
        found = _unpickled(path)
    if isinstance(found, nn.Module):
        return found
    raise LoadError(
        f"{path} holds weights and no network. Give the code that builds the network, "
        f"'package.module:factory', and weights={path.name!r}."
    )


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise LoadError(f"{path} cannot be unpickled: {first_line(error)}.") from error


# ---- weights --------------------------------------------------------------------------------


def read_weights(path: Path, *, allow_code: bool = False) -> Any:
    """Read a state dict, or a checkpoint that holds one."""
    content = content_of(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if content not in ("zip", "pickle"):
        raise LoadError(
            f"{path} holds no PyTorch weights: it is {DESCRIBED[content]}. Download or save it "
            "again."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not allow_code:
            raise LoadError(
                f"{path} holds more than weights, and opening it could run code "
                f"({first_line(error)}). Save model.state_dict() alone, or give allow_code=True "
                "if you trust the file."
            ) from error
        found = _unpickled(path)
    return found


def _safetensors(path: Path) -> Any:
    try:
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError as error:
        raise LoadError(f"{path} needs the package safetensors: install it.") from error
    try:
        return load_file(path)
    except Exception as error:
        raise LoadError(f"{path} is damaged: {first_line(error)}.") from error


def load_weights(module: nn.Module, path: Path, *, allow_code: bool = False) -> nn.Module:
    """Return the module with the weights of a file.

    A checkpoint's own nesting ("state_dict", "model", "ema", ...) and the prefixes that wrappers
    put before names ("module.", "_orig_mod.", ...) are seen through.

    Raises
    ------
    LoadError : names or shapes do not match; the message lists the first few.
    """
    own = module.state_dict()
    candidates = _state_dicts(read_weights(path, allow_code=allow_code))
    if not candidates:
        raise LoadError(f"{path} holds no state dict, a mapping from names to tensors.")
    stripped = [_stripped(candidate, own) for candidate in candidates]
    state = max(stripped, key=lambda candidate: _matches(candidate, own))
    optional = "num_batches_tracked"
    missing = [n for n in own if n not in state and not n.endswith(optional)]
    unexpected = [n for n in state if n not in own and not n.endswith(optional)]
    wrong = [
        f"{n} ({_shape(state[n])} in the file, {_shape(own[n])} in the network)"
        for n in own
        if n in state and _shape(state[n]) != _shape(own[n])
    ]
    if missing or unexpected or wrong:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        said = "; ".join(f"{word}: {_listed(names)}" for word, names in parts if names)
        raise LoadError(
            f"{path} does not fit {type(module).__name__}: {said}. Give the weights of this very "
            "network."
        )
    filled = copy.deepcopy(module)
    filled.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)
    return filled


def _state_dicts(found: Any) -> list[dict[str, Any]]:
    """List the state dicts in a checkpoint: itself, and what lies under the usual names."""
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping):
        return []
    inner = [d for key in _NESTED if key in found for d in _state_dicts(found[key])]
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return [*inner, *([tensors] if tensors else [])]


def _stripped(state: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes of one or two wrappers if that makes more names match."""
    best = state
    for outer in ("", *_PREFIXES):
        for inner in ("", *_PREFIXES):
            shorter = {n.removeprefix(outer).removeprefix(inner): v for n, v in state.items()}
            if len(shorter) == len(state) and _matches(shorter, own) > _matches(best, own):
                best = shorter
    return best


def _matches(state: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    return len(state.keys() & own.keys())


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

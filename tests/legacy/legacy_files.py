"""Writes small files as old Keras would have, for tests of one translation at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pellucid.adapters.legacy import LegacyModel, read
from pellucid.adapters.legacy.build import build

Groups = dict[str, dict[str, Any]]


def write(
    path: Path, config: Any, groups: Groups, version: str = "1.2.2", backend: str | None = None
) -> Path:
    """Write a whole-model HDF5 file: the architecture, and arrays by layer."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["keras_version"] = version.encode()
        if backend:
            file.attrs["backend"] = backend.encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [name.encode() for name in groups]
        for name, arrays in groups.items():
            group = weights.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in arrays]
            for key, value in arrays.items():
                group.create_dataset(key, data=value)
    return path


def sequential(shape: tuple[int, ...], *layers: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the configuration of a Sequential of Keras 1 or 2."""
    entries = [{"class_name": kind, "config": dict(config)} for kind, config in layers]
    entries[0]["config"]["batch_input_shape"] = [None, *shape]
    return {"class_name": "Sequential", "config": entries}


def opened(path: Path, **options: Any) -> tuple[LegacyModel, Any]:
    """Read and build a file."""
    legacy = read(path, **options)
    return legacy, build(legacy)


def output(path: Path, x: Any, **options: Any) -> Any:
    """Return what the model of a file makes of a batch."""
    return np.asarray(opened(path, **options)[1](np.asarray(x, np.float32), training=False))


def numbers(*shape: int, seed: int = 0) -> Any:
    """Return small reproducible numbers."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

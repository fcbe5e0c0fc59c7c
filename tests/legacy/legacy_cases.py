"""The genuine files: where they lie, how to open each, and what its own software gave.

The cases in `cases/` are a part of a larger corpus; PELLUCID_LEGACY_CASES names a folder with more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "cases"
_MORE = os.environ.get("PELLUCID_LEGACY_CASES")
_FOLDERS = [HERE, *([Path(_MORE)] if _MORE else [])]
CASES = {path.name: path for root in _FOLDERS for path in sorted(root.iterdir()) if path.is_dir()}
GOOD = [name for name in CASES if not name.startswith("bad_")]

# They hold a graph and no layers.
GRAPHS = {"savedmodel_export", "savedmodel_tf1_simple_save"}


def meta(name: str) -> dict[str, Any]:
    return json.loads((CASES[name] / "meta.json").read_text())


def opening(name: str) -> dict[str, Any]:
    """Return the arguments that open a case: `path`, and `weights` or `architecture`."""
    import keras

    folder, files = CASES[name], meta(name)["files"]
    if "architecture_code" in files:
        scope: dict[str, Any] = {}
        exec((folder / files["architecture_code"]).read_text(), scope)
        weights = folder / files["weights"]
        return {"path": weights, "architecture": lambda: scope["build"](keras)}
    if "architecture" in files:
        return {"path": folder / files["architecture"], "weights": folder / files["weights"]}
    return {"path": folder / files["model"]}


def inputs_of(name: str) -> list[np.ndarray[Any, Any]]:
    """Return the inputs in the model's own layout."""
    with np.load(CASES[name] / "inputs.npz") as stored:
        keys = ["x"] if "x" in stored else [f"x{i}" for i in range(len(stored.files))]
        return [stored[key] for key in keys]

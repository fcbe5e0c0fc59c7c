"""Reads a file a second time, by other means, and compares it with the model that was opened.

The reader moves arrays about: it names, transposes, flips and joins them. None of this changes
which values there are. So each array is summed up by a checksum that does not depend on order and
adds up over parts, and the sums of the file must be those of the model: every array was used, and
used once.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pellucid.doctor.findings import Check

__all__ = ["compare", "in_file", "in_model"]

Array = NDArray[Any]
Arrays = Mapping[str, Sequence[Array]]

_SKIPPED = re.compile(r"(^|/)(optimizer|optimizer_weights|metrics|seed_generator|training_config)/")
_STATE = re.compile(r"StateVar|state_var|seed|random_generator|(^|/)count(:\d+)?$")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def in_file(path: Path) -> dict[str, list[Array]] | None:
    """Return the arrays of a file by the layer that it files them under; None for other formats.

    Only for a file that the reader has accepted: it has checked links, sizes and members.
    """
    if path.is_dir():
        return _checkpoint(path / "variables" / "variables")
    if path.with_name(path.name + ".index").is_file():
        return _checkpoint(path)
    if path.suffix == ".index":
        return _checkpoint(path.with_suffix(""))
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            return _hdf5(file)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            memory = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(memory, "r") as file:
            return _hdf5(file)
    return None


def _hdf5(file: h5py.File) -> dict[str, list[Array]]:
    root = file.get("model_weights", file)
    store = "layer_names" not in root.attrs and "layer_names0" not in root.attrs
    found: dict[str, list[Array]] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or _SKIPPED.search(f"{name}/"):
            return
        if _STATE.search(name) and item.dtype.kind in "iu":
            return
        key = "/".join(name.split("/")[:2]) if store else name.split("/")[0]
        if store and name.startswith("_layer_checkpoint_dependencies/"):
            key = name.split("/")[1]
        found.setdefault(key, []).append(item[()])

    root.visititems(visit)
    return found


def _checkpoint(prefix: Path) -> dict[str, list[Array]] | None:
    try:
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(prefix))
        names = list(reader.get_variable_to_shape_map())
    except Exception:  # no TensorFlow, or no checkpoint: then there is nothing to compare
        return None
    kept = [
        name for name in names
        if name.endswith(_VALUE) and "/.OPTIMIZER_SLOT/" not in name
        and not re.match(r"(optimizer|save_counter|keras_api)", name)
    ]  # fmt: skip
    arrays = {name: np.asarray(reader.get_tensor(name)) for name in kept}
    return {
        name.removesuffix(_VALUE): [array]
        for name, array in arrays.items()
        if array.dtype.kind == "f"
    }


def in_model(model: Any) -> dict[str, list[Array]]:
    """Return the weights of a Keras model by its outermost layers."""
    found = {}
    for layer in model.layers:
        weights = [w for w in layer.weights if not _STATE.search(w.path)]
        if weights:
            found[layer.name] = [np.asarray(w.value) for w in weights]
    return found


def _sum(arrays: Sequence[Array]) -> tuple[int, int]:
    """Return the number of values and the sum of their scrambled bits."""
    count, total = 0, 0
    for array in arrays:
        values = np.ascontiguousarray(array, np.float32).ravel() + np.float32(0)  # -0 is 0
        bits = values.view(np.uint32).astype(np.uint64)
        with np.errstate(over="ignore"):
            bits = (bits ^ (bits >> np.uint64(15))) * np.uint64(0x9E3779B97F4A7C15)
            bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            total = (total + int(bits.sum(dtype=np.uint64))) % 2**64
        count += array.size
    return count, total


def compare(file: Arrays, model: Arrays, changed: Sequence[str]) -> Check:
    """Compare the arrays of a file with the weights of the model made from it.

    Parameters
    ----------
    file, model : by layer.
    changed : what the reader says it computed anew, which a checksum cannot follow.
    """
    name = "every array of the file is used once"
    theirs = {layer: _sum(arrays) for layer, arrays in file.items() if len(arrays)}
    ours = {layer: _sum(arrays) for layer, arrays in model.items()}
    whole = _sum([a for arrays in file.values() for a in arrays])
    mine = _sum([a for arrays in model.values() for a in arrays])
    if whole == mine:
        same = sum((Counter(theirs.values()) & Counter(ours.values())).values())
        return Check(
            name,
            True,
            f"{whole[0]:,} values read twice agree (checksum {whole[1]:016x}); {same} of "
            f"{len(theirs)} groups of the file are a layer each",
        )
    left = Counter(ours.values())
    apart = []
    for layer, total in theirs.items():
        if left[total]:
            left[total] -= 1
        else:
            apart.append(layer)
    where = ", ".join(apart[:4]) + (" and others" if len(apart) > 4 else "")
    if changed:
        return Check(
            name,
            None,
            f"{len(theirs) - len(apart)} of {len(theirs)} layers agree; {where} cannot be compared "
            f"by checksum, since {changed[0]}",
        )
    return Check(
        name,
        False,
        f"the file holds {whole[0]:,} values, the model {mine[0]:,}; they differ in {where}",
    )

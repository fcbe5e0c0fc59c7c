"""Gives every array of a file to a layer and brings it to Keras 3's layout.

A file lists arrays by layer; a nested model's are one list, trainable ones first. Names decide
where they can, the old order of Keras where they cannot. Every array is used once or the file is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.legacy.config import children, inner_model, leaves
from pellucid.adapters.legacy.model import Config, Notes, Stored
from pellucid.adapters.legacy.variables import FROZEN, fits, variables

__all__ = ["Found", "assemble", "assign", "complete", "flipped", "is_state", "takes_weights"]

Array = NDArray[Any]
Found = dict[str, dict[str, Array]]

_SPATIAL = {"1": 1, "2": 2, "3": 3}
_CUT = re.compile(r"_(?P<array>[WUb])_(?P<gate>[a-z])(:\d+)?$")
_STATE = re.compile(r"StateVar|state_var|seed|random_generator")
_KEPT = 2  # gamma and beta: the running statistics of modes 1 and 2 are never read


def assign(groups: Sequence[tuple[str, list[Stored]]], config: Config, notes: Notes) -> Found:
    """Distribute the layer groups of a Keras 1 or 2 file over the layers of the architecture.

    Raises
    ------
    LoadError : an array is left over, missing, or of the wrong shape.
    """
    layers = config["config"]["layers"]
    groups = [(name, [one for one in stored if not is_state(one)]) for name, stored in groups]
    pairs = _matched([group for group in groups if group[1]], layers, notes)
    found: Found = {}
    for path, layer, stored in pairs:
        parts = [(path, layer, stored)]
        if inner_model(layer):
            parts = _split(stored, list(leaves(children(layer), path + "/")), path, notes)
        for inside, leaf, arrays in parts:
            if inside in found:
                raise notes.fault(f"layer {inside!r}", "the file holds its weights twice.")
            found[inside] = assemble(leaf, arrays, notes, inside)
    return complete(found, layers, notes)


def complete(found: Found, layers: list[Config], notes: Notes) -> Found:
    """Check that no layer that needs weights is without, and return them in layer order."""
    ordered: Found = {}
    for path, layer in leaves(layers):
        if path not in found and variables(layer):
            raise notes.fault(
                f"layer {path!r}", f"the file has no weights for this {layer['class_name']} layer."
            )
        if path in found:
            ordered[path] = found.pop(path)
    for path, arrays in ordered.items():
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                count = int(np.sum(~np.isfinite(array)))
                notes.warn(
                    f"layer {path!r}: {count} of {array.size} values of {name!r} are not finite "
                    "numbers; the weights are damaged or training diverged"
                )
    return ordered


def _matched(
    groups: list[tuple[str, list[Stored]]], layers: list[Config], notes: Notes
) -> list[tuple[str, Config, list[Stored]]]:
    """Pair groups with layers: by name, among the nested ones too; else by order."""
    old = notes.renamed
    by_name = {old.get(layer["name"], layer["name"]): (layer["name"], layer) for layer in layers}
    for path, layer in leaves(layers):
        by_name.setdefault(old.get(layer["name"], layer["name"]), (path, layer))
    if all(name in by_name for name, _ in groups):
        return [(*by_name[name], stored) for name, stored in groups]
    takers = [layer for layer in layers if takes_weights(layer)]
    unknown = [name for name, _ in groups if name not in by_name]
    if len(takers) != len(groups):
        raise notes.fault(
            f"layer {unknown[0]!r}",
            f"the architecture has no such layer, and the weights cannot be matched by order: the "
            f"file has them for {len(groups)} layers, the architecture has {len(takers)}.",
        )
    notes.translate("weights are matched to the layers by order and shape, names differ "
                    f"({groups[0][0]!r} is {takers[0]['name']!r})")  # fmt: skip
    return [
        (layer["name"], layer, stored) for layer, (_, stored) in zip(takers, groups, strict=True)
    ]


def is_state(stored: Stored) -> bool:
    """Whether an array is the state of a random generator, which nothing here draws from."""
    return stored.array.dtype.kind in "iu" and bool(_STATE.search(stored.name))


def takes_weights(layer: Config) -> bool:
    """Whether a layer holds variables, as far as can be known."""
    if inner_model(layer):
        return any(takes_weights(inner) for inner in children(layer))
    return bool(variables(layer)) or "custom" in layer


def _split(
    stored: list[Stored], parts: list[tuple[str, Config]], path: str, notes: Notes
) -> list[tuple[str, Config, list[Stored]]]:
    """Deal the arrays of a nested model out to the layers inside it."""
    by_name = _by_name(stored, parts)
    if by_name is not None:
        return by_name
    dealt: dict[str, list[Stored]] = {inside: [] for inside, _ in parts}
    queue = list(stored)
    for late in (False, True):  # Keras lists trainable weights first
        for inside, leaf in parts:
            table = variables(leaf)
            if table is None and leaf.get("custom"):
                raise notes.fault(
                    f"layer {inside!r}", "it is a custom layer inside another model, and the names "
                    "in the file do not tell which weights are its own."
                )  # fmt: skip
            frozen = leaf["config"].get("trainable") is False
            for name in table or {}:
                if (frozen or name.split(".")[-1] in FROZEN) == late:
                    if not queue:
                        raise notes.fault(
                            f"layer {inside!r}", f"{name!r} is missing: the file has "
                            f"{len(stored)} arrays for all layers of {path!r}."
                        )  # fmt: skip
                    dealt[inside].append(queue.pop(0))
    if queue:
        raise notes.fault(
            f"layer {path!r}", f"{len(queue)} arrays are left over, the first is {queue[0].name!r}."
        )
    return [(inside, leaf, dealt[inside]) for inside, leaf in parts if dealt[inside]]


def _by_name(
    stored: list[Stored], parts: list[tuple[str, Config]]
) -> list[tuple[str, Config, list[Stored]]] | None:
    owners = {inside.split("/")[-1]: (inside, leaf) for inside, leaf in parts}
    if len(owners) != len(parts):
        return None
    dealt: dict[str, list[Stored]] = {}
    for item in stored:
        pieces = item.name.split("/")[:-1]
        named = [piece for piece in pieces if piece in owners]
        if not named and not pieces:  # Keras 1: layer_W
            named = sorted((n for n in owners if item.name.startswith(f"{n}_")), key=len)
        if not named:
            return None
        dealt.setdefault(named[-1], []).append(item)
    for name, items in dealt.items():
        table = variables(owners[name][1])
        if table is not None and len(items) % max(1, len(table)):
            return None
    missing = [name for name, (_, leaf) in owners.items() if variables(leaf) and name not in dealt]
    return None if missing else [(*owners[name], items) for name, items in dealt.items()]


# ---- one layer -----------------------------------------------------------------------------------


def assemble(layer: Config, stored: list[Stored], notes: Notes, path: str) -> dict[str, Array]:
    """Name the arrays of one layer and bring them to Keras 3's layout."""
    stored = [Stored(item.name, _float32(item.array, notes)) for item in stored]
    kind = layer["class_name"]
    if kind == "TimeDistributed":
        return assemble(layer["config"]["layer"], stored, notes, path)
    if kind == "Bidirectional":
        half, found = len(stored) // 2, dict[str, Array]()
        for side, part in (("forward", stored[:half]), ("backward", stored[half:])):
            inner = assemble(layer["config"]["layer"], part, notes, path)
            found |= {f"{side}.{name}": array for name, array in inner.items()}
        return found
    table = variables(layer)
    if table is None:
        return {item.name: item.array for item in stored}
    arrays = _ordered(layer, stored, list(table), notes)
    if len(arrays) != len(table):
        raise notes.fault(
            f"layer {path!r}", f"the file holds {len(arrays)} arrays for it, a {kind} layer with "
            f"these arguments has {len(table)} ({', '.join(table) or 'none'})."
        )  # fmt: skip
    found = dict(zip(table, arrays, strict=True))
    found = _layout(layer, found, notes)
    _infer(layer, found, notes)
    check(layer, found, None, notes, path)
    return found


def check(
    layer: Config, arrays: dict[str, Array], shape: tuple[int | None, ...] | None, notes: Notes,
    path: str,
) -> None:  # fmt: skip
    """Compare the shapes of a layer's arrays with what its arguments and input ask for."""
    for name, expected in (variables(layer, shape) or {}).items():
        if layer["class_name"] in ("PReLU", "SReLU", "ParametricSoftplus") and shape is None:
            continue
        if name in arrays and not fits(expected, arrays[name].shape):
            wanted = ", ".join("?" if n is None else str(n) for n in expected)
            raise notes.fault(
                f"layer {path!r}", f"its {name} should have the shape ({wanted}), in the file it "
                f"has {arrays[name].shape}."
            )  # fmt: skip


def _float32(array: Array, notes: Notes) -> Array:
    if array.dtype in (np.float16, np.float64):
        notes.translate(f"{array.dtype} weights are read as float32")
        return array.astype(np.float32)
    return array


def _ordered(layer: Config, stored: list[Stored], names: list[str], notes: Notes) -> list[Array]:
    """Return a layer's arrays in Keras 3's order, gates joined."""
    kind = layer["class_name"]
    arrays = [item.array for item in stored]
    gates = {"LSTM": "ifco", "GRU": "zrh", "ConvLSTM2D": "ifco"}.get(kind)
    if gates and len(stored) == 3 * len(gates):
        notes.translate(f"the separate gates of {kind} are joined")
        first = layer["config"].get("data_format") == "channels_first"
        return _joined(stored, gates, 0 if first and kind == "ConvLSTM2D" else -1)
    if kind == "Normalization":
        return arrays[: len(names)]  # the third is a count of batches
    if kind in ("BatchStatistics", "SampleNormalization") and len(arrays) == _KEPT + 2:
        notes.translate("running statistics that modes 1 and 2 never read are left out")
        return arrays[:_KEPT]
    if kind == "Highway":
        keys = {"kernel": r"_W\b", "carry_kernel": r"_W_carry", "bias": r"_b\b",
                "carry_bias": r"_b_carry"}  # fmt: skip
        picked = [[s.array for s in stored if re.search(keys[n], s.name)] for n in names]
        return [one[0] for one in picked] if all(len(p) == 1 for p in picked) else arrays
    return arrays


def _joined(stored: list[Stored], gates: str, axis: int) -> list[Array]:
    """Join Keras 1's gates; its order is i, c, f, o and z, r, h with W, U, b of each."""
    found: dict[tuple[str, str], Array] = {}
    order = "icfo" if gates == "ifco" else gates
    for index, item in enumerate(stored):
        match = _CUT.search(item.name)
        key = (match["array"], match["gate"]) if match else ("WUb"[index % 3], order[index // 3])
        found[key] = item.array
    if set(found) != {(array, gate) for array in "WUb" for gate in gates}:
        found = {("WUb"[i % 3], order[i // 3]): item.array for i, item in enumerate(stored)}
    axes = {"W": axis, "U": axis, "b": -1}
    return [np.concatenate([found[a, gate] for gate in gates], axes[a]) for a in "WUb"]


def _layout(layer: Config, arrays: dict[str, Array], notes: Notes) -> dict[str, Array]:
    """Turn kernels: Keras 1's channels-first order, Theano's convolution, CuDNN's matrices."""
    kind, config = layer["class_name"].removeprefix("Theano"), layer["config"]
    producer = notes.producer
    rank = next((_SPATIAL[c] for c in kind if c in _SPATIAL and "Conv" in kind), 0)
    rank = 2 if kind == "Deconvolution2D" else rank
    for name, array in arrays.items():
        if not (rank and name.endswith("kernel")):
            continue
        if producer.generation == 1:
            array = _keras_1_kernel(kind, array, config.get("data_format") == "channels_first")
        if producer.backend == "theano" and name != "pointwise_kernel":
            array = flipped(array, rank)
            notes.translate("kernels are flipped: Theano convolves, TensorFlow correlates")
        arrays[name] = array
    if kind in ("LSTM", "GRU"):
        return _cudnn(kind, config, arrays, notes)
    outside = producer.number[:2] == (1, 0) and producer.backend == "theano"
    if kind == "BatchNormalization" and outside and arrays["moving_variance"].size:
        epsilon = float(config.get("epsilon", 1e-6))
        root = np.sqrt(arrays["moving_variance"].astype(np.float64)) + epsilon
        arrays["moving_variance"] = np.square(root).astype(np.float32)
        config["epsilon"] = 0.0
        notes.translate("BatchNormalization of Keras 1.0 on Theano adds epsilon outside the root; "
                        "it is folded into the variance")  # fmt: skip
    return arrays


def flipped(kernel: Array, rank: int) -> Array:
    """Reverse a kernel's spatial axes, its first `rank`."""
    return np.ascontiguousarray(np.flip(kernel, tuple(range(rank))))


def _keras_1_kernel(kind: str, kernel: Array, first: bool) -> Array:
    if kind == "Conv1D" and kernel.ndim == 4:
        if kernel.shape[1] != 1:  # (filters, channels, length, 1), Keras 1.0
            kernel = kernel.transpose(2, 3, 1, 0)
        return kernel[:, 0]  # (length, 1, channels, filters)
    if kind == "Deconvolution2D":
        return kernel.transpose((2, 3, 0, 1) if first else (0, 1, 3, 2))
    if first and kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)  # (filters, channels, rows, columns)
    if first and kernel.ndim == 5:
        return kernel.transpose(2, 3, 4, 1, 0)
    return kernel


def _cudnn(kind: str, config: Config, arrays: dict[str, Array], notes: Notes) -> dict[str, Array]:
    """Bring CuDNN's matrices to the plain layout; its biases come twice."""
    gates = 4 if kind == "LSTM" else 3
    units = config.get("units")
    bias = arrays.get("bias")
    if bias is None or bias.shape != (2 * gates * int(units or 0),):
        return arrays
    kernel, recurrent = arrays["kernel"], arrays["recurrent_kernel"]
    if kernel.ndim != 2 or kernel.shape[1] % gates or recurrent.shape[1] % gates:
        return arrays
    notes.translate(f"the weights of CuDNN{kind} are brought to the layout of {kind}")
    parts = [p.T.reshape(p.shape, order="F") for p in np.hsplit(kernel, gates)]
    return {
        "kernel": np.hstack(parts),
        "recurrent_kernel": np.hstack([part.T for part in np.hsplit(recurrent, gates)]),
        "bias": bias.reshape(2, -1).sum(0) if kind == "LSTM" else bias.reshape(2, -1),
    }


def _infer(layer: Config, arrays: dict[str, Array], notes: Notes) -> None:
    """Infer what the file does not say but its arrays do."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("PReLU", "SReLU", "ParametricSoftplus") and not config.get("shared_axes"):
        shape = next(iter(arrays.values())).shape
        if len(shape) > 1 and 1 in shape:
            config["shared_axes"] = [axis + 1 for axis, size in enumerate(shape) if size == 1]
            notes.translate(f"shared_axes of {kind} is inferred from the shape of its weights")

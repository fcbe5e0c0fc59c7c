"""Reads the weights store of Keras 3, `model.weights.h5`, and its forerunner in TensorFlow 2.12.

It names layers by class and running number, not by name, so the architecture decides which array
belongs where.
"""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from pellucid.adapters.legacy.config import inner_model
from pellucid.adapters.legacy.model import Config, Notes, Stored
from pellucid.adapters.legacy.weights import Found, assemble, complete, is_state, takes_weights

__all__ = ["assign_store", "snake"]

Array = NDArray[Any]

# Attributes of composite layers, in the order of their variables.
_PARTS = {
    "Bidirectional": (("forward_layer", "forward."), ("backward_layer", "backward.")),
    "MultiHeadAttention": tuple(
        (f"{part}_dense", f"{part}.") for part in ("query", "key", "value", "output")
    ),
}


def assign_store(store: dict[str, Array], config: Config, notes: Notes) -> Found:
    """Distribute the arrays of a Keras-3 weights store over the layers of the architecture.

    Layers stand there under their class and a running number, `layers/conv2d_1/vars/0`.
    """
    left = {path: array for path, array in store.items() if not is_state(Stored(path, array))}
    found: Found = {}
    _store_model(config, "", "", left, found, notes)
    if left:
        raise notes.fault(
            next(iter(left)), "the architecture has no layer for this array; it does not belong to "
            f"these weights ({len(left)} arrays are left over)."
        )  # fmt: skip
    return complete(found, config["config"]["layers"], notes)


def _store_model(
    model: Config, prefix: str, path: str, left: dict[str, Array], found: Found, notes: Notes
) -> None:
    """Take a model's arrays out of `left`."""
    old = f"{prefix}_layer_checkpoint_dependencies/"
    dense = any(key.startswith(old) for key in left)  # TensorFlow 2.12 to 2.14 count layers twice
    root = old if dense else f"{prefix}layers/"
    present = sorted({key[len(root) :].split("/")[0] for key in left if key.startswith(root)})
    counts: dict[str, int] = {}
    for layer in model["config"]["layers"]:
        base = snake(layer["class_name"].removeprefix("Theano"))
        number = counts.get(base, 0)
        name = f"{base}_{number}" if number else base
        if dense:
            names = sorted((n for n in present if re.fullmatch(rf"{base}(_\d+)?", n)), key=_number)
            takes = takes_weights(layer)
            name = names[number] if takes and number < len(names) else ""
            counts[base] = number + int(takes)
        else:
            counts[base] = number + 1
        if not name:
            continue
        place, inside = f"{root}{name}/", path + layer["name"]
        inner = inner_model(layer)
        if inner is not None:
            own = place if inner is layer else f"{place}layer/"
            _store_model(inner, own, inside + "/", left, found, notes)
            continue
        taken = sorted((key for key in left if key.startswith(place)), key=_natural)
        stored = [Stored(key[len(place) :], left.pop(key)) for key in taken]
        if layer["class_name"].startswith("Random") or layer["class_name"] == "Dropout":
            continue  # what they hold is the state of their random generator
        if stored:
            found[inside] = _store_leaf(layer, stored, notes, inside)


def _store_leaf(layer: Config, stored: list[Stored], notes: Notes, path: str) -> dict[str, Array]:
    parts = _PARTS.get(layer["class_name"], ())
    if parts:
        ranks = {attribute: rank for rank, (attribute, _) in enumerate(parts)}
        stored = sorted(stored, key=lambda s: ranks.get(s.name.split("/")[0].lstrip("_"), 99))
    return assemble(layer, stored, notes, path)


def snake(name: str) -> str:
    """Write a class's name as Keras 3 names its groups: `lstm_cell`."""
    name = re.sub(r"\W+", "", name.split(">")[-1])
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _number(name: str) -> int:
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 0


def _natural(key: str) -> list[Any]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", key)]

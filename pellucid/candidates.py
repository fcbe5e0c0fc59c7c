"""The layers that an explanation can look at, and what speaks for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pellucid.adapters.base import Adapter
from pellucid.errors import LayerError, UnsupportedError
from pellucid.explainer import adapter_of
from pellucid.graph.placement import Placement, ReceptiveField
from pellucid.methods.layer_choice import choose_layer, gradient_energy, named_in_file, placement_of
from pellucid.methods.objective import Objective

__all__ = ["Candidate", "Candidates", "layers"]


@dataclass(frozen=True)
class Candidate:
    """A layer with a grid.

    Attributes
    ----------
    name, kind : as in `pellucid.adapters.base.Layer`.
    channels : how many.
    grid : its positions along each image axis; those of a token layer without its class token.
    receptive_field : what a position sees, None where the model has no graph.
    energy : sum of the squared gradient of the score at the layer, averaged over the images
        given; None without images.
    chosen : whether it is taken where no layer is named.
    """

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]
    receptive_field: ReceptiveField | None = None
    energy: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Candidates(Sequence[Candidate]):
    """All layers with a grid, in the order in which they compute.

    Attributes
    ----------
    chosen : the one that is taken where no layer is named, or None.
    reason : why, in words, or why there is none.
    """

    layers: tuple[Candidate, ...]
    chosen: Candidate | None
    reason: str

    def __getitem__(self, key: Any) -> Any:
        """Return a candidate by position or by name."""
        if isinstance(key, str):
            found = next((one for one in self.layers if one.name == key), None)
            if found is None:
                raise LayerError(f"Layer {key!r} has no grid, or there is none of this name.")
            return found
        return self.layers[key]

    def __len__(self) -> int:
        """Count them."""
        return len(self.layers)


def layers(model: Any, images: Any = None, target: Any = None) -> Candidates:
    """List the layers that class activation maps can look at.

    Parameters
    ----------
    model, images, target : as in `pellucid.explain`; with images, the energy of the gradient is
        computed at every layer, by one forward and one backward pass.

    Returns
    -------
    candidates : a sequence of `Candidate`, with `chosen` and `reason`.

    Example
    -------
    >>> for layer in pellucid.layers("resnet50.onnx"):  # doctest: +SKIP
    ...     print(layer.name, layer.grid, layer.receptive_field)
    """
    adapter = adapter_of(model)
    objective = Objective(adapter, target)
    choice, reason = None, ""
    try:
        choice = choose_layer(adapter, objective.outputs)
        reason = choice.reason
    except LayerError as error:
        reason = str(error)
    found = []
    for name, kind, shape in _shapes(adapter):
        placement = _placed(adapter, name, shape)
        if placement is not None:
            chosen = choice is not None and choice.name == name
            field = _field(adapter, name)
            size = shape[placement.channels]
            found.append(Candidate(name, kind, size, placement.grid, field, None, chosen))
    if images is not None and found:
        x = adapter.prepare(images).batch
        names = [candidate.name for candidate in found]
        energies = gradient_energy(adapter, x, objective, names)
        found = [replace(one, energy=energies[one.name]) for one in found]
    first = next((one for one in found if one.chosen), None)
    return Candidates(tuple(found), first, reason)


def _shapes(adapter: Adapter) -> list[tuple[str, str, tuple[int, ...]]]:
    """List names, kinds and shapes, open sizes as in the graph, or left out without one."""
    rows: list[tuple[str, str, tuple[int | None, ...]]] = [
        (layer.name, layer.kind, layer.shape) for layer in adapter.layers
    ]
    try:
        if not adapter.form.calls:
            rows = [(name, one.kind, one.shape) for name, one in named_in_file(adapter).items()]
        elif any(None in shape[1:] for _, _, shape in rows):
            known = {layer.name: layer.shape for layer in adapter.graph}
            rows = [(name, kind, known.get(name, shape)) for name, kind, shape in rows]
    except UnsupportedError:
        pass
    kept = [(n, k, s) for n, k, s in rows if len(s) > 2 and None not in s[1:]]
    return [(n, k, (1, *(size or 1 for size in s[1:]))) for n, k, s in kept]


def _placed(adapter: Adapter, name: str, shape: tuple[int, ...]) -> Placement | None:
    try:
        placement = placement_of(adapter, name, shape)
    except LayerError:
        return None
    return placement if any(size > 1 for size in placement.grid) else None


def _field(adapter: Adapter, name: str) -> ReceptiveField | None:
    try:
        found: ReceptiveField | None = adapter.survey.receptive_field(adapter.in_form(name)[0])
    except (LayerError, UnsupportedError):
        return None
    return found

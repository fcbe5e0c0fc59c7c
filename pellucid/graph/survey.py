"""Where the tensors of a network lie on the image, and what their positions see of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from pellucid.graph.fields import Field, changes, image_field, thinned
from pellucid.graph.form import OnnxForm
from pellucid.graph.placement import Placement, ReceptiveField
from pellucid.graph.places import Tracer
from pellucid.graph.protobuf import Shape
from pellucid.graph.shapes import TensorType, tensor_types
from pellucid.graph.wiring import Wiring

__all__ = ["Survey"]


class Survey:
    """Where the tensors of a network lie and what they see, found when it is first asked for.

    Parameters
    ----------
    form : the network.
    sizes : shapes of inputs, batch included, by tensor, where the form leaves sizes open.
    """

    def __init__(self, form: OnnxForm, sizes: Mapping[str, Shape] | None = None) -> None:
        self.form = form
        self.wiring = Wiring(form.model.graph)
        known = {
            call.outputs[0]: tuple(call.shape[axis] for axis in call.to_own) or call.shape
            for call in form.calls
        }
        self._reached: dict[tuple[str, frozenset[str]], bool] = {}
        self.types: Mapping[str, TensorType] = tensor_types(form.model, sizes, known)

    @cached_property
    def _tracer(self) -> Tracer:
        return Tracer(self.wiring, self.types)

    @cached_property
    def image(self) -> tuple[int, ...]:
        """Size of the first input that has a grid, in pixels along each axis."""
        found = self._image_ports()
        return () if not found else tuple(found[0][1][axis] for axis in found[0][2])

    def follows(self, tensor: str) -> bool:
        """Whether a tensor's place could be found out at all."""
        return tensor in self._found[1]

    def placement(self, tensor: str, *, apart: bool = False) -> Placement | None:
        """Return the grid of a tensor in its own layout, if it has one.

        Parameters
        ----------
        apart : find it also in the parts that attention works on, whose channels are split into
            heads, or whose heads or windows stand with the images along the first axis. Then the
            placement is that of `(N, parts, ...)`, and the first of its axes is that of the images.
        """
        strict = self._found[0].get(tensor)
        return self._apart.get(tensor, strict) if apart else strict

    def receptive_field(self, tensor: str) -> ReceptiveField | None:
        """Return what a position of a tensor sees, if it depends on the image."""
        return self._found[1].get(tensor)

    def leading_to(self, results: Collection[str]) -> frozenset[str]:
        """Return the tensors that some results are computed from, those included."""
        nodes = self.wiring.before(results, set())
        return frozenset(name for index in nodes for name in self.wiring.nodes[index].output)

    def reaches(self, tensor: str, results: Collection[str]) -> bool:
        """Whether some result depends on every position of a tensor that has a grid."""
        asked = (tensor, frozenset(results))
        if asked not in self._reached:
            self._reached[asked] = self._reaches(tensor, results)
        return self._reached[asked]

    def _reaches(self, tensor: str, results: Collection[str]) -> bool:
        placement = self._found[0][tensor]
        shape = [size or 1 for size in self.types[tensor].shape]
        index = np.full([shape[axis] for axis in placement.positions], np.nan, np.float32)
        cells = np.arange(int(np.prod(placement.grid)), dtype=np.float32)
        index.reshape(-1)[list(placement.take or range(index.size))] = cells
        sizes = [shape[a] if a in placement.positions else 1 for a in range(len(shape))]
        order = np.argsort(np.argsort(placement.positions))
        line = index.transpose(order).reshape(sizes)
        planes = np.stack([line, np.nan_to_num(line, nan=np.inf), np.nan_to_num(line, nan=-np.inf)])
        planes = np.broadcast_to(planes[:, None], (3, 1, *shape))
        start, seen = {tensor: Field(np.asarray(planes, np.float32), (1.0,))}, []
        first = self.wiring.producer.get(tensor, -1) + 1
        wanted = set(results)
        for name, field in self._tracer.run(start, first):
            if name in wanted:
                seen.append((field.planes[1].min(), field.planes[2].max()))
        low, high = min((s[0] for s in seen), default=1), max((s[1] for s in seen), default=0)
        return bool(low <= 0 and high >= cells[-1])

    # ---- the survey --------------------------------------------------------------------------

    def _image_ports(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """List tensor, shape and image axes of the inputs that have a grid like the first."""
        found: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        for port in self.form.inputs:
            kind = self.types.get(port.tensor)
            if kind is None or None in kind.shape or len(kind.shape) < 3:
                continue
            if port.layout != "spatial" and len(kind.shape) == 3:
                continue
            order = port.to_own or tuple(range(len(kind.shape)))
            axes = tuple(order.index(axis) for axis in range(2, len(order)))
            if not found or len(axes) == len(found[0][2]):
                found.append((port.tensor, kind.shape, axes))  # type: ignore[arg-type]
        return found

    @cached_property
    def _found(self) -> tuple[dict[str, Placement], dict[str, ReceptiveField]]:
        start = {
            name: image_field(shape, axes, self.image) for name, shape, axes in self._image_ports()
        }
        placements: dict[str, Placement] = {}
        fields: dict[str, ReceptiveField] = {}
        self._apart: dict[str, Placement] = {}
        if not start:
            return placements, fields
        images = next(iter(start.values())).shape[0]
        everything: Iterable[tuple[str, Field]] = [
            *start.items(),
            *self._tracer.run(start),
        ]
        for name, field in everything:
            placement = _placement(field)
            if placement is not None:
                placements[name] = placement
            parts = field.shape[0] // images if field.shape else 1
            if placement is None or parts > 1:
                own = field.planes[:, :, None, :parts] if parts > 1 else field.planes
                split = _placement(Field(own, field.steps), heads=True)
                if split is not None:
                    self._apart[name] = split
            seen = _receptive_field(field, self.image)
            if seen is not None:
                fields[name] = seen
        return placements, fields


def _placement(field: Field, *, heads: bool = False) -> Placement | None:
    """Find the axes along which the place changes, and the grid that the places make.

    Parameters
    ----------
    heads : whether several axes may hold channels.
    """
    places = thinned(field).planes[0]  # (A, 1, *axes)
    if len(field.shape) < 3 or changes(places, 1):
        return None
    positions = tuple(axis for axis in range(1, len(field.shape)) if changes(places, axis + 1))
    others = [axis for axis in range(1, len(field.shape)) if axis not in positions]
    wide = [axis for axis in others if field.shape[axis] > 1] or others[:1]
    if not positions or not wide or (len(wide) > 1 and not heads):
        return None
    corner = tuple(slice(None) if a in positions else 0 for a in range(len(field.shape)))
    points = places[(slice(None), *corner)].reshape(len(places), -1)  # (A, T)
    located = np.flatnonzero(~np.isnan(points).any(axis=0))
    if len(located) < 2:
        return None
    lines = [np.unique(np.round(axis, 3)) for axis in points[:, located]]
    grid = tuple(len(line) for line in lines)
    if int(np.prod(grid)) != len(located):
        return None
    cells = [
        np.searchsorted(x, np.round(p, 3)) for x, p in zip(lines, points[:, located], strict=True)
    ]
    flat = np.ravel_multi_index(cells, grid)
    if len(np.unique(flat)) != len(located):
        return None
    take = located[np.argsort(flat)]
    plain = len(take) == points.shape[1] and bool((take == np.arange(len(take))).all())
    taken = None if plain else tuple(take.tolist())
    return Placement(wide[0], positions, grid, taken, tuple(wide[1:]))


def _receptive_field(field: Field, image: Sequence[int]) -> ReceptiveField | None:
    axes = tuple(range(1, 1 + len(field.shape)))
    place, low, high = thinned(field).planes
    if np.isinf(low).all():
        return None
    seen = high - low
    with np.errstate(invalid="ignore"):
        inner = np.where(np.isfinite(seen), seen, -1).max(axis=axes) + 1
    last = np.asarray(image).reshape(-1, *([1] * len(field.shape))) - 1
    empty = np.isinf(low)
    whole = bool((((low <= 0) & (high >= last)) | empty).all())
    steps = []
    for plane, step in zip(place, field.steps, strict=True):
        line = np.unique(np.round(plane[~np.isnan(plane)], 3))
        steps.append(float(np.median(np.diff(line))) if len(line) > 1 else 0.0 if whole else step)
    return ReceptiveField(tuple(round(float(n)) for n in inner), tuple(steps), whole)

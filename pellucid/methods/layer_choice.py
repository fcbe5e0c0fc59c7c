"""Which layer to look at, and what its positions are on the image.

Class activation maps want the deepest layer that still knows where things are: the last one with
a grid before the head, every position of which reaches the score. Pooling that leads into the
head counts as head, since it holds the same activations on a coarser grid.

Of convolutional networks the layers themselves tell this. Where tokens take the place of a grid,
or the channels may stand last, the layer graph says which values lie where; a network without a
graph is judged by the shapes of its layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Layer, Port
from pellucid.errors import LayerError, UnsupportedError
from pellucid.graph.kinds import POOLING
from pellucid.graph.placement import Placement, in_layout
from pellucid.methods.objective import Objective

if TYPE_CHECKING:
    from pellucid.graph.layers import GraphLayer
    from pellucid.graph.survey import Survey

__all__ = [
    "LayerChoice",
    "as_grid",
    "choose_layer",
    "gradient_energy",
    "named_in_file",
    "placement_of",
]

_MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens
_NORMS = ("LayerNorm", "RMSNorm")
_LAST_AXIS = (*_NORMS, "Dense", "MatMul", "Permute", "Attention")  # channels may stand last there


@dataclass(frozen=True)
class LayerChoice:
    """A layer, and the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Item:
    """A layer as the choice sees it.

    Attributes
    ----------
    grid : what its positions make, `()` for none.
    container : whether it only holds other layers.
    tensor : in the ONNX form, where that was asked.
    placed : whether the graph tells where its values lie.
    tokens : whether its values have to be put on the grid.
    """

    name: str
    kind: str
    channels: int | None
    grid: tuple[int | None, ...]
    container: bool = False
    tensor: str = ""
    placed: bool = False
    tokens: bool = False


def choose_layer(model: Adapter, outputs: Sequence[str] = ()) -> LayerChoice:
    """Pick the last layer with a grid before the head, all positions of which reach the score.

    Of a residual network that is the output of the last block, not the convolution inside it.
    Of a transformer with a class token it is the input of the last attention, since after it
    only the class token reaches the score; of one that averages its tokens, the last of them.

    Parameters
    ----------
    outputs : what the score is made of; the first one where that is not said.

    Raises
    ------
    LayerError : no layer has a spatial grid.
    """
    ends = [port for port in model.outputs if port.name in outputs] or [model.outputs[0]]
    survey = _survey(model)
    if survey is None:
        return _chosen_by_shapes(model, ends)
    return _chosen_on_graph(model, survey, ends)


def as_grid(
    model: Adapter, name: str, *arrays: Array, size: Sequence[int] = (), apart: bool = False
) -> tuple[Array, ...]:
    """View values of a layer as `(N, C, *grid)`; tokens lose their class token and get a grid.

    Parameters
    ----------
    size : of the images in pixels; where it is left out, that at which the graph was read.
    apart : view also `(N, parts, ...)`, see `pellucid.graph.survey.Survey.placement`.

    Raises
    ------
    LayerError : the layer has no spatial grid.
    """
    placement = placement_of(model, name, arrays[0].shape, size, apart=apart)
    return arrays if placement.is_plain else tuple(placement.on_grid(a) for a in arrays)


def placement_of(
    model: Adapter,
    name: str,
    shape: Sequence[int],
    size: Sequence[int] = (),
    *,
    apart: bool = False,
) -> Placement:
    """Say how the values of a layer lie on the image.

    Parameters
    ----------
    shape : of a value, as it is fetched.
    size, apart : as for `as_grid`.

    Raises
    ------
    LayerError : the layer has no spatial grid.
    """
    rank = len(shape)
    plain = Placement(1, tuple(range(2, rank)), tuple(shape[2:]))
    if rank == 2:
        known = [layer.name for layer in model.layers if _has_grid(layer.grid)]
        raise LayerError(
            f"Layer {name!r} has no spatial grid (its output is {shape[1]} numbers). "
            f"The last layers with one: {', '.join(repr(n) for n in known[-3:]) or 'none'}."
        )
    if name == "input":
        return plain
    inside = apart and rank > 3 and not model.in_form(name)[1]  # its axes are not known
    survey = _survey(model, inside)
    if survey is not None:
        tensor, to_own = model.in_form(name)
        found = survey.placement(tensor, apart=apart)
        if found is not None:
            folded = rank - len(survey.types[tensor].shape)
            to_own = () if folded else to_own
            cells = [shape[axis] for axis in in_layout(found, to_own).positions]
            sizes = [1] * folded + [*survey.types[tensor].shape]
            before = math.prod(sizes[axis] or 1 for axis in found.positions)
            return in_layout(_at_size(found, before, survey.image, name, cells, size), to_own)
        if survey.follows(tensor):
            if rank > 3 and (model.knows_channels or _settled(model)):
                return plain
            raise LayerError(
                f"The values of layer {name!r}, {' x '.join(map(str, shape[1:]))} per image, lie "
                "on no grid of the image: name another layer, or leave layer= out."
            )
    layer = next((one for one in model.layers if one.name == name), None)
    if rank > 3 or layer is None or layer.layout != "tokens":
        return plain
    grid = _token_grid(model.layers, layer)
    if not grid:
        raise LayerError(
            f"The {layer.shape[1]} tokens of layer {name!r} fit no grid of this model."
        )
    return _behind(shape[1], grid)


def gradient_energy(
    model: Adapter, x: Batch, objective: Objective, layers: Sequence[str]
) -> dict[str, float]:
    """Return the sum of the squared gradient of the score at each layer, averaged over images.

    Parameters
    ----------
    x : batch of N images.
    layers : names; all of them share one forward and one backward pass.
    """
    _, gradients = model.pullback(x, objective, layers, fetch=objective.fetch)
    return {
        name: float((g.astype(np.float64) ** 2).sum() / len(g)) for name, g in gradients.items()
    }


def _at_size(
    found: Placement,
    before: int,
    image: Sequence[int],
    name: str,
    cells: Sequence[int],
    size: Sequence[int],
) -> Placement:
    """Fit the placement of a tensor to an image of another size.

    Parameters
    ----------
    before : how many positions there were in an image of the size `image`.
    cells : how many positions there are, along each axis that holds positions.
    size : of the image in pixels, `()` where it is not known.
    """
    if found.take is None and len(cells) == len(found.grid):
        return replace(found, grid=tuple(cells))
    count, grid = math.prod(cells), found.grid
    if len(size) == len(grid):
        pairs = zip(grid, size, image, strict=True)
        grid = tuple(round(n * now / then) for n, now, then in pairs)
    if grid == found.grid and count == before:
        return found
    extra, take = before - math.prod(found.grid), found.take or tuple(range(before))
    in_order = take == tuple(range(take[0], take[0] + len(take)))
    if in_order and math.prod(grid) + extra == count:
        cut = tuple(range(take[0], take[0] + math.prod(grid))) if extra else None
        return replace(found, grid=grid, take=cut)
    raise LayerError(
        f"Layer {name!r} has {count} tokens for this image and {before} in the graph: load the "
        "model with preprocess={'size': ...} as large as the images."
    )


def _behind(count: int, grid: Sequence[int]) -> Placement:
    """Take the last tokens as the cells of a grid."""
    cells = math.prod(grid)
    take = None if cells == count else tuple(range(count - cells, count))
    return Placement(2, (1,), tuple(grid), take)


# ---- on the graph ---------------------------------------------------------------------------


def _survey(model: Adapter, inside: bool = False) -> Survey | None:
    """Return where everything lies, if the layers do not settle it and the graph can be read.

    They never do for what lies inside of one.
    """
    if _settled(model) and not inside:
        return None
    try:
        return model.survey
    except UnsupportedError:
        return None


def _settled(model: Adapter) -> bool:
    """Whether the layers' shapes tell which grids there are, and all of them lead to the score."""
    if len(model.outputs) > 1:
        return False
    for layer in model.layers:
        if layer.layout == "tokens" and len(layer.shape) > 2:
            return False
        may_turn = layer.kind in _LAST_AXIS and len(layer.shape) > 3 and not layer.container
        if may_turn and not model.knows_channels:
            return False
    return True


def _chosen_on_graph(model: Adapter, survey: Survey, ends: Sequence[Port]) -> LayerChoice:
    results = [model.in_form(port.name)[0] for port in ends]
    items = list(_items(model, survey))
    if len(model.outputs) > len(ends):  # what leads to other outputs alone is in nobody's head
        leading = survey.leading_to(results)
        items = [item for item in items if item.tensor in leading]
    gridded = [item for item in _before_head(items, ends) if item.placed]
    if not gridded:
        raise _no_grid()
    last = gridded[-1]
    if survey.reaches(last.tensor, results):
        return LayerChoice(last.name, _reason(last))
    if last.tokens:
        normed = [item for item in gridded if item.kind in _NORMS]
        whole = [item for item in gridded if item.container or item.kind == "Add"]
        gridded = [*gridded, *whole, *normed]
    for item in reversed(gridded):
        if survey.reaches(item.tensor, results):
            return LayerChoice(item.name, (_mixed_reason if item.tokens else _reason)(item))
    return LayerChoice(last.name, _reason(last))


def named_in_file(model: Adapter) -> dict[str, GraphLayer]:
    """Return the layers of a file by names that fetch their values.

    A tensor may bear the name of another layer; then the layer goes by its own tensor's name.
    """
    layers = [layer for layer in model.graph if not layer.is_port]
    return {
        one.name if model.in_form(one.name)[0] == one.tensor else one.tensor: one for one in layers
    }


def _items(model: Adapter, survey: Survey) -> Iterator[_Item]:
    """Yield the layers as the graph shows them, those of the network's code where there are."""
    names = {layer.name: layer for layer in model.layers}
    own = [(n, one.kind, one.container) for n, one in names.items()]
    if not model.form.calls:  # a file: its nodes fold into layers
        own = [(name, one.kind, False) for name, one in named_in_file(model).items()]
    for name, kind, container in own:
        tensor = model.in_form(name)[0]
        found = survey.placement(tensor)
        if found is not None:
            size = survey.types[tensor].shape[found.channels]
            tokens = len(survey.types[tensor].shape) != 2 + len(found.grid)
            yield _Item(name, kind, size, found.grid, container, tensor, True, tokens)
        elif survey.follows(tensor) or name not in names:
            yield _Item(name, kind, None, (), container, tensor)
        else:
            yield replace(_plain_item(names[name]), tensor=tensor)


# ---- by shapes ------------------------------------------------------------------------------


def _chosen_by_shapes(model: Adapter, ends: Sequence[Port]) -> LayerChoice:
    layers = list(model.layers)
    if tokens := _last_mixed_tokens(layers):
        item = replace(_plain_item(tokens), grid=_token_grid(layers, tokens))
        return LayerChoice(tokens.name, _mixed_reason(item))
    found = _before_head([_plain_item(layer) for layer in layers], ends)
    if not found:
        raise _no_grid()
    return LayerChoice(found[-1].name, _reason(found[-1]))


def _plain_item(layer: Layer) -> _Item:
    channels = layer.shape[1] if layer.grid else None
    return _Item(layer.name, layer.kind, channels, layer.grid, layer.container)


def _before_head(items: Sequence[_Item], ends: Sequence[Port]) -> list[_Item]:
    """Return the layers with a grid that come before dense outputs and before final pooling."""
    kept, dense = list(items), [port.shape[1] for port in ends if len(port.shape) > 2]
    while kept and kept[-1].channels in dense:
        kept.pop()  # the dense output itself and what follows it
    last_leaf = ""
    found: list[_Item] = []
    for item in kept:
        last_leaf = last_leaf if item.container else item.kind
        turned = bool(found) and item.kind == "Permute"  # the same values, axes turned
        if _has_grid(item.grid) and last_leaf not in POOLING and not turned:
            found.append(item)
    return found


def _has_grid(grid: Sequence[int | None]) -> bool:
    return any(size is None or size > 1 for size in grid)


def _last_mixed_tokens(layers: Sequence[Layer]) -> Layer | None:
    """Find the normalised tokens that go into the last attention."""
    tokens = [layer for layer in layers if layer.layout == "tokens" and _token_grid(layers, layer)]
    norms = [layer for layer in tokens if layer.kind in _NORMS]
    attention = [i for i, layer in enumerate(layers) if layer.kind == "Attention"]
    if attention:
        before = [layer for layer in norms if layers.index(layer) < attention[-1]]
        return before[-1] if before else None
    # Attention in plain layers: norm, attention, norm, MLP, ..., and one norm before the head.
    return norms[-3] if len(norms) >= 3 else None


def _token_grid(layers: Sequence[Layer], layer: Layer) -> tuple[int, ...]:
    """Find the grid whose cells the tokens are: that of the last spatial layer that fits."""
    count = layer.shape[1]
    for other in reversed(layers):
        if not _has_grid(other.grid) or count is None:
            continue
        grid = tuple(size for size in other.grid if size is not None)
        if len(grid) == len(other.grid) and 0 <= count - math.prod(grid) <= _MOST_EXTRA_TOKENS:
            return grid
    return ()


# ---- in words -------------------------------------------------------------------------------


def _reason(item: _Item) -> str:
    shape = f"{item.channels} channels on {_shown(item.grid)}"
    return f"the last layer with a spatial grid ({shape}) before the head"


def _mixed_reason(item: _Item) -> str:
    return f"the last tokens ({_shown(item.grid)}) that attention mixes"


def _no_grid() -> LayerError:
    return LayerError(
        "No layer of this model has a spatial grid, so no class activation map can be drawn. "
        "Use a method that explains the input itself."
    )


def _shown(grid: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in grid)

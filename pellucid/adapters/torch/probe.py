"""What a PyTorch module does not record about itself, learned from one run on noise.

The shape of the input is guessed from the first layer's weights and tried; the run then shows
which layers are called, in which order, with what shapes, and whether the network ends in a
softmax or sigmoid.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.adapters.base import Layer, Layout, Port, numbered
from pellucid.adapters.torch.observe import (
    FinalActivations,
    observing,
    output_tensors,
    undisturbed,
)
from pellucid.errors import UnsupportedError, first_line
from pellucid.graph.kinds import kind_of, layout_of

__all__ = ["Probe", "probe"]

_SIZES = {
    1: (128, 256, 1024, 64, 512, 2048, 4096, 16000, 32, 100),
    2: (224, 32, 28, 64, 48, 96, 128, 256, 299, 160, 192, 112, 227, 240, 300, 320, 331, 380, 384,
        416, 448, 480, 512, 528, 600, 640, 100, 150, 200, 40, 24, 16, 8),
    3: (32, 64, 16, 112, 24, 28, 96, 128, 8),
}  # fmt: skip
_SCALES = (1.0, 0.5, 0.25, 2.0)  # sizes of further inputs, relative to the first
_VIEWS = (
    "View", "UnsafeView", "Reshape", "Alias", "Squeeze", "Unsqueeze", "ToCopy", "Clone",
    "Transpose", "Permute",
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What the run showed.

    Attributes
    ----------
    activation_calls : for every output, which softmax or sigmoid call ends it, or None.
    shapes : of the noise that was run, the batch included.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    activation_calls: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...]


Shapes = tuple[tuple[int, ...], ...]


def probe(
    module: nn.Module,
    names: Mapping[str, nn.Module],
    seen: Shapes | None,
    size: Sequence[int] | None,
    batch: int = 2,
) -> Probe:
    """Run the module on noise and describe what was seen.

    Parameters
    ----------
    names : the modules to list, by name.
    seen : shapes of a batch that a caller gave, tried first.
    size : spatial size that the caller's preprocessing makes, tried next.
    batch : how many samples of noise; one would hide what `squeeze` does to a batch.

    Raises
    ------
    UnsupportedError : no input shape that was tried fits.
    """
    parameters = _required_parameters(module)
    reason = "it takes no input"
    for inner in _candidates(module, len(parameters), seen, size):
        shapes = tuple((batch, *shape) for shape in inner)
        try:
            layers, layouts, results, activations = _watched_run(module, names, shapes)
        except Exception as error:  # a wrong guess fails in whatever way the network fails
            reason = first_line(error)
            continue
        break
    else:
        raise UnsupportedError(
            "The shape of the network's input could not be guessed (last attempt: "
            f"{reason}). Call `adapter.run(batch)` once with a batch of the right shape, or give "
            "preprocess={'size': (height, width)}."
        )
    free = _takes_other_size(module, shapes)
    parameters += [""] * (len(shapes) - len(parameters))  # a batch may fill optional ones too
    inputs = tuple(
        Port(numbered("input", index), (None, shape[1], *_sizes(shape[2:], free)), name)
        for index, (shape, name) in enumerate(zip(shapes, parameters, strict=True))
    )
    ends = [_ending(result, activations) for result in results]
    outputs = tuple(
        Port(
            numbered("output", index),
            (None, *result.shape[1:2], *_sizes(result.shape[2:], free)),
            activation=None if call is None else activations.calls[call][0],
            layout=layouts.get(tuple(result.shape), "spatial"),
        )
        for index, (result, call) in enumerate(zip(results, ends, strict=True))
    )
    return Probe(tuple(layers), inputs, outputs, tuple(ends), shapes)


def _watched_run(
    module: nn.Module, names: Mapping[str, nn.Module], shapes: Shapes
) -> tuple[list[Layer], dict[tuple[int, ...], Layout], list[Tensor], FinalActivations]:
    layers: list[Layer] = []
    layouts: dict[tuple[int, ...], Layout] = {}  # of the most recent output of each shape
    has_1d = any(isinstance(m, nn.Conv1d) for m in names.values())

    def visit(name: str, called: nn.Module, output: Any) -> Any:
        tensors = output_tensors(output)
        if tensors:
            shape = tuple(tensors[0].shape)
            kind = _kind(called)
            unknown: Layout = "spatial" if has_1d else "tokens"
            layout: Layout = layout_of(kind, len(shape)) or layouts.get(shape, unknown)
            layouts[shape] = layout if len(shape) > 2 else "features"
            holds = bool(list(called.children())) and kind != "Attention"
            class_name = type(called).__name__
            listed = (None, *shape[1:])
            layers.append(Layer(name, kind, listed, layouts[shape], class_name, holds))
        return output

    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    activations = FinalActivations(differentiable=True)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(undisturbed(module))
        stack.enter_context(observing(names, visit))
        stack.enter_context(activations)
        noise = [torch.rand(shape, device=like.device, dtype=like.dtype) for shape in shapes]
        results = output_tensors(module(*noise))
    return layers, layouts, results, activations


def _kind(module: nn.Module) -> str:
    kind = kind_of(type(module).__name__)
    if kind.startswith("Conv") and 1 < getattr(module, "groups", 1) == module.in_channels:
        return kind.replace("Conv", "DepthwiseConv", 1)
    if kind.startswith("Adaptive") and getattr(module, "output_size", None) in (1, (1, 1)):
        return kind.replace("Adaptive", "Global", 1)
    return kind


def _ending(result: Tensor, activations: FinalActivations) -> int | None:
    """Find the softmax or sigmoid call that an output comes from, through views only."""
    node = result.grad_fn
    ends = {output.grad_fn: index for index, (_, _, output) in enumerate(activations.calls)}
    while node is not None:
        if node in ends:
            return ends[node]
        if not node.name().startswith(_VIEWS):
            return None
        node = node.next_functions[0][0]
    return None


def _takes_other_size(module: nn.Module, shapes: Shapes) -> bool:
    smaller = tuple((*shape[:2], *(max(1, size // 2) for size in shape[2:])) for shape in shapes)
    if smaller == shapes:
        return False
    try:
        _watched_run(module, {}, smaller)
    except Exception:  # whatever the network says: this size does not fit
        return False
    return True


def _sizes(sizes: Iterable[int], free: bool) -> tuple[int | None, ...]:
    return tuple(None if free else size for size in sizes)


def _required_parameters(module: nn.Module) -> list[str]:
    signature = inspect.signature(module.forward)
    positional = [
        p
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return [p.name for p in positional] or ["input"]


def _candidates(
    module: nn.Module, count: int, seen: Shapes | None, size: Sequence[int] | None
) -> Iterator[Shapes]:
    """Yield input shapes worth trying, the likeliest first, without the batch."""
    if seen is not None:
        yield tuple(shape[1:] for shape in seen)
    channels, features, flat_first = _first_layers(module)
    if flat_first or not channels:
        yield from (((length,),) * count for length in features)
    for dimensions, found in channels.items():
        yield from _images(found, dimensions, count, size)
    for depth in (1, 3):  # images that a network flattens first
        side = math.isqrt((features or [0])[0] // depth)
        if side and side * side * depth == features[0]:
            yield ((depth, side, side),) * count


def _images(
    channels: Sequence[int], dimensions: int, count: int, size: Sequence[int] | None
) -> Iterator[Shapes]:
    sizes = [tuple(size)] if size is not None and len(size) == dimensions else []
    sizes += [(s,) * dimensions for s in _SIZES[dimensions]]
    for spatial in sizes:
        for scales in itertools.product(_SCALES, repeat=count - 1):
            scaled = [tuple(int(s * scale) for s in spatial) for scale in (1.0, *scales)]
            for combination in itertools.product(channels, repeat=count):
                yield tuple((c, *s) for c, s in zip(combination, scaled, strict=True))


def _first_layers(module: nn.Module) -> tuple[dict[int, list[int]], list[int], bool]:
    """Return likely channel counts by the number of spatial axes, and numbers of features.

    Last comes whether the layer that is listed first takes features.
    """
    channels: dict[int, list[int]] = {}
    features: list[int] = []
    flat_first = None
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            features.append(layer.in_features)
        elif isinstance(layer, nn.modules.conv._ConvNd):
            channels.setdefault(len(layer.kernel_size), []).append(layer.in_channels)
        elif isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.ndim >= 3:
            channels.setdefault(weight.ndim - 2, []).append(weight.shape[1])
        flat_first = bool(features) if flat_first is None and (features or channels) else flat_first
    likely = {axes: _likely(found) for axes, found in list(channels.items())[:1] if axes in _SIZES}
    return likely, _likely(features), bool(flat_first)


def _likely(found: Sequence[int]) -> list[int]:
    """Return the first of some counts and those of images."""
    image_like = [count for count in found if count <= 4] or found[:1]
    return list(dict.fromkeys([*found[:1], *image_like]))[:3]

"""One compilation: a network's graph, and the explanation that is written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from scipy.ndimage import gaussian_filter1d

from pellucid.adapters.base import Array, Port, Rectifier
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.errors import LayerError, MethodError, UnsupportedError
from pellucid.graph import explanations as formula
from pellucid.graph.gradient import differentiate, spell_out, walk
from pellucid.graph.loops import average_over_points, score_near
from pellucid.graph.placement import Placement, neighbourhoods
from pellucid.graph.prepare import fold, infer, prepare
from pellucid.graph.tape import Tape
from pellucid.methods.layer_choice import placement_of

__all__ = ["FORWARD_CAMS", "GRADIENT_CAMS", "Compilation"]

GRADIENT_CAMS = ("grad-cam", "grad-cam++", "xgrad-cam", "hires-cam", "layer-cam")
FORWARD_CAMS = ("eigen-cam", "recipro-cam")
_WITHOUT_WALK = ("eigen-cam", "integrated-gradients", "smoothgrad")  # or by a graph of its own
_MOST_MASKS = 2**28  # bytes of the masks that a file may hold
_RULES: dict[str, Rectifier] = {
    "guided-backprop": "guided",
    "guided-grad-cam": "guided",
    "deconvnet": "deconv",
}
_PROBABILITY = "pellucid/probability"


class Compilation:
    """What is asked of one network, and the graph on which the answer is written.

    Parameters
    ----------
    adapter : the network.
    method, layers, target, size, seed, options : as for `pellucid.compile`, resolved.
    space : "logit" or "probability".
    signed : whether the sign of a pixel's value has a meaning.

    Attributes
    ----------
    port, output : the picture, and what is explained.
    names : of the explanation's outputs in the file.
    """

    def __init__(
        self,
        adapter: OnnxAdapter,
        method: str,
        layers: tuple[str, ...],
        target: int | Literal["argmax", "input"],
        size: Sequence[int] | None,
        seed: int,
        space: str,
        signed: bool,
        options: dict[str, Any],
    ) -> None:
        self.adapter, self.method, self.layers, self.target = adapter, method, layers, target
        self.size, self.seed, self.space, self.options = size, seed, space, options
        self.signed, self.maps = signed, method in (*GRADIENT_CAMS, *FORWARD_CAMS)
        self.port, self.output = _picture(adapter), adapter.outputs[0]
        order = self.output.to_own
        self.class_axis = self.output.class_axis
        if order:
            self.class_axis = order.index(self.class_axis)
        logits = adapter.tensor(self.output.logits)
        self.outputs = [port.own_name for port in adapter.outputs]
        tensors = [*self.outputs, logits, self.port.own_name, *map(adapter.tensor, layers)]
        self.part = adapter.part(tensors)
        self.explained = logits if space == "logit" else self._probability(logits)
        self.model = prepare(self.part)
        if method not in _WITHOUT_WALK:
            wanted = tensors[-len(layers) :] if self.maps else tensors[len(self.outputs) + 1 :]
            spell_out(self.model, [self.explained], wanted)
        self.graph = self.model.graph
        self.values = ir.convenience.create_value_mapping(self.graph)
        self.t = Tape(self.graph, prefix="pellucid/")
        self.rank = len(self.port.shape)
        self.names: dict[str, str] = {}

    def _probability(self, logits: str) -> str:
        """Return the tensor of the probabilities; a softmax is added where there is none."""
        if self.output.activation in ("softmax", "sigmoid"):
            return self.output.own_name
        single = self.output.shape[self.output.class_axis] == 1
        axis: dict[str, Any] = {} if single else {"axis": self.class_axis}
        node = onnx.helper.make_node(
            "Sigmoid" if single else "Softmax", [logits], [_PROBABILITY], _PROBABILITY, **axis
        )
        self.part.graph.node.append(node)
        self.part.graph.output.append(onnx.ValueInfoProto(name=_PROBABILITY))
        return _PROBABILITY

    def write(self) -> ir.Model:
        """Write the explanation beside the network."""
        t, explained = self.t, self.values[self.explained]
        t.dtype = explained.dtype or ir.DataType.FLOAT
        classes, extra = self._classes(explained)
        self.hot = formula.one_hot(t, explained, classes, self.class_axis)
        positions = list(range(1, t.rank(explained)))
        score = self._real(t.ReduceSum(t.Mul(self.hot, explained), positions, keepdims=0))
        if self.maps:
            attribution, shown, rank = self._cam()
            drawn = formula.heatmap(t, shown, rank, self._extent())
        else:
            attribution = self._pixels()
            drawn = formula.pixel_heatmap(t, attribution, self.rank, self._extent(), self.signed)
        named = {"heatmap": drawn, "attribution": attribution, "target": classes, "score": score}
        self._finish(named, extra)
        return self.model

    def _real(self, value: ir.Value) -> ir.Value:
        """Go on in float32, which the explanation computes in whatever the network does."""
        self.t.dtype = ir.DataType.FLOAT
        if value.dtype in (ir.DataType.FLOAT, None):
            return value
        return self.t.Cast(value, to=int(ir.DataType.FLOAT))

    def _classes(self, explained: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        t = self.t
        if self.target == "argmax":
            return formula.top_class(t, explained, self.class_axis), []
        batch = t.Shape(explained, start=0, end=1)
        if self.target == "input":
            kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["classes"])
            given = ir.Value(name="class_index", type=kind, shape=shape)
            return t.Expand(given, batch), [given]
        return t.Expand(t.constant(np.asarray([self.target], np.int64)), batch), []

    def _pulled(
        self, names: Sequence[str], relu: Rectifier = "exact", shown: Sequence[str] = ()
    ) -> list[ir.Value]:
        """Return the gradients of the score at some tensors."""
        wanted = [self.values[name] for name in names]
        found = walk(self.t, self.graph, {self.values[self.explained]: self.hot}, wanted, relu)
        for name, value in zip(shown or names, wanted, strict=True):
            if value not in found:
                raise LayerError(f"The score does not depend on {name!r}: name another layer.")
        return [self._typed(found[value], value) for value in wanted]

    def _typed(self, gradient: ir.Value, value: ir.Value) -> ir.Value:
        """Give a gradient the type that the walk computed it in, and go on in float32."""
        kind = value.dtype
        if gradient.type is None and kind is not None and kind.is_floating_point():
            gradient.type = ir.TensorType(kind)
        return self._real(gradient)

    # ---- class activation maps -------------------------------------------------------------------

    def _cam(self) -> tuple[ir.Value, ir.Value, int]:
        """Return the map as it is given, `(N, *grid)`, with a channel axis, and its rank."""
        t, tensors = self.t, [self.adapter.tensor(layer) for layer in self.layers]
        ranks = [2 + len(self._placement(layer).grid) for layer in self.layers]
        if self.method == "recipro-cam":
            maps = [self._recipro(layer) for layer in self.layers]
        else:
            gradients: list[ir.Value | None] = [None] * len(tensors)
            if self.method != "eigen-cam":
                gradients = [*self._pulled(tensors, shown=self.layers)]
            maps = [self._weighed(*one) for one in zip(self.layers, gradients, strict=True)]
        cam = maps[0] if len(maps) == 1 else self._fused(maps, ranks[0])
        return t.Squeeze(cam, [1]), cam, ranks[0]

    def _weighed(self, layer: str, gradient: ir.Value | None) -> ir.Value:
        """Make the map of one layer, `(N, 1, *grid)`."""
        t = self.t
        activation = self._view(layer, self._real(self.values[self.adapter.tensor(layer)]))
        grid = self._map_grid(layer)
        rank = 2 + len(grid)
        if gradient is None:
            cells = None if None in grid else int(np.prod([size or 1 for size in grid]))
            cam = formula.eigen_projection(t, activation, rank, cells)
            places = list(range(1, rank))
            nowhere = t.LessOrEqual(t.ReduceMax(cam, places, keepdims=1), 0.0)
            lifted = t.Sub(cam, t.ReduceMin(cam, places, keepdims=1))
            cam = t.Where(nowhere, lifted, cam) if self.options.get("relu", True) else cam
        else:
            kind = "grad-cam" if self.method == "guided-grad-cam" else self.method
            viewed = self._view(layer, gradient)
            cam = formula.class_activation(t, activation, viewed, rank, kind)
        return t.Relu(cam) if self.options.get("relu", True) else cam

    def _view(self, layer: str, value: ir.Value) -> ir.Value:
        """View a layer's value as `(N, C, *grid)`."""
        placement, (_, to_own) = self._placement(layer), self.adapter.in_form(layer)
        if to_own:
            value = self.t.Transpose(value, perm=_inverse(to_own))
        if placement.is_plain:
            return value
        return formula.on_grid(self.t, value, len(self._layer_shape(layer)), placement)

    def _layer_shape(self, layer: str) -> tuple[int | None, ...]:
        """Shape of a layer's values, None where any size fits."""
        known = {one.name: one.shape for one in self.adapter.layers}
        if layer in known:
            return known[layer]
        shape: tuple[int | None, ...] = self.adapter.graph[layer].shape
        return (None,) * len(shape) if None in self.port.shape[1:] else shape

    def _placement(self, layer: str) -> Placement:
        """Return how a layer's values lie on the image; refuse what has no grid."""
        sizes = [1, *(size or 1 for size in self._layer_shape(layer)[1:])]
        return placement_of(self.adapter, layer, sizes)

    def _map_grid(self, layer: str) -> tuple[int | None, ...]:
        """Return the grid of a layer, None where any size fits."""
        placement, shape = self._placement(layer), self._layer_shape(layer)
        if placement.take is None and len(placement.positions) == len(placement.grid):
            return tuple(shape[axis] for axis in placement.positions)
        return placement.grid

    def _fused(self, maps: Sequence[ir.Value], rank: int) -> ir.Value:
        """Draw maps on the finest grid, each scaled to a maximum of one, and average them."""
        t = self.t
        grids = [self._grid(layer) for layer in self.layers]
        finest = t.constant(np.asarray(max(grids, key=np.prod), np.int64))
        drawn = [formula.resized(t, formula.scaled(t, one, rank), rank, finest) for one in maps]
        if self.options.get("fuse") == "max":
            return t.Max(*drawn)
        return t.Mul(t.add(drawn), 1 / len(drawn))

    def _recipro(self, layer: str) -> ir.Value:
        """Score the network on each neighbourhood of a layer (Byun and Lee, 2209.14074)."""
        t, grid, placement = self.t, self._grid(layer), self._placement(layer)
        value, shape = self.values[self.adapter.tensor(layer)], self._layer_shape(layer)
        if 4 * math.prod(grid) ** 2 > _MOST_MASKS:
            raise UnsupportedError(
                f"Recipro-CAM keeps a mask for each position, and layer {layer!r} has "
                f"{' x '.join(map(str, grid))} of them: choose a later, coarser layer."
            )
        near = neighbourhoods(grid)  # (P, *grid)
        masks = placement.over(near, [size or 1 for size in shape])[:, None]  # (P, 1, ...)
        if to_own := self.adapter.in_form(layer)[1]:
            masks = masks.transpose(0, *(axis + 1 for axis in to_own))
        masks = masks.astype((value.dtype or ir.DataType.FLOAT).numpy())
        scores = score_near(
            t, self.graph, value, self.values[self.explained], self.hot, masks
        )  # (P, N)
        scores = self._real(scores)
        lowest = t.ReduceMin(scores, [0], keepdims=1)
        return t.Reshape(t.Transpose(t.Sub(scores, lowest), perm=[1, 0]), [-1, 1, *grid])

    def _grid(self, layer: str) -> tuple[int, ...]:
        """Return the grid of a layer, which must be known."""
        found = self._map_grid(layer)
        grid = tuple(size for size in found if size is not None)
        if len(grid) < len(found):
            raise UnsupportedError(
                f"The grid of layer {layer!r} follows from the size of the picture; here it must "
                "be known. Export the model for one image size."
            )
        return grid

    # ---- attributions of pixels ------------------------------------------------------------------

    def _pixels(self) -> ir.Value:
        """Return the attribution of every input value, `(N, C, *spatial)`."""
        t, x = self.t, self.values[self.port.own_name]
        if self.method == "smoothgrad":
            result = self._smooth(x)
        elif self.method == "integrated-gradients":
            result = self._integrated(x)
        else:
            rule = _RULES.get(self.method, "exact")
            (result,) = self._pulled([self.port.own_name], rule)
            if self.method == "input-x-gradient":
                result = t.Mul(self._real(x), result)
            elif self.method == "saliency":
                result = t.Abs(result)
        if self.port.to_own:
            result = t.Transpose(result, perm=_inverse(self.port.to_own))
        if self.method == "guided-grad-cam":
            _, cam, rank = self._cam()
            result = t.Mul(result, formula.resized(t, cam, rank, self._input_extent()))
        return result

    def _smooth(self, x: ir.Value) -> ir.Value:
        """Average the gradient's magnitude over noisy copies (Smilkov et al., 1706.03825)."""
        count = self.options["samples"]
        t, rng = self.t, np.random.default_rng(self.seed)
        size = (count, *self._input_size("SmoothGrad's noise lies in the file"))
        drawn = np.float32(self.options["noise"]) * rng.standard_normal(size, np.float32)
        noise = np.stack([self.port.own_layout(one[None])[0] for one in drawn])
        axes, real = list(range(1, self.rank)), self._real(x)
        spread = t.Sub(t.ReduceMax(real, axes, keepdims=1), t.ReduceMin(real, axes, keepdims=1))

        def point(inner: Tape, index: ir.Value) -> ir.Value:
            return inner.Add(real, inner.Mul(inner.Gather(noise, index, axis=0), spread))

        return self._averaged(x, np.full(count, 1 / count, np.float32), point, absolute=True)

    def _integrated(self, x: ir.Value) -> ir.Value:
        """Integrate the gradient along the line from the baseline (Sundararajan, 1703.01365)."""
        t, real = self.t, self._real(x)
        nodes, weights = np.polynomial.legendre.leggauss(self.options["steps"])
        alphas = ((nodes + 1) / 2).astype(np.float32)
        origin = self._baseline(real)
        change = real if origin is None else t.Sub(real, origin)

        def point(inner: Tape, index: ir.Value) -> ir.Value:
            along = inner.Mul(change, inner.Gather(alphas, index, axis=0))
            return along if origin is None else inner.Add(origin, along)

        return t.Mul(change, self._averaged(x, (weights / 2).astype(np.float32), point))

    def _baseline(self, x: ir.Value) -> ir.Value | None:
        """Return where the line begins, None for zero."""
        t, given = self.t, self.options["baseline"]
        own = self.port.to_own or tuple(range(self.rank))
        axes = sorted(own.index(axis) for axis in range(2, self.rank))
        if not isinstance(given, str):
            size = self._input_size("The baseline lies in the file")
            array = np.asarray(given, np.float32)
            if array.shape != size:
                raise MethodError(f"The baseline has shape {array.shape}, an image {size}.")
            return t.constant(np.ascontiguousarray(self.port.own_layout(array[None])))
        if given == "zero":
            return None
        if given == "mean":
            return t.expand_like(t.ReduceMean(x, axes, keepdims=1), x)
        if given != "blurred":
            raise MethodError(
                f"baseline={given!r} cannot be compiled: 'zero', 'mean', 'blurred', or an array."
            )
        _, *sizes = self._input_size("How far to blur lies in the file")
        for axis, length in enumerate(sizes, start=2):
            matrix = gaussian_filter1d(np.eye(length), length / 10, axis=0).astype(np.float32)
            x = t.along(x, t.constant(matrix), own.index(axis), self.rank)
        return x

    def _input_size(self, why: str) -> tuple[int, ...]:
        """Return `(C, *spatial)` of the picture, which must be known."""
        shape = tuple(size for size in self.port.shape[1:] if size is not None)
        if len(shape) < self.rank - 1:
            raise UnsupportedError(
                f"{why}, so the model's input needs a fixed size: it is {self.port.shape[1:]}. "
                "Export the model with that size."
            )
        return shape

    def _averaged(
        self,
        x: ir.Value,
        weights: Array,
        point: Callable[[Tape, ir.Value], ir.Value],
        absolute: bool = False,
    ) -> ir.Value:
        if x.dtype is not None and not x.dtype.is_floating_point():
            raise UnsupportedError(
                f"{self.method} looks between whole numbers, and the model takes "
                f"{self.port.dtype}: export it with a float input."
            )
        gradient = differentiate(self.part, [self.explained], [self.port.own_name], fetch=()).model
        given = self.values | {f"seed/{self.explained}": self.hot}
        return average_over_points(self.t, self.graph, gradient, given, x, weights, point, absolute)

    # ---- the file --------------------------------------------------------------------------------

    def _extent(self) -> ir.Value:
        if self.size is None:
            return self._input_extent()
        return self.t.constant(np.asarray(self.size, np.int64))

    def _input_extent(self) -> ir.Value:
        """Return the spatial size of the input, `(2,)` for pictures."""
        t, x, own = self.t, self.values[self.port.own_name], self.port.to_own
        sizes = [t.size(x, own.index(a) if own else a) for a in range(2, self.rank)]
        return t.Concat(*sizes, axis=0)

    def _finish(self, named: dict[str, ir.Value], extra: list[ir.Value]) -> None:
        taken = {*self.values, *(value.name for value in extra)}
        results = [self.values[name] for name in self.outputs]
        batch = (self.values[self.outputs[0]].shape or ir.Shape(["batch"]))[0]
        extents = {
            "heatmap": tuple(self.size or self.port.shape[2:]),
            "attribution": self._map_shape() if self.maps else self.port.shape[1:],
        }
        for name, value in named.items():
            self.names[name] = own = name if name not in taken else f"pellucid/{name}"
            kind = ir.DataType.INT64 if name == "target" else ir.DataType.FLOAT
            shape = ir.Shape([batch, *extents.get(name, ())])
            result = ir.Value(name=own, type=ir.TensorType(kind), shape=shape)
            self.t.op("Identity", [value], output=result, name=f"pellucid/output/{name}")
            results.append(result)
        self.graph.extend(self.t.nodes)
        for constant in self.t.initializers:
            self.graph.register_initializer(constant)
        self.graph.inputs.extend(extra)
        self.graph.outputs.clear()
        self.graph.outputs.extend(results)
        passes.RemoveUnusedNodesPass()(self.model)
        fold(self.model)
        infer(self.model)

    def _map_shape(self) -> tuple[int | None, ...]:
        if len(self.layers) > 1:
            return max((self._grid(layer) for layer in self.layers), key=np.prod)
        return self._map_grid(self.layers[0])


def _inverse(order: Sequence[int]) -> list[int]:
    return [int(axis) for axis in np.argsort(order)]


def _picture(adapter: OnnxAdapter) -> Port:
    """Return the input that is explained: the first with a spatial grid."""
    ports = [port for port in adapter.inputs if len(port.shape) >= 3]
    if not ports:
        raise UnsupportedError("The model has no input with a spatial grid to draw a map on.")
    return ports[0]

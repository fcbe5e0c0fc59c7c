"""Explanations compiled to one ONNX file.

The file takes the model's input and gives the model's outputs and the map. It holds nothing but
standard ONNX operators, so any runtime of any language executes it, with no Python around.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pellucid.adapters.base import Port, Rectifier
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.compiled import CompiledExplainer
from pellucid.errors import InputError, LayerError, MethodError, UnsupportedError, nearest
from pellucid.explainer import adapter_of
from pellucid.graph import explanations as formula
from pellucid.graph.gradient import differentiate, walk
from pellucid.graph.placement import Placement
from pellucid.graph.prepare import fold, infer, prepare
from pellucid.graph.tape import Tape
from pellucid.labels import find_label
from pellucid.methods.layer_choice import choose_layer, placement_of
from pellucid.methods.registry import METHODS

__all__ = ["COMPILED", "compile_explainer"]

Target = int | str | Literal["argmax", "input"]
CAMS = ("grad-cam", "xgrad-cam", "hires-cam", "layer-cam")
COMPILED = (*CAMS, "saliency", "input-x-gradient", "guided-backprop", "deconvnet",
            "integrated-gradients", "smoothgrad", "guided-grad-cam")  # fmt: skip
_OPTIONS = {"smoothgrad": ("samples", "noise"), "integrated-gradients": ("steps",)}
_RULES: dict[str, Rectifier] = {
    "guided-backprop": "guided",
    "guided-grad-cam": "guided",
    "deconvnet": "deconv",
}


def compile_explainer(
    model: Any,
    method: str = "grad-cam",
    *,
    layer: str | None = None,
    target: Target = "argmax",
    size: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> CompiledExplainer:
    """Write a network together with an explanation of what it says as one ONNX graph.

    Parameters
    ----------
    model : an `.onnx` file, an `onnx.ModelProto`, or what `pellucid.load` returned for one.
    method : `"grad-cam"`, `"xgrad-cam"`, `"hires-cam"`, `"layer-cam"`, `"saliency"`,
        `"input-x-gradient"`, `"guided-backprop"`, `"deconvnet"`, `"integrated-gradients"`,
        `"smoothgrad"`, `"guided-grad-cam"`; they give what `explain` gives.
    layer : the layer of a class activation map; None takes the one that `explain` takes.
    target : `"argmax"`, the top class of each image; `"input"`, a second input `class_index`
        of one index, or one per image; or a class index or label, fixed in the file.
    size : `(H, W)` of the heatmap; None is the size of the model's input.
    seed : governs the noise of SmoothGrad, which lies in the file.
    options : SmoothGrad: `samples` (25), `noise` (0.15, as a share of the image's range).
        Integrated gradients: `steps` (50, of Gauss and Legendre's quadrature).

    Returns
    -------
    explainer : call it with images, or save it with `save("cam.onnx")`. The graph's outputs are
        the model's own and `heatmap` `(N, H, W)` in [0, 1], `attribution` (raw: `(N, *grid)`
        for class activation maps, `(N, C, H, W)` for the others), `target` `(N,)` and `score`
        `(N,)`, the logit that is explained.

    Raises
    ------
    MethodError : no such method or option.
    UnsupportedError : the model is no ONNX file, or an operator of it has no derivative.

    Example
    -------
    >>> pellucid.compile("model.onnx", "grad-cam").save("cam.onnx")  # doctest: +SKIP
    """
    adapter = _onnx(model)
    chosen = _checked(method, options)
    if method in CAMS or method == "guided-grad-cam":
        layer = layer or choose_layer(adapter).name
    elif layer is not None:
        raise MethodError(f"{method} explains the input itself: leave layer= out.")
    plan = _Plan(adapter, method, layer, _resolved(adapter, target), size, seed, chosen)
    proto = ir.to_proto(plan.write())
    _only_standard(proto)
    _describe(proto, plan)
    onnx.checker.check_model(proto, full_check=False)
    return CompiledExplainer(proto)


class _Plan:
    """One compilation: the network's graph, the tape, and what is written on it."""

    def __init__(
        self,
        adapter: OnnxAdapter,
        method: str,
        layer: str | None,
        target: int | Literal["argmax", "input"],
        size: Sequence[int] | None,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        self.adapter, self.method, self.layer, self.target = adapter, method, layer, target
        self.size, self.seed, self.options = size, seed, options
        self.port, self.output = _picture(adapter), adapter.outputs[0]
        self.logits = adapter.tensor(self.output.logits)
        self.outputs = [port.own_name for port in adapter.outputs]
        tensors = [*self.outputs, self.logits, self.port.own_name]
        self.part = adapter.part(tensors + ([adapter.tensor(layer)] if layer else []))
        self.model = prepare(self.part)
        self.graph = self.model.graph
        self.values = ir.convenience.create_value_mapping(self.graph)
        self.t = Tape(self.graph, prefix="pellucid/")
        self.rank = len(self.port.shape)

    def write(self) -> ir.Model:
        """Write the explanation beside the network."""
        t, logits = self.t, self.values[self.logits]
        t.dtype = logits.dtype or ir.DataType.FLOAT
        if t.dtype != ir.DataType.FLOAT:
            raise UnsupportedError("Only models that compute in float32 can be compiled.")
        axis = self.output.class_axis
        classes, extra = self._classes(logits, axis)
        self.hot = formula.one_hot(t, logits, classes, axis)
        positions = list(range(1, t.rank(logits)))
        score = t.ReduceSum(t.Mul(self.hot, logits), positions, keepdims=0)
        if self.method in CAMS:
            attribution, shown, rank = self._cam()
            drawn = formula.heatmap(t, shown, rank, self._extent())
        else:
            attribution, signed = self._pixels(), METHODS[self.method].signed
            drawn = formula.pixel_heatmap(t, attribution, self.rank, self._extent(), signed)
        named = {"heatmap": drawn, "attribution": attribution, "target": classes, "score": score}
        self._finish(named, extra)
        return self.model

    def _classes(self, logits: ir.Value, axis: int) -> tuple[ir.Value, list[ir.Value]]:
        t = self.t
        if self.target == "argmax":
            return formula.top_class(t, logits, axis), []
        batch = t.Shape(logits, start=0, end=1)
        if self.target == "input":
            kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["classes"])
            given = ir.Value(name="class_index", type=kind, shape=shape)
            return t.Expand(given, batch), [given]
        return t.Expand(t.constant(np.asarray([self.target], np.int64)), batch), []

    def _pulled(self, name: str, relu: Rectifier = "exact") -> ir.Value:
        """Return the gradient of the score at a tensor."""
        wanted = self.values[name]
        found = walk(self.t, self.graph, {self.values[self.logits]: self.hot}, [wanted], relu)
        if wanted not in found:
            raise LayerError(
                f"The score does not depend on {self.layer or name!r}: name another with layer=."
            )
        self.t.dtype = ir.DataType.FLOAT
        return found[wanted]

    def _cam(self) -> tuple[ir.Value, ir.Value, int]:
        """Return the map as it is given, `(N, *grid)`, with a channel axis, and its rank."""
        t = self.t
        assert self.layer is not None
        name = self.adapter.tensor(self.layer)
        activation, gradient, placement = self.values[name], self._pulled(name), self._placement()
        rank = t.rank(activation)
        if not placement.is_plain:
            activation, gradient = (
                formula.on_grid(t, value, rank, placement) for value in (activation, gradient)
            )
            rank = 2 + len(placement.grid)
        kind = "grad-cam" if self.method == "guided-grad-cam" else self.method
        cam = t.Relu(formula.class_activation(t, activation, gradient, rank, kind))
        return t.Squeeze(cam, [1]), cam, rank

    @property
    def _layer_shape(self) -> tuple[int | None, ...]:
        """Shape of the layer's values, None where any size fits."""
        assert self.layer is not None
        known = {layer.name: layer.shape for layer in self.adapter.layers}
        if self.layer in known:
            return known[self.layer]
        shape: tuple[int | None, ...] = self.adapter.graph[self.layer].shape
        return (None,) * len(shape) if None in self.port.shape[1:] else shape

    def _placement(self) -> Placement:
        """Return how the layer's values lie on the image; refuse what has no grid."""
        assert self.layer is not None
        sizes = [1, *(size or 1 for size in self._layer_shape[1:])]
        return placement_of(self.adapter, self.layer, sizes)

    def _grid(self) -> tuple[int | None, ...]:
        """Return the size of the map, None where any size fits."""
        placement, shape = self._placement(), self._layer_shape
        if placement.take is None and len(placement.positions) == len(placement.grid):
            return tuple(shape[axis] for axis in placement.positions)
        return placement.grid

    def _pixels(self) -> ir.Value:
        """Return the attribution of every input value, `(N, C, *spatial)`."""
        t, x = self.t, self.values[self.port.own_name]
        if self.method == "smoothgrad":
            result = self._smooth(x)
        elif self.method == "integrated-gradients":
            result = self._integrated(x)
        else:
            result = self._pulled(self.port.own_name, _RULES.get(self.method, "exact"))
            if self.method == "input-x-gradient":
                result = t.Mul(x, result)
            elif self.method == "saliency":
                result = t.Abs(result)
        if self.port.to_own:
            order = [int(axis) for axis in np.argsort(self.port.to_own)]
            result = t.Transpose(result, perm=order)
        if self.method == "guided-grad-cam":
            _, cam, rank = self._cam()
            result = t.Mul(result, formula.resized(t, cam, rank, self._input_extent()))
        return result

    def _smooth(self, x: ir.Value) -> ir.Value:
        """Average the gradient's magnitude over noisy copies (Smilkov et al., 1706.03825)."""
        count, shape = self.options["samples"], self.port.shape[1:]
        if None in shape:
            raise UnsupportedError(
                "SmoothGrad's noise lies in the file, so the model's input needs a fixed size: "
                f"it is {shape}. Export the model with that size."
            )
        t, rng = self.t, np.random.default_rng(self.seed)
        size = (count, *(side or 1 for side in shape))
        drawn = np.float32(self.options["noise"]) * rng.standard_normal(size, np.float32)
        noise = np.stack([self.port.own_layout(one[None])[0] for one in drawn])
        axes = list(range(1, self.rank))
        spread = t.Sub(t.ReduceMax(x, axes, keepdims=1), t.ReduceMin(x, axes, keepdims=1))

        def point(inner: Tape, x: ir.Value, index: ir.Value) -> ir.Value:
            return inner.Add(x, inner.Mul(inner.Gather(noise, index, axis=0), spread))

        return self._averaged(x, np.full(count, 1 / count, np.float32), point, absolute=True)

    def _integrated(self, x: ir.Value) -> ir.Value:
        """Integrate the gradient along the line from the baseline (Sundararajan, 1703.01365)."""
        t = self.t
        nodes, weights = np.polynomial.legendre.leggauss(self.options["steps"])
        alphas = ((nodes + 1) / 2).astype(np.float32)

        def point(inner: Tape, x: ir.Value, index: ir.Value) -> ir.Value:
            return inner.Mul(x, inner.Gather(alphas, index, axis=0))  # from zero

        return t.Mul(x, self._averaged(x, (weights / 2).astype(np.float32), point))

    def _averaged(
        self,
        x: ir.Value,
        weights: Any,
        point: Callable[[Tape, ir.Value, ir.Value], ir.Value],
        absolute: bool = False,
    ) -> ir.Value:
        gradient = differentiate(self.part, [self.logits], [self.port.own_name], fetch=()).model
        given = self.values | {f"seed/{self.logits}": self.hot}
        return formula.average_over_points(
            self.t, self.graph, gradient, given, x, weights, point, absolute
        )

    def _extent(self) -> ir.Value:
        if self.size is None:
            return self._input_extent()
        return self.t.constant(np.asarray(self.size, np.int64))

    def _input_extent(self) -> ir.Value:
        """Return the spatial size of the input, `(2,)` for pictures."""
        t, x = self.t, self.values[self.port.own_name]
        sizes = [t.size(x, self.port.to_own.index(axis) if self.port.to_own else axis)
                 for axis in range(2, self.rank)]  # fmt: skip
        return t.Concat(*sizes, axis=0)

    def _finish(self, named: dict[str, ir.Value], extra: list[ir.Value]) -> None:
        taken = {*self.values, *(value.name for value in extra)}
        results = [self.values[name] for name in self.outputs]
        batch = (self.values[self.outputs[0]].shape or ir.Shape(["batch"]))[0]
        drawn = tuple(self.size or self.port.shape[2:])
        grid = self._grid() if self.method in CAMS else ()
        extents = {"heatmap": drawn, "attribution": grid or self.port.shape[1:]}
        self.names = {}
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


# ---- what is asked for ------------------------------------------------------------------------


def _onnx(model: Any) -> OnnxAdapter:
    adapter = OnnxAdapter(model) if isinstance(model, onnx.ModelProto) else adapter_of(model)
    if not isinstance(adapter, OnnxAdapter):
        raise UnsupportedError(
            f"This version compiles ONNX files, and {adapter.source or 'this model'} is a "
            f"{adapter.framework} model: export it to ONNX and compile that file."
        )
    return adapter


def _checked(method: str, options: dict[str, Any]) -> dict[str, Any]:
    if method not in COMPILED:
        raise MethodError(f"There is no method {method!r} to compile. {nearest(method, COMPILED)}")
    known = _OPTIONS.get(method, ())
    for name in options:
        if name not in known:
            raise MethodError(f"A compiled {method} has no option {name!r}. {nearest(name, known)}")
    defaults = METHODS[method].parameters
    chosen = {name: options.get(name, defaults[name]) for name in known}
    for name in ("samples", "steps"):
        if name in chosen and not (isinstance(chosen[name], int) and chosen[name] > 0):
            raise MethodError(f"{name}={chosen[name]!r} must be a whole number above 0.")
    return chosen


def _resolved(adapter: OnnxAdapter, target: Target) -> int | Literal["argmax", "input"]:
    """Turn a label into its index, and check indices."""
    if target in ("argmax", "input"):
        return target
    port = adapter.outputs[0]
    count = port.shape[port.class_axis]
    if isinstance(target, str):
        if adapter.labels is None:
            raise InputError(f"target={target!r} is a label, but no labels are known.")
        return find_label(target, adapter.labels)
    if count is not None and not -count <= target < count:
        raise InputError(f"The target {target} is out of range: the model has {count} classes.")
    return target % count if count is not None else target


def _picture(adapter: OnnxAdapter) -> Port:
    """Return the input that is explained: the first with a spatial grid."""
    ports = [port for port in adapter.inputs if len(port.shape) >= 3]
    if not ports:
        raise UnsupportedError("The model has no input with a spatial grid to draw a map on.")
    if not ports[0].dtype.startswith("float32"):
        raise UnsupportedError(
            f"The model takes {ports[0].dtype}; only float32 inputs can be compiled."
        )
    return ports[0]


# ---- the file ---------------------------------------------------------------------------------


def _only_standard(proto: onnx.ModelProto) -> None:
    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                raise UnsupportedError(
                    f"{node.domain}.{node.op_type} (node {node.name!r}) is no standard ONNX "
                    "operator, so not every runtime could run the file. Export the model without "
                    "the runtime's own optimisations."
                )
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(proto.graph)
    standard = [opset for opset in proto.opset_import if opset.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)


def _describe(proto: onnx.ModelProto, plan: _Plan) -> None:
    """Write down what the file explains, and how pictures become its input."""
    from pellucid import __version__

    adapter, preprocess = plan.adapter, None
    if plan.rank == 4 and is_dataclass(adapter.preprocessing):
        preprocess = asdict(adapter.preprocessing)
    described = {
        "version": __version__,
        "model": Path(adapter.source).name if adapter.source else "",
        "model_sha256": adapter.fingerprint,
        "method": plan.method,
        "layer": plan.layer,
        "target": plan.target,
        "options": plan.options,
        "seed": plan.seed,
        "labels": list(adapter.labels) if adapter.labels is not None else None,
        "preprocess": preprocess,
        "input": plan.port.own_name,
        "output": plan.output.own_name,
        "activation": plan.output.activation,
        "names": plan.names,
    }
    del proto.metadata_props[:]
    for name, value in described.items():
        proto.metadata_props.add(key=f"pellucid.{name}", value=json.dumps(value))
    proto.producer_name, proto.producer_version = "pellucid", __version__

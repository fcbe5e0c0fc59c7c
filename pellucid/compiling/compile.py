"""Explanations compiled to one ONNX file.

The file takes the model's input and gives the model's outputs and the map. It holds nothing but
standard ONNX operators, so any runtime of any language executes it, with no Python around.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.adapters.onnx.exported import exported
from pellucid.compiling.compilation import FORWARD_CAMS, GRADIENT_CAMS, Compilation
from pellucid.compiling.compiled import CompiledExplainer
from pellucid.errors import InputError, MethodError, UnsupportedError, nearest
from pellucid.explainer import adapter_of
from pellucid.labels import find_label
from pellucid.methods.layer_choice import choose_layer
from pellucid.methods.objective import Space

__all__ = ["CAMS", "COMPILED", "DEFAULTS", "compile_explainer"]

Target = int | str | Literal["argmax", "input"]
CAMS = (*GRADIENT_CAMS, *FORWARD_CAMS)
SIGNED = ("input-x-gradient", "integrated-gradients")
COMPILED = (*CAMS, "saliency", "input-x-gradient", "guided-backprop", "deconvnet",
            "integrated-gradients", "smoothgrad", "guided-grad-cam")  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 25, "noise": 0.15},
    "integrated-gradients": {"steps": 50, "baseline": "zero"},
    "recipro-cam": {"fuse": "mean"},
    "guided-grad-cam": {"fuse": "mean"},
    **{cam: {"relu": True, "fuse": "mean"} for cam in (*GRADIENT_CAMS, "eigen-cam")},
}


def compile_explainer(
    model: Any,
    method: str = "grad-cam",
    *,
    layer: str | Sequence[str] | None = None,
    target: Target = "argmax",
    size: Sequence[int] | None = None,
    space: Space = "logit",
    seed: int = 0,
    labels: Sequence[str] | str | Path | None = None,
    preprocess: Any = None,
    **options: Any,
) -> CompiledExplainer:
    """Write a network together with an explanation of what it says as one ONNX graph.

    Parameters
    ----------
    model : what `pellucid.load` takes, or what it returned. PyTorch and Keras models go through
        their ONNX export, and keep their layers' names.
    method : `"grad-cam"`, `"grad-cam++"`, `"xgrad-cam"`, `"hires-cam"`, `"layer-cam"`;
        `"eigen-cam"`, `"recipro-cam"`, which need no gradients; `"saliency"`,
        `"input-x-gradient"`, `"guided-backprop"`, `"deconvnet"`, `"integrated-gradients"`,
        `"smoothgrad"`, `"guided-grad-cam"`. They give what `explain` gives.
    layer : the layer or layers of a class activation map; None takes the one that `explain` takes.
    target : `"argmax"`, the top class of each image; `"input"`, a second input `class_index`
        of one index, or one per image; or a class index or label, fixed in the file.
    size : `(H, W)` of the heatmap; None is the size of the model's input.
    space : `"logit"` explains the score before a final softmax or sigmoid, `"probability"` after.
    seed : governs the noise of SmoothGrad, which lies in the file.
    labels, preprocess : as in `pellucid.load`, for a model that is given as it is.
    options : Class activation maps: `relu` (True), `fuse` ("mean" or "max" of several layers).
        SmoothGrad: `samples` (25), `noise` (0.15, as a share of the image's range).
        Integrated gradients: `steps` (50, of Gauss and Legendre's quadrature), `baseline`
        ("zero", "mean", "blurred", or an array of the shape of an image, channels first).

    Returns
    -------
    explainer : call it with images, or save it with `save("cam.onnx")`. The graph's outputs are
        the model's own and `heatmap` `(N, H, W)` in [0, 1], `attribution` (raw: `(N, *grid)`
        for class activation maps, `(N, C, H, W)` for the others), `target` `(N,)` and `score`
        `(N,)`, the logit or probability that is explained.

    Raises
    ------
    MethodError : no such method or option.
    UnsupportedError : the model has no ONNX form, or an operator of it has no derivative.

    Example
    -------
    >>> pellucid.compile("model.onnx", "grad-cam").save("cam.onnx")  # doctest: +SKIP
    """
    adapter = _onnx(model, labels, preprocess)
    chosen = _checked(method, options)
    if space not in ("logit", "probability"):
        raise InputError(f"space={space!r} is unknown: 'logit' or 'probability'.")
    layers: tuple[str, ...] = ()
    if method in CAMS or method == "guided-grad-cam":
        named = choose_layer(adapter).name if layer is None else layer
        layers = (named,) if isinstance(named, str) else tuple(dict.fromkeys(named))
        if not layers:
            raise MethodError("layer= is an empty list: name at least one, or leave it out.")
    elif layer is not None:
        raise MethodError(f"{method} explains the input itself: leave layer= out.")
    plan = Compilation(
        adapter, method, layers, _resolved(adapter, target), size, seed, space, method in SIGNED,
        chosen,
    )  # fmt: skip
    proto = ir.to_proto(plan.write())
    _only_standard(proto)
    _describe(proto, plan)
    onnx.checker.check_model(proto, full_check=False)
    return CompiledExplainer(proto)


# ---- what is asked for ------------------------------------------------------------------------


def _onnx(model: Any, labels: Any, preprocess: Any) -> OnnxAdapter:
    if isinstance(model, onnx.ModelProto):
        return OnnxAdapter(model, labels=labels, preprocess=preprocess)
    return exported(adapter_of(model, labels, preprocess))


def _checked(method: str, options: dict[str, Any]) -> dict[str, Any]:
    if method not in COMPILED:
        raise MethodError(f"There is no method {method!r} to compile. {nearest(method, COMPILED)}")
    known = DEFAULTS.get(method, {})
    for name in options:
        if name not in known:
            raise MethodError(f"A compiled {method} has no option {name!r}. {nearest(name, known)}")
    chosen = known | options
    for name in ("samples", "steps"):
        if name in chosen and not (isinstance(chosen[name], int) and chosen[name] > 0):
            raise MethodError(f"{name}={chosen[name]!r} must be a whole number above 0.")
    if not isinstance(chosen.get("relu", True), bool):
        raise MethodError(f"relu={chosen['relu']!r}: True or False is wanted.")
    if chosen.get("fuse", "mean") not in ("mean", "max"):
        raise MethodError(f"fuse={chosen['fuse']!r} is unknown: 'mean' or 'max'.")
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


def _describe(proto: onnx.ModelProto, plan: Compilation) -> None:
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
        "layer": plan.layers[0] if len(plan.layers) == 1 else plan.layers or None,
        "target": plan.target,
        "options": {name: _readable(value) for name, value in plan.options.items()},
        "space": plan.space,
        "signed": plan.signed,
        "seed": plan.seed,
        "labels": list(adapter.labels) if adapter.labels is not None else None,
        "preprocess": preprocess,
        "input": plan.port.own_name,
        "output": plan.output.own_name,
        "activation": plan.output.activation,
        "framework": adapter.framework,
        "names": plan.names,
        "layouts": {p.own_name: p.to_own for p in (*adapter.inputs, *adapter.outputs)},
    }
    del proto.metadata_props[:]
    for name, value in described.items():
        proto.metadata_props.add(key=f"pellucid.{name}", value=json.dumps(value))
    proto.producer_name, proto.producer_version = "pellucid", __version__


def _readable(option: Any) -> Any:
    return f"array {option.shape}" if isinstance(option, np.ndarray) else option

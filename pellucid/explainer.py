"""The public call: from a model and images to explanations."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array
from pellucid.adapters.engine import Engine, engine_for, overlooked_rectifiers
from pellucid.adapters.load import load
from pellucid.errors import MethodError
from pellucid.explanation import Explanation
from pellucid.images import Prepared, resize_map
from pellucid.methods.diagnosis import Diagnosis, diagnose, shortfall, symptom
from pellucid.methods.libraries import Style, maximum_of_layers, mean_of_layers, style_of
from pellucid.methods.objective import Objective, Space, probabilities
from pellucid.methods.registry import Method, method_named
from pellucid.methods.smooth import smoothed
from pellucid.perturbing import Asking, asked, region_fields
from pellucid.region_explanation import RegionExplanation

__all__ = ["adapter_of", "explain"]

_FUSIONS = {"mean": mean_of_layers, "max": maximum_of_layers}
_MOST_SETTINGS = 4  # of labels and preprocessing that a live model is kept with
_live: weakref.WeakKeyDictionary[Any, dict[str, Adapter]] = weakref.WeakKeyDictionary()


def explain(
    model: Any,
    images: Any,
    method: str = "grad-cam",
    *,
    target: Any = None,
    layer: str | Sequence[str] | None = None,
    space: Space = "logit",
    like: str | None = None,
    seed: int = 0,
    top: int = 5,
    engine: Engine | None = None,
    labels: Sequence[str] | str | Path | None = None,
    preprocess: Any = None,
    **options: Any,
) -> Explanation | list[Explanation]:
    """Explain what a network sees in images.

    Parameters
    ----------
    model : anything that `pellucid.load` takes, or what it returned. Load once to explain often.
    images : a path, a PIL image, an `(H, W)` or `(H, W, C)` integer array, or a list of those:
        they go through the model's preprocessing. Or a float batch in the model's own layout,
        taken as already preprocessed.
    method : `"grad-cam"`, `"grad-cam++"`, `"xgrad-cam"`, `"hires-cam"`, `"layer-cam"`,
        `"eigen-cam"`, `"eigengrad-cam"`, `"score-cam"`, `"ablation-cam"`, `"recipro-cam"`,
        `"layer-conductance"`;
        `"saliency"`, `"input-x-gradient"`, `"guided-backprop"`, `"deconvnet"`,
        `"integrated-gradients"`, `"expected-gradients"`, `"blur-ig"`, `"guided-ig"`, `"xrai"`,
        `"fullgrad"`,
        `"deeplift"` and `"lrp"` (both on the ONNX engine), `"smoothgrad"`; `"guided-grad-cam"`.
        By predictions alone: `"lime"`, `"kernel-shap"`, `"shapley-sampling"`, `"rise"`,
        `"occlusion"`, `"hierarchical-occlusion"`, `"sobol"`; and `"meaningful-perturbation"`.
    target : class index, label, None for the top class of each image; `pellucid.Contrast("cat",
        "dog")` for one class rather than another, `Counterfactual`, `Region`, `Detection`; a list
        of those (one per image); an array over the output, or a function from the output to
        `(score, cotangent)`. A mapping `{"output:1": target}` chooses among several outputs.
    layer : name of the layer or layers to look at; None picks one and says why.
    space : `"logit"` explains the score before a final softmax or sigmoid, `"probability"` after.
    like : `"captum"`, `"pytorch-grad-cam"`, `"tf-keras-vis"`, `"torch-cam"`, `"xplique"`, `"lime"`:
        the array that this library gives; None and `"paper"`: the paper's definition.
    seed : governs all randomness of the call.
    top : how many predictions the explanation lists.
    engine : what computes. `"native"`: the model's own framework, the reference. `"onnx"`:
        onnxruntime, on the model's ONNX export, which is made if need be and kept. `"auto"`:
        onnxruntime if an export is at hand and agrees with the framework, see
        `pellucid.adapters.engine`. ONNX files are always computed by onnxruntime. None:
        `"native"`, but `"auto"` for the methods that ask for many predictions and no gradient,
        unless `like` asks for a library's numbers.
    labels, preprocess : as in `pellucid.load`, for a model that is given as it is; one that was
        loaded keeps its own for other calls.
    options : of the method, see `pellucid.methods`. Class activation maps: `relu` (True);
        `fuse`, how several layers become one map (`"mean"` or `"max"`). `smooth=25` averages any
        method over so many noisy copies of the image; `noise` (0.15) is the noise's share of the
        image's range. `memory`, of the long ones, is a budget in bytes.

    Returns
    -------
    explanation : one `Explanation` for one image, a list for several.

    Raises
    ------
    PellucidError : model, images, layer, target or options do not fit; the message says what to
        do.

    Examples
    --------
    >>> explanation = pellucid.explain(model, "cat.jpg")  # doctest: +SKIP
    >>> explanation.save("cat.png")  # doctest: +SKIP
    """
    began = time.perf_counter()
    adapter = adapter_of(model, labels, preprocess)
    prepared: Prepared
    found = method_named(method)
    if found.perturbs:
        _check_like(found, like)
        if layer is not None:
            raise MethodError(f"{method} explains the input itself: leave layer= out.")
        asking = Asking.of(found, like, options, seed)
        prepared = adapter.prepare(images)
        adapter, chosen = engine_for(adapter, _engine(engine, found, adapter, like))
        return _by_perturbation(adapter, prepared, target, space, asking, top, began, chosen)
    style = _style(found, like, options.get("fuse"))
    generic = ("smooth", "noise") if found.smoothable else ()
    keywords = found.checked(options, (*generic, *(() if found.pixels else ("fuse",))))
    if "seed" in found.parameters:
        keywords["seed"] = seed
    if like is not None and "relu" in found.parameters:
        keywords = {"relu": style.relu, **keywords}
    keywords = {**found.like.get(like or "paper", {}), **keywords}
    if found.onnx and engine == "native" and adapter.engine != "onnx":
        raise MethodError(f"{method} runs on the ONNX engine alone: leave engine= out.")
    prepared = adapter.prepare(images)
    adapter, chosen = engine_for(adapter, _engine(engine, found, adapter, like))
    objective = Objective(adapter, target, space)
    layers: tuple[str, ...] = ()
    reason = None
    if found.layer:
        layers, reason = _layers(adapter, style, layer, objective.outputs)
    elif layer is not None:
        raise MethodError(f"{method} explains the input itself: leave layer= out.")
    arguments = [layers] if found.layer else []
    asked = (adapter, prepared.batch, objective)
    if smoothing := {name: options[name] for name in generic if name in options}:
        made = smoothed(found.function, *asked, arguments, keywords, seed=seed, **smoothing)
    else:
        made = found.function(*asked, *arguments, **keywords)
    size = prepared.batch[0].shape[2:]
    attribution = style.pixels(made) if found.pixels else style.finish(made, size)
    seconds = time.perf_counter() - began
    shared: dict[str, Any] = {
        "method": method,
        "space": space,
        "layer": layers[0] if len(layers) == 1 else layers or None,
        "layer_reason": reason,
        "options": {"like": like, **options} if like else options,
        "provenance": {
            **_provenance(adapter, prepared, seed, seconds),
            **({"engine_reason": chosen} if chosen else {}),
        },
    }
    by_class = _class_probabilities(objective)
    channels = found.pixels and attribution.ndim == made.ndim
    warning = overlooked_rectifiers(adapter) if found.bends else ""
    strengths = [_strength(found, one, channels) for one in attribution]
    symptoms = [symptom(*both) for both in zip(attribution, strengths, strict=True)]
    ill = diagnose(adapter, prepared.batch, objective, symptoms, attribution, layers)
    explanations = [
        Explanation(
            attribution=attribution[index],
            **_drawn(found, strengths[index], prepared, index),
            **_told(adapter, prepared, objective, index, ill[index], warning),
            **_answer(adapter, objective, index, by_class[index], top),
            **shared,
        )
        for index in range(len(prepared))
    ]
    return explanations[0] if prepared.single else explanations


def adapter_of(model: Any, labels: Any = None, preprocess: Any = None) -> Adapter:
    """Return the adapter of a model; that of a live model is kept as long as the model lives."""
    given = {"labels": labels, "preprocess": preprocess}
    if isinstance(model, Adapter):
        return model if labels is None and preprocess is None else load(copy.copy(model), **given)
    kept = hasattr(model, "__weakref__") or isinstance(model, FunctionType)
    if isinstance(model, str) or not kept:
        return load(model, **given)
    adapters = _live.setdefault(model, {})
    if (settings := repr(given)) not in adapters:
        if len(adapters) == _MOST_SETTINGS:
            adapters.clear()
        # it must not keep the model alive, or the entry would never go
        adapters[settings] = load(weakref.proxy(model), **given)
    return adapters[settings]


def _class_probabilities(objective: Objective) -> Array:
    """Return the probability of each class, `(N, K)`; dense outputs are averaged."""
    port = objective.port
    if not objective.classifies:
        return np.zeros((len(objective.scores), 0), np.float32)
    logits = objective.logits[port.logits]
    values = probabilities(logits[:, None] if logits.ndim == 1 else logits, port)
    positions = tuple(a for a in range(1, values.ndim) if a != port.class_axis)
    mean: Array = values.mean(axis=positions)
    return mean


def _style(method: Method, like: str | None, fuse: str | None) -> Style:
    """Choose how what the method gives becomes the array."""
    _check_like(method, like)
    style = style_of(like or "paper", method.name)
    if fuse is None:
        return style
    if fuse not in _FUSIONS:
        raise MethodError(f"fuse={fuse!r} is unknown: 'mean' or 'max'.")
    return replace(style, finish=_FUSIONS[fuse])


def _engine(asked: Engine | None, method: Method, adapter: Adapter, like: str | None) -> Engine:
    """Return the engine that was asked for, or the method's own default."""
    if method.onnx:
        return "onnx"
    exact = like is not None or adapter.framework == "function"
    return asked or ("auto" if method.asks and not exact else "native")


def _check_like(method: Method, like: str | None) -> None:
    if like is not None and like not in method.like:
        known = ", ".join(map(repr, method.like))
        raise MethodError(
            f"like={like!r}: {method.name} is not known to give this library's array. It gives "
            f"those of {known}."
            if len(method.like) > 1
            else f"like={like!r}: {method.name} gives the paper's array alone: leave like= out."
        )


def _by_perturbation(
    adapter: Adapter,
    prepared: Prepared,
    target: Any,
    space: Space,
    asking: Asking,
    top: int,
    began: float,
    chosen: str,
) -> Explanation | list[Explanation]:
    """Explain images by a method that asks for predictions, one after the other.

    Ctrl-C ends the image at hand with what is known of it, and leaves those after it out.
    """
    objective = Objective(adapter, target, space)
    objective.settle(prepared.batch)
    by_class = _class_probabilities(objective)
    options = {k: v for k, v in asking.options.items() if k != "progress"}
    explanations: list[Explanation] = []
    for index in range(len(prepared)):

        def another(other: Any, image: int = index) -> RegionExplanation:
            alone = replace(
                prepared,
                batch=tuple(array[image : image + 1] for array in prepared.batch),
                pictures=[prepared.pictures[image]],
                single=True,
            )
            now = time.perf_counter()
            made = _by_perturbation(adapter, alone, other, space, asking, top, now, chosen)
            assert isinstance(made, RegionExplanation)
            return made

        try:
            finding, interrupted = asked(adapter, prepared, objective, index, asking)
        except KeyboardInterrupt:
            if not explanations:
                raise
            break
        fields = region_fields(finding, prepared, index, interrupted)
        if prepared.preprocess is not None and prepared.preprocess.assumed:
            fields["notes"] += (f"Preprocessing: {prepared.preprocess.reason}.",)
        fields["notes"] += adapter.notes
        seconds = time.perf_counter() - began
        explanations.append(
            RegionExplanation(
                method=asking.method.name,
                space=space,
                options={"like": asking.like, **options} if asking.like else options,
                provenance={
                    **_provenance(adapter, prepared, asking.seed, seconds),
                    **({"engine_reason": chosen} if chosen else {}),
                },
                another=another,
                **_answer(adapter, objective, index, by_class[index], top),
                **fields,
            )
        )
        if interrupted:
            break
    return explanations[0] if prepared.single else explanations


def _layers(
    adapter: Adapter, style: Style, layer: str | Sequence[str] | None, outputs: Sequence[str]
) -> tuple[tuple[str, ...], str | None]:
    """Return the layers to look at, and why, if they were not named."""
    if layer is None:
        choice = style.layer(adapter, outputs)
        return (choice.name,), choice.reason
    names = (layer,) if isinstance(layer, str) else tuple(layer)
    if not names:
        raise MethodError("layer= is an empty list: name at least one layer, or leave it out.")
    return tuple(dict.fromkeys(names)), None


def _answer(
    adapter: Adapter, objective: Objective, index: int, by_class: Array, top: int
) -> dict[str, Any]:
    """Return what the network says of one image, for its Explanation."""
    target = objective.indices[index] if objective.indices else None
    template, classes = objective.wording[index] if objective.wording else ("{}", ())
    best = [int(i) for i in np.argsort(-by_class, kind="stable")[:top]]
    labels = {i: _label(adapter, i, len(by_class)) for i in (*best, *classes)}
    plain = template == "{}" and objective.classifies
    label = template.format(*(labels[i] or f"class {i}" for i in classes)) if not plain else None
    return {
        "target": target,
        "label": label if target is None or not plain else labels[target],
        "score": float(objective.scores[index]),
        "probability": float(by_class[target]) if plain and target is not None else None,
        "top": tuple((i, labels[i], float(by_class[i])) for i in best),
    }


def _drawn(method: Method, strength: Array, prepared: Prepared, index: int) -> dict[str, Any]:
    """Return heatmap and picture of one image, for its Explanation."""
    scaled = _scaled(method, strength)
    picture = prepared.pictures[index]
    if picture is None:
        drawn = resize_map(scaled, prepared.batch[0].shape[2:])
    else:
        drawn = prepared.to_image(scaled, index)
    if method.signed:
        drawn = np.asarray((1 + drawn) / 2, np.float32)
    return {"heatmap": np.clip(drawn, 0, 1), "image": picture, "signed": method.signed}


def _told(
    adapter: Adapter,
    prepared: Prepared,
    objective: Objective,
    index: int,
    ill: Diagnosis | None,
    warning: str,
) -> dict[str, Any]:
    """Return notes and details of one image, for its Explanation."""
    details = {name: values[index] for name, values in objective.details.items()}
    notes = [warning] if warning else []
    ill = ill or shortfall(details, float(objective.scores[index]))
    if ill is not None:
        notes.append(ill.words)
        details["diagnosis"] = ill.kind
    if prepared.preprocess is not None and prepared.preprocess.assumed:
        notes.append(f"Preprocessing: {prepared.preprocess.reason}.")
    return {"notes": (*notes, *adapter.notes), "details": details}


def _strength(method: Method, attribution: Array, channels: bool) -> Array:
    """Return what is drawn of one image's attribution, before it is scaled: `(*grid)`.

    Over pixels the channels are summed, or without a sign their largest magnitude is taken; of
    other maps what is positive is drawn. `channels` says whether the first axis is theirs.
    """
    if not np.isfinite(attribution).all():
        return np.zeros(attribution.shape[1:] if channels else attribution.shape, np.float32)
    if not method.pixels:
        return np.maximum(attribution, 0)
    drawn: Array = attribution if method.signed else np.abs(attribution)
    if channels:
        drawn = drawn.sum(axis=0) if method.signed else drawn.max(axis=0)
    return drawn


def _scaled(method: Method, strength: Array) -> Array:
    """Scale to [0, 1], or [-1, 1] where a sign has a meaning.

    A map is scaled by its maximum; over pixels the scale is the 99.5th percentile, since a few
    pixels far above all others would leave the rest dark.
    """
    magnitude = np.abs(strength)
    scale = float(np.percentile(magnitude, 99.5)) if method.pixels else 0.0
    scale = scale or float(magnitude.max()) or 1.0
    return np.asarray(strength / scale, np.float32)


def _label(adapter: Adapter, index: int, count: int) -> str | None:
    labels = adapter.labels
    if labels is None or (count == 1 and len(labels) > 2):
        return None
    if count == 1 and len(labels) == 2:
        return labels[1]
    return labels[index] if index < len(labels) else None


def _provenance(adapter: Adapter, prepared: Prepared, seed: int, seconds: float) -> dict[str, Any]:
    from pellucid import __version__

    preprocess = prepared.preprocess
    described = asdict(preprocess) if is_dataclass(preprocess) else repr(preprocess)
    return {
        "model": adapter.source,
        "model_sha256": adapter.fingerprint,
        "framework": adapter.framework,
        "versions": {"pellucid": __version__, "numpy": np.__version__, **adapter.versions},
        "engine": adapter.engine,
        "preprocessing": "given as a batch" if preprocess is None else described,
        "seed": seed,
        "seconds": round(seconds, 4),
    }

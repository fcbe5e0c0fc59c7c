"""The public call: from a model and images to explanations."""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array
from pellucid.adapters.load import load
from pellucid.errors import MethodError, nearest
from pellucid.explanation import Explanation
from pellucid.images import Prepared, resize_map
from pellucid.methods.cam import LIKE, CamStyle, grad_cam, maximum_of_layers, mean_of_layers
from pellucid.methods.layer_choice import LayerChoice
from pellucid.methods.objective import Objective, Space, probabilities

__all__ = ["METHODS", "adapter_of", "explain"]

METHODS = {"grad-cam": grad_cam}
_FUSIONS = {"mean": mean_of_layers, "max": maximum_of_layers}
_live: weakref.WeakKeyDictionary[Any, Adapter] = weakref.WeakKeyDictionary()


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
    **options: Any,
) -> Explanation | list[Explanation]:
    """Explain what a network sees in images.

    Parameters
    ----------
    model : anything that `pellucid.load` takes, or what it returned. Load once to explain often.
    images : a path, a PIL image, an `(H, W)` or `(H, W, C)` integer array, or a list of those:
        they go through the model's preprocessing. Or a float batch in the model's own layout,
        taken as already preprocessed.
    method : `"grad-cam"`.
    target : class index, label, a list of those (one per image), None for the top class of each
        image, an array over the output, or a function from the output to `(score, cotangent)`.
        A mapping `{"output:1": target}` chooses among several outputs.
    layer : name of the layer or layers to look at; None picks one and says why.
    space : `"logit"` explains the score before a final softmax or sigmoid, `"probability"` after.
    like : `"captum"`, `"pytorch-grad-cam"`, `"tf-keras-vis"`: the array that this library gives;
        None and `"paper"`: the paper's definition.
    seed : governs all randomness of the call.
    top : how many predictions the explanation lists.
    options : of the method. Grad-CAM: `relu` (True); `fuse`, how several layers become one map
        (`"mean"` or `"max"`).

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
    adapter = adapter_of(model)
    style, keywords = _style(method, like, options)
    prepared: Prepared = adapter.prepare(images)
    objective = Objective(adapter, target, space)
    choice = style.layer(adapter) if layer is None else None
    layers = _names(choice.name if choice else layer)
    maps = METHODS[method](adapter, prepared.batch, objective, layers, **keywords)
    attribution = style.finish(maps, prepared.batch[0].shape[2:])
    seconds = time.perf_counter() - began
    shown = {"like": like, **options} if like else options
    provenance = _provenance(adapter, prepared, seed, seconds)
    by_class = _class_probabilities(objective)
    explanations = [
        _explanation(
            adapter, prepared, objective, index, attribution[index], method, layers, choice,
            shown, provenance, by_class[index], top,
        )
        for index in range(len(prepared))
    ]  # fmt: skip
    return explanations[0] if prepared.single else explanations


def adapter_of(model: Any) -> Adapter:
    """Return the adapter of a model; that of a live model is kept as long as the model lives."""
    if isinstance(model, Adapter):
        return model
    if isinstance(model, str) or not hasattr(model, "__weakref__"):
        return load(model)
    adapter = _live.get(model)
    if adapter is None:  # it must not keep the model alive, or the entry would never go
        adapter = _live[model] = load(weakref.proxy(model))
    return adapter


def _class_probabilities(objective: Objective) -> Array:
    """Return the probability of each class, `(N, K)`; dense outputs are averaged."""
    port = objective.port
    logits = objective.logits[port.logits]
    values = probabilities(logits[:, None] if logits.ndim == 1 else logits, port)
    positions = tuple(a for a in range(1, values.ndim) if a != port.class_axis)
    mean: Array = values.mean(axis=positions)
    return mean


def _style(
    method: str, like: str | None, options: Mapping[str, Any]
) -> tuple[CamStyle, dict[str, Any]]:
    """Look up method and style, and check the options."""
    if method not in METHODS:
        raise MethodError(f"There is no method {method!r}. {nearest(method, METHODS)}")
    if like is not None and like not in LIKE:
        raise MethodError(f"like={like!r} is no library known here. {nearest(like, LIKE)}")
    known = [p.name for p in inspect.signature(METHODS[method]).parameters.values()
             if p.kind is p.KEYWORD_ONLY]  # fmt: skip
    for name in options:
        if name not in (*known, "fuse"):
            raise MethodError(f"{method} has no option {name!r}. {nearest(name, [*known, 'fuse'])}")
    style = LIKE[like or "paper"]
    if (fuse := options.get("fuse")) is not None:
        if fuse not in _FUSIONS:
            raise MethodError(f"fuse={fuse!r} is unknown: 'mean' or 'max'.")
        style = CamStyle(style.relu, _FUSIONS[fuse], style.layer)
    keywords = {"relu": style.relu, **{k: v for k, v in options.items() if k != "fuse"}}
    return style, keywords


def _names(layer: str | Sequence[str] | None) -> tuple[str, ...]:
    names = (layer,) if isinstance(layer, str) else tuple(layer or ())
    if not names:
        raise MethodError("layer= is an empty list: name at least one layer, or leave it out.")
    return tuple(dict.fromkeys(names))


def _explanation(
    adapter: Adapter,
    prepared: Prepared,
    objective: Objective,
    index: int,
    attribution: Array,
    method: str,
    layers: tuple[str, ...],
    choice: LayerChoice | None,
    options: Mapping[str, Any],
    provenance: Mapping[str, Any],
    by_class: Array,
    top: int,
) -> Explanation:
    target = objective.indices[index] if objective.indices else None
    heatmap, notes = _heatmap(attribution, layers)
    if prepared.preprocess is not None and prepared.preprocess.assumed:
        notes = (*notes, f"Preprocessing: {prepared.preprocess.reason}.")
    if prepared.pictures[index] is None:
        drawn = resize_map(heatmap, prepared.batch[0].shape[2:])
    else:
        drawn = prepared.to_image(heatmap, index)
    best = [int(i) for i in np.argsort(-by_class, kind="stable")[:top]]
    labels = {i: _label(adapter, i, len(by_class)) for i in (*best, target) if i is not None}
    return Explanation(
        attribution=attribution,
        heatmap=np.clip(drawn, 0, 1),
        method=method,
        score=float(objective.scores[index]),
        probability=None if target is None else float(by_class[target]),
        target=target,
        label=None if target is None else labels[target],
        space=objective.space,
        layer=layers[0] if len(layers) == 1 else layers,
        layer_reason=choice.reason if choice else None,
        options=dict(options),
        provenance=dict(provenance),
        image=prepared.pictures[index],
        top=tuple((i, labels[i], float(by_class[i])) for i in best),
        notes=(*notes, *adapter.notes),
    )


def _heatmap(attribution: Array, layers: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Scale what speaks for the target to [0, 1]; say so in words where nothing does."""
    where = " and ".join(layers)
    if not np.isfinite(attribution).all():
        return np.zeros_like(attribution), (
            f"The map at {where} holds NaN or infinity, so it is drawn empty: look at the "
            "weights and at the values of the input.",
        )
    positive = np.maximum(attribution, 0)
    if not positive.any():
        why = "is zero" if not attribution.any() else "speaks against the target"
        return np.zeros_like(positive), (
            f"The map at {where} is empty: the evidence {why} everywhere. Try another target or "
            "an earlier layer.",
        )
    return positive / positive.max(), ()


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
        "engine": "native",
        "preprocessing": "given as a batch" if preprocess is None else described,
        "seed": seed,
        "seconds": round(seconds, 4),
    }

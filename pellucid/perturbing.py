"""From a perturbation method's finding to an explanation on the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Adapter, Array
from pellucid.errors import InputError, MethodError
from pellucid.images import Prepared, Preprocess, resize_map
from pellucid.methods.objective import Objective
from pellucid.methods.perturbation.details import Finding
from pellucid.methods.perturbation.lime import lime_of_package
from pellucid.methods.perturbation.subject import Source, Subject
from pellucid.methods.progress import progress_bar
from pellucid.methods.registry import Method

__all__ = ["COMMON", "Asking", "asked", "region_fields"]

COMMON = ("memory", "progress")
_LIKE = {"lime": lime_of_package}


@dataclass(frozen=True)
class Asking:
    """How a perturbation method is run.

    Attributes
    ----------
    method, like, options, seed : as `explain` takes them.
    memory : bytes for copies and activations; None: what suits the engine.
    progress : whether, or where, progress is shown.
    """

    method: Method
    like: str | None
    options: Mapping[str, Any]
    seed: int
    memory: int | None = None
    progress: bool | TextIO | None = None

    @classmethod
    def of(cls, method: Method, like: str | None, options: Mapping[str, Any], seed: int) -> Asking:
        """Check the options.

        Raises
        ------
        MethodError : an option is unknown.
        """
        function = _LIKE.get(like or "", method.function)
        known = Method(method.name, function)
        _check_home(method, known, like, options)
        keywords = {**method.like[like or "paper"], **known.checked(options, COMMON)}
        common = {name: options[name] for name in COMMON if name in options}
        return cls(known, like, keywords, seed, **common)

    @property
    def total(self) -> int | None:
        """How many predictions there will be, if that is known."""
        options = {**self.method.parameters, **self.options}
        return options.get("num_samples") or options.get("budget")


def _check_home(
    method: Method, known: Method, like: str | None, options: Mapping[str, Any]
) -> None:
    """Say where an option belongs that another way to the same method has."""
    for name in options.keys() - known.parameters.keys():
        if name in method.parameters:
            raise MethodError(f"like={like!r} has no option {name!r}: leave one of them out.")
        for library in method.like.keys() & _LIKE.keys():
            if name in Method(method.name, _LIKE[library]).parameters:
                raise MethodError(f"{method.name} has {name!r} with like={library!r} alone.")


def asked(
    adapter: Adapter, prepared: Prepared, objective: Objective, index: int, asking: Asking
) -> tuple[Finding, bool]:
    """Ask the network about one image of a batch.

    Returns
    -------
    finding : what the method found.
    interrupted : whether Ctrl-C ended it.

    Raises
    ------
    KeyboardInterrupt : before there was anything to find.
    """
    title, total = asking.method.name, asking.total
    advice = "Ctrl-C keeps what is done"
    with progress_bar(asking.progress, title, total, advice=advice) as bar:
        subject = Subject(
            adapter,
            prepared.batch,
            objective,
            index,
            picture=_picture(adapter, prepared, index),
            given=_given(adapter, prepared, index),
            source=_source(adapter, prepared, index),
            seed=asking.seed,
            memory=asking.memory,
            bar=bar,
        )
        finding: Finding = asking.method.function(subject, **asking.options)
        facts = {**(finding.facts or {}), **({"reused": subject.reused} if subject.reused else {})}
        counted = replace(finding, predictions=subject.predictions, facts=facts)
        return counted, subject.interrupted


def region_fields(
    finding: Finding, prepared: Prepared, index: int, interrupted: bool
) -> dict[str, Any]:
    """Return what a `RegionExplanation` takes from a finding, on the picture's grid."""
    notes = finding.notes
    if interrupted:
        notes = (
            *notes,
            f"Interrupted after {finding.predictions} predictions: what was done is kept.",
        )
    if finding.settled is False and not interrupted:
        notes = (
            *notes,
            "The ranking is not settled: a larger budget= would make it surer.",
        )
    picture = prepared.pictures[index]
    labels = finding.segments
    if labels is None or finding.weights is None:
        heat = _scaled(finding.attribution, finding.signed)
        spatial = prepared.batch[0].shape[2:]
        if heat.shape != spatial:
            heat = resize_map(heat, spatial)
        drawn = heat if picture is None else prepared.to_image(heat, index)
    else:
        labels = _on_picture(labels, prepared, index)
        heat = _scaled(np.asarray(finding.weights, np.float32), finding.signed)
        drawn = np.where(labels >= 0, heat[labels], np.float32(0))
    heatmap = (1 + drawn) / 2 if finding.signed else drawn
    numbers = (
        "weights", "standard_errors", "intercept", "r2", "local_prediction", "rank_stability",
        "certainty", "settled", "predictions",
    )  # fmt: skip
    return {
        "attribution": finding.attribution,
        "heatmap": np.clip(heatmap, 0, 1).astype(np.float32),
        "image": picture,
        "notes": notes,
        "signed": finding.signed,
        "segments": labels,
        "facts": dict(finding.facts or {}),
        **{name: getattr(finding, name) for name in numbers},
    }


def _scaled(values: Array, signed: bool) -> Array:
    """Scale to [-1, 1] by the largest magnitude, or to [0, 1] from the smallest to the largest.

    In signed maps over pixels a few far above all others would leave the rest pale, so that the
    scale there is the 99.5th percentile.
    """
    if not signed:
        low, high = float(values.min()), float(values.max())
        return np.asarray((values - low) / ((high - low) or 1), np.float32)
    size = np.abs(values)
    largest = float(size.max() if values.ndim < 2 else np.percentile(size, 99.5) or size.max())
    return np.asarray(np.clip(values / (largest or 1), -1, 1), np.float32)


def _on_picture(labels: NDArray[np.int32], prepared: Prepared, index: int) -> NDArray[np.int32]:
    """Carry superpixels from the network's grid onto the picture's; -1 where it does not look.

    The picture's pixels learn their place on the network's grid from the maps of its rows and
    columns, which are linear, so that the interpolation gives them exactly.
    """
    picture = prepared.pictures[index]
    if picture is None or labels.shape == picture.shape[:2]:
        return labels
    places = np.indices(labels.shape, np.float32) + 1  # 0 is left for what is not looked at
    rows, columns = (np.rint(prepared.to_image(place, index)).astype(int) - 1 for place in places)
    carried = labels[np.maximum(rows, 0), np.maximum(columns, 0)]
    return np.where((rows < 0) | (columns < 0), -1, carried).astype(np.int32)


def _picture(adapter: Adapter, prepared: Prepared, index: int) -> NDArray[Any]:
    """Return what superpixels are cut from, on the network's grid, `(*spatial, C)`."""
    sample = prepared.batch[0][index]
    own = None if prepared.preprocess is None else prepared.preprocess.picture(sample)
    if own is not None:
        return own
    shown = prepared.pictures[index]
    if shown is not None and shown.shape[:2] == sample.shape[1:]:
        return shown
    low, high = float(sample.min()), float(sample.max())
    scaled = (np.moveaxis(sample, 0, -1) - low) / ((high - low) or 1)
    return np.asarray(scaled, np.float32)


def _source(adapter: Adapter, prepared: Prepared, index: int) -> Source | None:
    """Return the picture as the caller gave it, for methods that perturb that."""
    sample, shown = prepared.batch[0][index], prepared.pictures[index]
    preprocess = prepared.preprocess
    if preprocess is None:
        if sample.ndim != 3:
            return None
        picture: NDArray[Any] = np.moveaxis(sample, 0, -1)
        if adapter.framework == "function" and shown is not None and _is_uint8(picture):
            picture = picture.astype(np.uint8)
        return Source(picture, lambda p: np.moveaxis(np.asarray(p, np.float32), -1, 0), True)
    if shown is None:
        return None
    same = shown.shape[:2] == sample.shape[1:] and isinstance(preprocess, Preprocess)
    pixelwise = same and preprocess.fit != "crop" if isinstance(preprocess, Preprocess) else False
    return Source(shown, preprocess, bool(pixelwise))


def _is_uint8(picture: NDArray[Any]) -> bool:
    return bool((picture == np.rint(picture)).all() and picture.min() >= 0 and picture.max() <= 255)


def _given(adapter: Adapter, prepared: Prepared, index: int) -> Callable[[Any], Array]:
    """Return the function that makes an input of a colour or of another image."""
    sample = prepared.batch[0][index]

    def colour(values: NDArray[Any]) -> Array:
        column = np.asarray(values, np.float32).reshape(-1, *[1] * (sample.ndim - 1))
        picture = prepared.pictures[index]
        if prepared.preprocess is not None and picture is not None:
            flat = np.full(picture.shape, column.ravel(), np.float32)
            return np.asarray(prepared.preprocess(flat), np.float32)
        if len(column) not in (1, len(sample)):
            raise MethodError(
                f"replacement= has {len(column)} values, the image {len(sample)} channels."
            )
        return np.broadcast_to(column, sample.shape).astype(np.float32)

    def made(given: Any) -> Array:
        if np.ndim(given) <= 1 and not isinstance(given, str) and not hasattr(given, "read"):
            try:
                return colour(np.asarray(given, np.float32))
            except (TypeError, ValueError):
                pass  # a path or a picture
        try:
            other = adapter.prepare(given).batch[0][0]
        except InputError as error:
            raise MethodError(f"replacement= is no image for this model: {error}") from error
        if other.shape != sample.shape:
            raise MethodError(
                f"replacement= is an image of shape {other.shape}, the explained one of "
                f"{sample.shape}, channels first."
            )
        return np.asarray(other, np.float32)

    return made

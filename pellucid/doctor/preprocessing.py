"""Finds out how pictures were preprocessed for a network whose code is lost.

A file says how a network computes and not what it was fed with. A few pictures of the kind it was
made for tell, since a trained network is at ease only with what it was trained on. Each likely
preprocessing is tried, and scored by the sum of

- **batch normalisation.** On its training data such a layer gives mean beta and deviation gamma in
  every channel. How far the first layers are from this, D, is the mean over channels of
  KL(N(mean, deviation) || N(beta, gamma)); where training is unlike these pictures, D is above
  zero for all ways alike, so the score is that of a residual of unknown size, -4 log(D + 0.02).
- **what the predictions tell of the pictures**: the mutual information of picture and class,
  H(mean p) - mean H(p), and H(mean p): right preprocessing gives predictions that are both sure
  and different, wrong one often the same for all. Networks are also never sure by hundreds of
  logits, unless the input is a hundred times too large.
- **labels**, if there are any: their log-likelihood.
- **habit**: how common a preprocessing is.

The shares of the exponentiated scores are called probabilities; `benchmarks/preprocessing.py`
says how often they are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array, Port
from pellucid.doctor.candidates import Candidate, candidates, in_words, sizes, with_size
from pellucid.errors import InputError, PellucidError, nearest
from pellucid.images import read_image, resize_map

__all__ = ["PreprocessingGuess", "Trial", "guess_preprocessing"]

_MOST_IMAGES = 48
_CHUNK = 8
_NORMS = 4  # the first batch normalisations; deeper ones tell little more and cost memory
_DIVERGENCE = 4.0  # weight of log(D)
_FLOOR = 0.02  # of D, what a few pictures differ by anyway
_WORST = 20.0  # of D, so that one channel does not outweigh all others
_INFORMATION, _DIVERSITY = 8.0, 6.0
_SUREST = 20.0  # logits between the two best classes
_ERRORS = 0.02  # share of labels that are wrong
_SAME = 1e-4
_FEW = 12  # pictures for a first look at every way
_HOPELESS = 12.0  # nats behind the best after it
_UNLIKE = 0.5  # D above which no way fits well


@dataclass(frozen=True)
class Trial:
    """One preprocessing and what speaks for it.

    Attributes
    ----------
    preprocess : a spec as `pellucid.load(preprocess=)` takes it.
    described : the same in words.
    probability : share among all that were tried.
    score : sum of the evidence, in nats.
    divergence : how far the batch normalisations are from their training, in nats; None where
        there are none.
    information : mutual information of picture and class, as a share of the greatest possible;
        None where the outputs are no classes.
    margin : median distance of the two best classes, in logits.
    accuracy : share of right predictions, if labels were given.
    same : descriptions of other ways that give the same outputs.
    """

    preprocess: str | Mapping[str, Any]
    described: str
    probability: float
    score: float
    divergence: float | None = None
    information: float | None = None
    margin: float | None = None
    accuracy: float | None = None
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreprocessingGuess:
    """The preprocessing that a network was most likely trained with, and the runners-up.

    Attributes
    ----------
    trials : all ways that were tried, the likeliest first.
    images : number of pictures.
    evidence : what could be used: "batch normalisation", "predictions", "labels".
    size : for networks that take any size, (h, w) and the probability of it; else None.
    doubts : what makes the answer less sure than it looks.
    """

    trials: tuple[Trial, ...]
    images: int
    evidence: tuple[str, ...]
    size: tuple[tuple[int, int], float] | None = None
    doubts: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Trial:
        """The likeliest."""
        return self.trials[0]

    @property
    def certainty(self) -> str:
        """How sure it is, in words."""
        steps = ((0.95, "almost sure"), (0.75, "likely"), (0.5, "more likely than not"))
        share = self.best.probability
        return next((words for least, words in steps if share >= least), "unsure")

    @property
    def preprocess(self) -> str | Mapping[str, Any]:
        """The likeliest, to be given as `preprocess=`."""
        return self.best.preprocess


@dataclass
class _Observed:
    """What a network did with the pictures, preprocessed in one way."""

    candidate: Candidate
    logits: Array  # (samples, classes)
    classifies: bool  # one value without an activation is no class
    divergence: float | None = None
    same: list[str] = field(default_factory=list)


def guess_preprocessing(
    model: Adapter, images: Sequence[Any], truth: Sequence[int | str] | None = None
) -> PreprocessingGuess:
    """Say which preprocessing a network was most likely trained with.

    Parameters
    ----------
    model : any adapter, as `pellucid.load` gives it.
    images : pictures of the kind that the network is for: paths, PIL images or arrays; about
        twenty, of different classes, are enough. More than 48 are thinned out.
    truth : their classes, if known: indices, names among `model.labels`, or names whose sorted
        order is that of the outputs.

    Returns
    -------
    PreprocessingGuess

    Raises
    ------
    InputError : the model takes no single picture, there are too few images, or `truth` does not
        fit the model's outputs.
    ImageError : an image cannot be read.

    Examples
    --------
    >>> guess = guess_preprocessing(load("model.h5"), photographs)  # doctest: +SKIP
    >>> model = load("model.h5", preprocess=guess.preprocess)  # doctest: +SKIP
    """
    port = _picture_port(model)
    pictures = [read_image(image) for image in images]
    classes = None if truth is None else _indices(model, truth, len(pictures))
    chosen = _thinned(len(pictures), classes)
    pictures = [pictures[index] for index in chosen]
    classes = None if classes is None else classes[chosen]
    ways = candidates(port, scaled_inside=model.scales_input)
    network = _Network(model, port, pictures, classes)
    start = _own_size(pictures) if None in port.shape[2:] else None
    rough = network.ranked([with_size(way, start) for way in ways] if start else ways, few=True)
    hopeful = [one.candidate for one, score, _ in rough if score > rough[0][1] - _HOPELESS]
    size: tuple[tuple[int, int], float] | None = None
    if start is not None:
        tried = [with_size(hopeful[0], side) for side in sizes(port, pictures)]
        first, _, share = network.ranked(tried, few=True)[0]
        size = (first.candidate.preprocess.size or start, share)
        hopeful = [with_size(way, size[0]) for way in hopeful]
    best = _ranked(_merged(network.observed(hopeful)), classes)
    # The others stay as far behind as they were, which makes no difference to the shares.
    ranked = best + [
        (one, score - rough[0][1] + best[0][1], 0.0) for one, score, _ in rough[len(hopeful) :]
    ]
    trials = tuple(_trial(one, score, share, classes) for one, score, share in ranked)
    return PreprocessingGuess(
        trials, len(pictures), _evidence(ranked[0][0], classes), size,
        tuple(_doubts(trials, len(pictures))),
    )  # fmt: skip


# ---- what is given ---------------------------------------------------------------------------


def _picture_port(model: Adapter) -> Port:
    ports = model.inputs
    if len(ports) != 1 or len(ports[0].shape) != 4 or ports[0].shape[1] not in (None, 1, 3):
        shapes = " and ".join(str(port.own_shape) for port in ports)
        raise InputError(
            f"The preprocessing of a model can be found where it takes one picture with 1 or 3 "
            f"channels; this one takes {shapes}."
        )
    return ports[0]


def _indices(model: Adapter, truth: Sequence[int | str], count: int) -> np.ndarray[Any, Any]:
    if len(truth) != count:
        raise InputError(f"There are {count} images and {len(truth)} labels: give one for each.")
    port = model.outputs[0]
    width = port.shape[port.class_axis] if len(port.shape) > 1 else None
    if all(isinstance(label, int | np.integer) for label in truth):
        found = [int(label) for label in truth]
    else:
        names = [str(label) for label in truth]
        unique = sorted(set(names))
        known = {name.casefold(): i for i, name in enumerate(model.labels or ())}
        if all(name.casefold() in known for name in names):
            found = [known[name.casefold()] for name in names]
        elif all(name.isdecimal() for name in names):
            found = [int(name) for name in names]
        elif model.labels is None and len(unique) in {width, 2 if width == 1 else width}:
            found = [unique.index(name) for name in names]
        elif model.labels is not None:
            missing = next(name for name in unique if name.casefold() not in known)
            raise InputError(
                f"The model has no class {missing!r}. {nearest(missing, model.labels)}"
            )
        else:
            raise InputError(
                f"The images are of {len(unique)} classes, {', '.join(unique[:4])}, and the model "
                f"has {width} outputs: give the names of all its classes in their order as "
                "labels=."
            )
    if width is not None and (min(found) < 0 or max(found) >= max(width, 2)):
        raise InputError(f"Class {max(found)} is beyond the model's {width} outputs.")
    return np.array(found)


def _thinned(count: int, classes: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Choose at most 48 images, evenly over the classes, or else over their order."""
    if count < 2:
        raise InputError(f"{count} images tell nothing: give at least 2, better 20.")
    if count <= _MOST_IMAGES:
        return np.arange(count)
    order = np.arange(count)
    if classes is not None:  # the first of each class, then the second of each, ...
        turn = np.array([np.sum(classes[:i] == classes[i]) for i in range(count)])
        return np.sort(np.lexsort((order, turn))[:_MOST_IMAGES])
    return np.linspace(0, count - 1, _MOST_IMAGES).round().astype(int)


def _own_size(pictures: Sequence[Any]) -> tuple[int, int]:
    shapes = {picture.shape[:2] for picture in pictures}
    (height, width), *others = shapes
    return (height, width) if not others and max(height, width) <= 384 else (224, 224)


# ---- what the network does -------------------------------------------------------------------


class _Network:
    """A network and the pictures it is tried with."""

    def __init__(
        self, model: Adapter, port: Port, pictures: Sequence[Any], classes: Any | None
    ) -> None:
        self.model, self.port, self.pictures, self.classes = model, port, pictures, classes
        self.few = np.linspace(0, len(pictures) - 1, min(_FEW, len(pictures))).round().astype(int)
        self.moments = model.moments
        self.norms = [layer for layer in model.layers if layer.name in self.moments][:_NORMS]
        self._resized: tuple[Any, list[Array]] = (None, [])
        self._known: dict[tuple[Any, ...], _Observed] = {}

    def ranked(
        self, ways: Sequence[Candidate], *, few: bool
    ) -> list[tuple[_Observed, float, float]]:
        """Try some ways, the likeliest first; `few` takes a part of the pictures."""
        classes = self.classes
        if few and classes is not None:
            classes = classes[self.few]
        return _ranked(self.observed(ways, few=few), classes)

    def observed(self, ways: Sequence[Candidate], *, few: bool = False) -> list[_Observed]:
        """Try some ways; those that the network cannot run with are left out."""
        found, reason = [], ""
        chosen = self.few if few else np.arange(len(self.pictures))
        for way in ways:
            key = (len(chosen), way.preprocess)
            try:
                if key not in self._known:
                    self._known[key] = self._observed(way, chosen)
                found.append(replace(self._known[key], candidate=way))
            except PellucidError as error:  # a size that this network does not take
                reason = str(error)
        if not found:
            raise InputError(f"The model runs with none of the ways to preprocess: {reason}")
        return found

    def _at(self, size: tuple[int, int] | None) -> Sequence[Array]:
        """Return the pictures resized: that commutes with everything else that is tried."""
        if size is None:
            return self.pictures
        if self._resized[0] != size:
            resized = [resize_map(p, (*size, p.shape[-1])) for p in self.pictures]
            self._resized = (size, resized)
        return self._resized[1]

    def _observed(self, way: Candidate, chosen: Any) -> _Observed:
        output = self.model.outputs[0]
        pictures = self._at(way.preprocess.size)
        totals = {layer.name: np.zeros((3, len(self.moments[layer.name][0])))
                  for layer in self.norms}  # fmt: skip
        logits = []
        for start in range(0, len(chosen), _CHUNK):
            part = [pictures[index] for index in chosen[start : start + _CHUNK]]
            batch = np.stack([way.preprocess(picture) for picture in part])
            values = self.model.run(batch, [output.logits, *totals])
            last = output.class_axis if output.shape[1:] else 0
            scores = np.moveaxis(values[output.logits], last, -1)
            logits.append(scores.reshape(-1, scores.shape[-1]))
            for layer in self.norms:
                value, total = values[layer.name], totals[layer.name]
                channel = value.ndim - 1 if layer.layout == "tokens" else 1
                if value.shape[channel] != total.shape[1]:
                    continue
                others = tuple(axis for axis in range(value.ndim) if axis != channel)
                total[0] += value.size / total.shape[1]
                total[1] += value.sum(others, dtype=np.float64)
                total[2] += np.square(value).sum(others, dtype=np.float64)
        parts = [_divergence(totals[name], *self.moments[name]) for name in totals]
        known = [part for part in parts if np.isfinite(part)]
        divergence = float(np.mean(known)) if known else None
        joined = np.nan_to_num(np.concatenate(logits), posinf=1e30, neginf=-1e30)
        classifies = joined.shape[1] > 1 or output.activation is not None
        return _Observed(way, joined, classifies, divergence)


def _divergence(total: Any, beta: Array, gamma: Array) -> float:
    """Return the mean KL(N(mean, deviation) || N(beta, gamma)) over the channels."""
    used = (gamma > 0.05 * np.median(gamma)) & (gamma > 0) & (total[0] > 0)
    if not used.any():
        return float("nan")
    count, first, second = total[:, used]
    mean = first / count
    variance = np.maximum(second / count - mean**2, 0)
    ratio = np.maximum(variance / gamma[used] ** 2, 1e-6)
    shift = (mean - beta[used]) / gamma[used]
    divergence = 0.5 * (ratio + shift**2 - 1 - np.log(ratio))
    return float(np.minimum(divergence, _WORST).mean())


def _merged(observed: Sequence[_Observed]) -> list[_Observed]:
    """Keep one of several ways that the network does not tell apart, the commonest."""
    kept: list[_Observed] = []
    for one in sorted(observed, key=lambda o: -o.candidate.habit):
        scale = max(float(np.abs(one.logits).max()), 1e-6)
        for other in kept:
            if np.abs(one.logits - other.logits).max() <= _SAME * scale:
                other.same.append(in_words(one.candidate.preprocess))
                break
        else:
            kept.append(replace(one, same=[]))
    return kept


# ---- what it tells ---------------------------------------------------------------------------


def _ranked(
    observed: Sequence[_Observed], classes: np.ndarray[Any, Any] | None
) -> list[tuple[_Observed, float, float]]:
    """Return each with its score and its probability, the likeliest first."""
    scores = np.array([_score(one, classes) for one in observed])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    order = np.argsort(-scores, kind="stable")
    return [(observed[i], float(scores[i]), float(shares[i])) for i in order]


def _score(one: _Observed, classes: np.ndarray[Any, Any] | None) -> float:
    score = one.candidate.habit
    if one.divergence is not None:
        score -= _DIVERGENCE * np.log(one.divergence + _FLOOR)
    if one.classifies:
        information, diversity, margin = _told(one.logits)
        score += _INFORMATION * information + _DIVERSITY * diversity
        score -= max(0.0, np.log(max(margin, 1e-9) / _SUREST))
    if classes is not None and len(one.logits) == len(classes):
        share = _probabilities(one.logits)[np.arange(len(classes)), classes]
        score += np.log((1 - _ERRORS) * share + _ERRORS / max(one.logits.shape[1], 2)).sum()
    return float(score)


def _probabilities(logits: Array) -> Array:
    """Return (samples, classes); one output is the logit of the second of two classes."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(1, keepdims=True)
    return probabilities


def _told(logits: Array) -> tuple[float, float, float]:
    """Return mutual information and entropy of the mean, as shares, and the median margin."""
    p = _probabilities(logits)
    greatest = np.log(min(p.shape))
    diversity = float(_entropy(p.mean(0)) / greatest)
    information = float(diversity - np.mean([_entropy(row) for row in p]) / greatest)
    if logits.shape[1] == 1:
        return information, diversity, float(np.median(np.abs(logits)))
    best = np.sort(logits, axis=1)
    return information, diversity, float(np.median(best[:, -1] - best[:, -2]))


def _entropy(p: Array) -> float:
    return float(-(p * np.log(np.maximum(p, 1e-12))).sum())


def _trial(
    one: _Observed, score: float, share: float, classes: np.ndarray[Any, Any] | None
) -> Trial:
    told = _told(one.logits) if one.classifies else (None, None, None)
    accuracy = None
    if classes is not None and len(one.logits) == len(classes):
        accuracy = float((_probabilities(one.logits).argmax(1) == classes).mean())
    spec = one.candidate.spec
    return Trial(
        spec, in_words(one.candidate.preprocess), share, score, one.divergence, told[0],
        told[2], accuracy, tuple(one.same),
    )  # fmt: skip


def _evidence(one: _Observed, classes: np.ndarray[Any, Any] | None) -> tuple[str, ...]:
    used = ["batch normalisation"] if one.divergence is not None else []
    used += ["predictions"] if one.classifies else []
    return (*used, "labels") if classes is not None else tuple(used)


def _doubts(trials: Sequence[Trial], images: int) -> Iterator[str]:
    best = trials[0]
    if images < 8:
        yield f"{images} images are few: give about twenty, of different classes"
    if best.divergence is not None and best.divergence > _UNLIKE:
        yield (
            "no way fits the statistics of the first layers well: these pictures are unlike those "
            "of the training, or its preprocessing was none of these"
        )
    if best.divergence is None and best.accuracy is None:
        yield (
            "there is neither batch normalisation nor a label to go by, only how the predictions "
            "behave; with labels the answer is much surer"
        )

"""One image, and the network that is asked about perturbed copies of it.

A *code* says how one copy differs from the image: which superpixels stay, where a window lies.
A `Composer` turns codes into copies in one vectorised pass. Composing inside an ONNX graph was
measured too (bitwise equal, 3 to 4 % of the time), and is not worth a second path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Adapter, Array
from pellucid.errors import MethodError
from pellucid.methods.batching import prediction_rows
from pellucid.methods.objective import Objective
from pellucid.methods.perturbation.composing import Codes, Composer, HiddenSegments, digest
from pellucid.methods.perturbation.details import Labels, Numbers
from pellucid.methods.perturbation.replacement import replacement
from pellucid.methods.perturbation.segments import segmented
from pellucid.methods.progress import Bar, no_bar

__all__ = ["Source", "Subject", "forget"]

# Copies are made, and answers read, for so many rows, or so many bytes, at a time: right behind a
# prediction the processor's caches are the network's, and every small step is ten times as slow.
_GATHERED = 256
_GATHERED_BYTES = 2**20
_KEPT_ROW = 4096  # numbers in a prediction that is kept
_KEPT_CODE = 64  # bytes of a code that is kept as it is
_KEPT = 64 * 2**20  # bytes of predictions that are kept for each image
_STORES = 4  # images, or ways to perturb one, whose predictions are kept for each model

_SEGMENTATIONS = 16  # that are kept

Answers = dict[bytes, tuple[Array, ...]]
_segments: OrderedDict[bytes, Labels] = OrderedDict()
_answers: WeakKeyDictionary[Adapter, OrderedDict[bytes, Answers]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Source:
    """The picture that an input was made of.

    Attributes
    ----------
    picture : `(H, W, C)`, uint8 or as the user gave it.
    prepare : from such a picture to the network's input, `(C, h, w)`.
    pixelwise : whether every pixel of the input follows from the one at its place.
    """

    picture: NDArray[Any]
    prepare: Callable[[NDArray[Any]], Array]
    pixelwise: bool


def forget() -> None:
    """Drop the predictions and superpixels that are kept for the next question."""
    _answers.clear()
    _segments.clear()


class Subject:
    """An image whose perturbed copies a network scores.

    Parameters
    ----------
    model : the network.
    x : the batch, one array per input; the first input is perturbed.
    objective : the score, settled on the batch.
    index : which image of the batch.
    picture : what is cut into superpixels, `(*spatial, C)`: uint8, or floats in [0, 1].
    given : makes an input, `(C, *spatial)`, of a colour or another image.
    source : the picture that the input was made of, or None.
    seed : governs all randomness.
    memory : bytes that copies and the network's activations may take together; None: what suits
        the engine.
    bar : where progress is shown.

    Attributes
    ----------
    predictions : how many were used, the image's own included.
    reused : how many of them were known from before.
    interrupted : whether Ctrl-C cut the questions short.
    """

    def __init__(
        self,
        model: Adapter,
        x: tuple[Array, ...],
        objective: Objective,
        index: int = 0,
        *,
        picture: NDArray[Any],
        given: Callable[[Any], Array],
        source: Source | None = None,
        seed: int = 0,
        memory: int | None = None,
        bar: Bar = no_bar,
    ) -> None:
        self.model, self.objective, self.index, self.bar = model, objective, index, bar
        self.picture, self.given, self.source, self.seed = picture, given, source, seed
        self.inputs = tuple(array[index : index + 1] for array in x)
        self.image: Array = self.inputs[0][0]
        self.score = float(objective.scores[index])
        if not np.isfinite(self.score):
            raise MethodError(
                f"The score of the image itself is {self.score}: does the network return finite "
                "values, and is the preprocessing right?"
            )
        self.rows = prediction_rows(model, self.inputs[0], memory)
        self.predictions, self.reused = 1, 0
        self.interrupted = False

    @property
    def spatial(self) -> tuple[int, ...]:
        """Extent of the image, without the channels."""
        return self.image.shape[1:]

    @cached_property
    def _own(self) -> bytes:
        """Digest of the images and of what the network says of them.

        A network whose weights have changed since then says something else, so what it said
        before is not taken for its answer.
        """
        own = blake2b(digest_size=16)
        for array in self.inputs:
            own.update(np.ascontiguousarray(array).data)
        for name in self.objective.fetch:
            own.update(name.encode())
            own.update(np.ascontiguousarray(self.objective.logits[name][self.index]).data)
        return own.digest()

    # ---- parts -------------------------------------------------------------------------------

    def hidden_segments(
        self, how: Any, count: int, options: Mapping[str, Any] | None, instead: Any
    ) -> tuple[Labels, HiddenSegments]:
        """Cut the image into superpixels, and make what hides them."""
        labels = self.segmented(self.picture, how, count, options)
        shown = replacement(self.image, instead, labels, self.seed, self.given)
        return labels, HiddenSegments(self.image, shown, labels)

    def segmented(
        self, picture: NDArray[Any], how: Any, count: int, options: Mapping[str, Any] | None
    ) -> Labels:
        """Cut a picture into superpixels; done once for a picture."""
        if not isinstance(how, str):
            return segmented(picture, how, count, options)
        key = digest(picture) + repr((how, count, sorted((options or {}).items()))).encode()
        if key not in _segments:
            _segments[key] = segmented(picture, how, count, options)
            if len(_segments) > _SEGMENTATIONS:
                _segments.popitem(last=False)
        _segments.move_to_end(key)
        return _segments[key]

    def hidden_by(self, instead: Any) -> Array:
        """Make what hides parts of the image that are no superpixels."""
        return replacement(self.image, instead, None, self.seed, self.given)

    # ---- questions ---------------------------------------------------------------------------

    def scores(self, codes: Codes, compose: Composer) -> Numbers:
        """Ask the network for the scores of perturbed copies.

        Parameters
        ----------
        codes : `(n, ...)`, one for each copy.
        compose : makes copies of codes.

        Returns
        -------
        scores : `(n,)`; fewer, those of the first codes, if Ctrl-C cut it short, which
            `interrupted` then says. What was asked before is not asked again.

        Raises
        ------
        MethodError : a score is NaN or infinite.
        KeyboardInterrupt : Ctrl-C a second time.
        """
        answers = self._store(compose.key)
        keys = _keys(codes)
        found: Numbers = np.full(len(codes), np.nan)
        new: list[int] = []
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in answers and first.setdefault(key, index) == index:
                new.append(index)
        known = [index for index, key in enumerate(keys) if key in answers]
        if known:
            parts = [answers[keys[index]] for index in known]
            stacked = [np.stack(column) for column in zip(*parts, strict=True)]
            found[known] = self._scored(dict(zip(self.objective.fetch, stacked, strict=True)))
        with self._until_interrupted():
            for some, values in _gathered(self._asked(codes, new, compose)):
                found[some] = self._scored(values)
                self._remember(answers, [keys[index] for index in some], values)
        for again in np.flatnonzero(np.isnan(found)):  # copies of copies asked in this very call
            found[again] = found[first[keys[again]]]
        missing = np.isnan(found)
        answered = found[: missing.argmax()] if missing.any() else found
        self.predictions += len(answered)
        self.reused += len(known)
        return answered

    def copies(self, codes: Codes, compose: Composer) -> Array:
        """Make perturbed copies without asking about them."""
        copies = self._buffer(len(codes))
        compose(codes, copies)
        return copies

    def _asked(
        self, codes: Codes, indices: list[int], compose: Composer
    ) -> Iterator[tuple[list[int], Mapping[str, Array]]]:
        together = min(_GATHERED, _GATHERED_BYTES // self.image.nbytes) // self.rows
        made = max(1, together) * self.rows
        copies = self._buffer(min(made, len(indices)))
        for start in range(0, len(indices), self.rows):
            some, first = indices[start : start + self.rows], start % made
            if first == 0:
                block = indices[start : start + made]
                compose(codes[block], copies[: len(block)])
            batch = copies[first : first + len(some)]
            others = [np.repeat(array, len(some), axis=0) for array in self.inputs[1:]]
            values = self.model.run([batch, *others], self.objective.fetch)
            self.bar(len(some))
            yield some, values

    def _buffer(self, count: int) -> Array:
        """Make room for copies, `(n, C, *spatial)`, laid out in memory as the model takes it."""
        port = self.model.inputs[0]
        shape = (count, *self.image.shape)
        if len(port.to_own) != len(shape):
            return np.empty(shape, np.float32)
        own = np.empty([shape[axis] for axis in port.to_own], np.float32)
        return port.channels_first(own)

    def _scored(self, values: Mapping[str, Array]) -> Numbers:
        scores = self.objective.variants(values, self.index).astype(np.float64)
        if bad := int((~np.isfinite(scores)).sum()):
            raise MethodError(
                f"The network returned NaN or infinity for {bad} of {len(scores)} perturbed "
                "images. Check its weights, or hide parts by another replacement=, such as "
                "'blur': a flat colour may be a division by zero to it."
            )
        return scores

    @contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        """Let Ctrl-C end the questions; what has been answered is kept."""
        try:
            yield
        except KeyboardInterrupt:
            if self.interrupted:
                raise
            self.interrupted = True

    # ---- memory ------------------------------------------------------------------------------

    def _store(self, key: bytes) -> Answers:
        stores = _answers.setdefault(self.model, OrderedDict())
        store = stores.setdefault(self._own + key, {})
        stores.move_to_end(self._own + key)
        while len(stores) > _STORES:
            stores.popitem(last=False)
        return store

    def _remember(self, answers: Answers, keys: list[bytes], values: Mapping[str, Array]) -> None:
        columns = [values[name] for name in self.objective.fetch]
        each = sum(column[0].size for column in columns)
        if each > _KEPT_ROW or 4 * each * len(answers) > _KEPT:
            return
        for key, *row in zip(keys, *columns, strict=True):
            answers[key] = tuple(row)


def _gathered(
    answered: Iterator[tuple[list[int], Mapping[str, Array]]],
) -> Iterator[tuple[list[int], Mapping[str, Array]]]:
    """Put the answers of several batches together, those before an error or Ctrl-C as well."""
    indices: list[int] = []
    parts: list[dict[str, Array]] = []

    def together() -> tuple[list[int], Mapping[str, Array]]:
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        some = indices.copy()
        indices.clear()
        parts.clear()
        return some, whole

    try:
        for some, values in answered:
            indices += some
            parts.append({name: np.array(array) for name, array in values.items()})
            each = sum(array[0].nbytes for array in parts[-1].values())
            if len(indices) >= _GATHERED or each * len(indices) >= _GATHERED_BYTES:
                yield together()
    finally:
        if parts:
            yield together()


def _keys(codes: Codes) -> list[bytes]:
    """Name codes by their bytes, or by a digest of those where they are many."""
    rows = codes.reshape(len(codes), -1)
    packed = np.packbits(rows, axis=1) if rows.dtype == np.bool_ else rows
    names = [row.tobytes() for row in packed]
    if packed[:1].nbytes <= _KEPT_CODE:
        return names
    return [blake2b(name, digest_size=16).digest() for name in names]

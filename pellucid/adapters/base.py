"""The one interface between networks and methods.

Everything that explains a network needs three things of it: its layers, the values of any of
them (`run`), and the way back from any of them (`pullback`). An adapter gives these for one
framework; a method is written once over them and never imports a framework.

Arrays that cross this interface are float32 NumPy with the batch first and the channels second,
`(N, C, *spatial)`; token layers are `(N, T, C)`, feature vectors `(N, C)`. Adapters turn them
to the framework's own layout and back by views.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InputError, LayerError, UnsupportedError, nearest

if TYPE_CHECKING:
    from pellucid.graph.biases import Bias
    from pellucid.graph.form import OnnxForm
    from pellucid.graph.layers import LayerGraph
    from pellucid.graph.survey import Survey
    from pellucid.images import Prepared, Preprocessing
from pellucid.labels import load_labels

__all__ = [
    "Adapter",
    "Array",
    "Batch",
    "Layer",
    "Layout",
    "Port",
    "Rectifier",
    "Seed",
    "fits",
    "installed",
    "misfit",
    "normalised_moments",
    "numbered",
]

Array = NDArray[np.float32]
Batch = Array | Sequence[Array] | Mapping[str, Array]
Rectifier = Literal[
    "exact", "guided", "deconv",
    "deeplift", "lrp-epsilon", "lrp-gamma", "lrp-z-plus", "lrp-composite",
]  # fmt: skip
Layout = Literal["spatial", "tokens", "features"]
Seed = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def normalised_moments(
    variance: Any, epsilon: float, gamma: Any = None, beta: Any = None
) -> tuple[Array, Array]:
    """Return mean and deviation of what a batch normalisation gives on its training data."""
    spread = np.asarray(variance, np.float64)
    scale = np.ones_like(spread) if gamma is None else np.abs(np.asarray(gamma, np.float64))
    mean = np.zeros_like(spread) if beta is None else np.asarray(beta, np.float64)
    deviation = scale * np.sqrt(spread / (spread + epsilon))
    return mean.astype(np.float32), deviation.astype(np.float32)


def numbered(name: str, index: int) -> str:
    """Name number `index` of several: `pool`, `pool:1`, `pool:2`."""
    return f"{name}:{index}" if index else name


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of one layer, as the framework names it.

    Attributes
    ----------
    name : the framework's own name; later calls of a reused layer are `pool:1`, `pool:2`, and
        layers of nested models are `inner/conv` in Keras, `block.conv` in PyTorch.
    kind : the shared vocabulary of `pellucid.graph.kinds` ("Conv2D", "ReLU", ...).
    shape : shape of the output, channels first, `None` for the batch.
    layout : what the axes mean: `(N, C, *spatial)`, `(N, T, C)` or `(N, C)`.
    framework_class : the class as the framework names it.
    container : whether it only holds other layers of this list.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]
    layout: Layout
    framework_class: str = ""
    container: bool = False

    @property
    def grid(self) -> tuple[int | None, ...]:
        """Spatial extent, `()` for layers without one."""
        return self.shape[2:] if self.layout == "spatial" else ()


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of the network.

    Attributes
    ----------
    name : `input`, `input:1`, ... or `output`, `output:1`, ...
    shape : channels first, `None` where any size fits.
    own_name : the framework's name for it.
    to_own : permutation of axes from channels first to the model's own layout.
    activation : for outputs, the final activation: "softmax", "sigmoid", "log_softmax" or None.
    dtype : NumPy name of the element type that the model takes or gives.
    layout : what the axes mean, as for `Layer`.
    """

    name: str
    shape: tuple[int | None, ...]
    own_name: str = ""
    to_own: tuple[int, ...] = ()
    activation: str | None = None
    dtype: str = "float32"
    layout: Layout = "spatial"

    @property
    def class_axis(self) -> int:
        """Axis of the classes or channels: the second, or the last of a token output."""
        return len(self.shape) - 1 if self.layout == "tokens" else 1

    @property
    def logits(self) -> str:
        """Name under which the value before the final activation is fetched and seeded."""
        return self.name.replace("output", "logits", 1)

    @property
    def own_shape(self) -> tuple[int | None, ...]:
        """Shape in the model's own layout."""
        return tuple(self.shape[axis] for axis in self.to_own) if self.to_own else self.shape

    def own_layout(self, array: Array) -> Array:
        """View a channels-first array in the model's own layout."""
        return array.transpose(self.to_own) if len(self.to_own) == array.ndim else array

    def channels_first(self, array: Array) -> Array:
        """View an array in the model's own layout with the channels second."""
        if len(self.to_own) != array.ndim:
            return array
        return array.transpose(np.argsort(self.to_own))


class Adapter(ABC):
    """A network of any framework behind one interface.

    `input`, `input:1`, ..., `output`, `output:1`, ... and `logits`, `logits:1`, ... can be
    fetched, seeded and differentiated like any layer; `logits` is the output before its final
    softmax or sigmoid, or the output itself where there is none.

    Attributes
    ----------
    labels : class names, or None.
    preprocess : how images become a batch, or None for the adapter's own guess.
    source : where the model came from, for messages and provenance.
    notes : what its reader was not sure of; every explanation repeats it.
    knows_channels : whether the framework says which axis of a grid holds the channels.
    """

    framework: ClassVar[str]
    engine: ClassVar[Literal["native", "onnx"]] = "native"  # what computes
    notes: tuple[str, ...] = ()
    knows_channels: ClassVar[bool] = False
    fixed_batch: int | None = None  # the only batch size that the model takes, if it is so

    def __init__(self, *, labels: Any = None, preprocess: Any = None, source: str = "") -> None:
        self.labels = load_labels(labels)
        self.preprocess = preprocess
        self.source = source
        self._form: tuple[tuple[str, ...], OnnxForm | str] | None = None  # or why there is none
        self._graph: tuple[OnnxForm, LayerGraph] | None = None
        self._needs_repeats: set[str] = set()  # layers around which a row is not repeated by itself
        self._survey: tuple[OnnxForm, Survey] | None = None
        self._form_tensors: tuple[OnnxForm, dict[str, tuple[str, tuple[int, ...]]]] | None = None

    # ---- what an adapter gives ---------------------------------------------------------------

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """All layer calls in the order in which they finish."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Port, ...]:
        """The network's inputs."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[Port, ...]:
        """The network's outputs."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of architecture and weights, as 64 hexadecimal digits."""

    @property
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute for this adapter."""

    @property
    def scales_input(self) -> bool:
        """Whether the model itself begins with rescaling or normalisation layers."""
        return False

    @property
    def moments(self) -> Mapping[str, tuple[Array, Array]]:
        """What batch normalisations tell of the training data: `{layer: (mean, deviation)}`.

        Such a layer divides by statistics of its own training: on the images that it was trained
        with, its output has mean beta and deviation gamma in every channel, `(C,)` each,
        whatever network stands before it. Other images, or the same ones preprocessed in another
        way, give others. Empty where there are no such layers.
        """
        return {}

    def biases(self) -> Sequence[Bias]:
        """What the network adds of its own, in the order of its graph.

        Constants in its sums, such as `beta - mean gamma / sqrt(variance + epsilon)` of batch
        normalisation, and what its non-linearities add to their linear part around an image. Their
        names can be differentiated like layers, and fetched beside the gradients.

        Raises
        ------
        UnsupportedError : the model's own framework computes, which does not tell.
        """
        raise UnsupportedError(
            "Biases are read from the ONNX form: explain the model with engine='onnx'."
        )

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; it is run in evaluation mode all the same."""
        return False

    @property
    def graph(self) -> LayerGraph:
        """The layer graph, read from the model's ONNX form.

        Raises
        ------
        UnsupportedError : the model has no ONNX form; the message says what stands in the way.
        """
        from pellucid.graph.reading import read_graph

        form = self.form
        if self._graph is None or self._graph[0] is not form:
            self._graph = (form, read_graph(form))
        return self._graph[1]

    @property
    def survey(self) -> Survey:
        """Where the values of every layer lie on the image, and what they see of it.

        Raises
        ------
        UnsupportedError : the model has no ONNX form.
        """
        from pellucid.graph.survey import Survey

        form = self.form
        if self._survey is None or self._survey[0] is not form:
            self._survey = (form, Survey(form))
        return self._survey[1]

    def in_form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return a layer's tensor in the ONNX form.

        Returns
        -------
        tensor, to_own : its name, and the permutation of axes from those of the fetched value
            to its own.

        Raises
        ------
        LayerError : there is no such layer.
        UnsupportedError : the model has no ONNX form.
        """
        form = self.form
        if self._form_tensors is None or self._form_tensors[0] is not form:
            named = {layer.name: (layer.tensor, layer.to_own) for layer in self.graph}
            named |= {call.name: (call.outputs[0], call.to_own) for call in form.calls}
            self._form_tensors = (form, named)
        if name not in self._form_tensors[1]:
            self.graph.layer(name)  # which says what is wrong with the name
        return self._form_tensors[1][name]

    @property
    def form(self) -> OnnxForm:
        """The model's ONNX form with every layer call marked; made once, then kept on disk.

        Raises
        ------
        UnsupportedError : the model has no ONNX form, which is found out once.
        """
        from pellucid.graph.cache import cached_form

        key = self.form_key
        if self._form is None or self._form[0] != key:
            try:
                self._form = (key, cached_form(key, self._export))
            except UnsupportedError as error:
                self._form = (key, str(error))
                raise
        if isinstance(found := self._form[1], str):
            raise UnsupportedError(found)
        return found

    @property
    def has_form(self) -> bool:
        """Whether the ONNX form is at hand, in memory or on disk."""
        from pellucid.graph.cache import is_at_hand

        key = self.form_key
        if self._form is not None and self._form[0] == key:
            return not isinstance(self._form[1], str)
        return is_at_hand(key)

    @property
    def form_key(self) -> tuple[str, ...]:
        """All that the ONNX form follows from."""
        versions = (f"{name} {version}" for name, version in self.versions.items())
        return (self.framework, self.fingerprint, *versions)

    def _export(self) -> OnnxForm:
        """Make the ONNX form."""
        raise UnsupportedError(f"Models of {self.framework} have no layer graph.")

    @abstractmethod
    def _run(
        self, x: tuple[Array, ...], fetch: tuple[str, ...], replace: Mapping[str, Array]
    ) -> dict[str, Array]: ...

    @abstractmethod
    def _pullback(
        self,
        x: tuple[Array, ...],
        seed: Seed,
        wrt: tuple[str, ...],
        fetch: tuple[str, ...],
        relu: Rectifier,
    ) -> tuple[dict[str, Array], dict[str, Array]]: ...

    # ---- what everyone calls -----------------------------------------------------------------

    def run(
        self,
        x: Batch,
        fetch: Iterable[str] = ("output",),
        replace: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Return the values of the named layers for a batch.

        Parameters
        ----------
        x : the batch, `(N, C, *spatial)`, or one such array per input.
        fetch : layer names.
        replace : `{layer name: array}`; the network goes on from these values in place of the
            layer's own. They have N rows; for a single image M rows, which are M variants of
            it: what comes before the layers is then computed once, not M times.

        Raises
        ------
        LayerError : a name is unknown.
        InputError : the batch does not fit the model's input, or an array does not fit its
            layer.
        """
        batch, names = self.batch(x), tuple(dict.fromkeys(fetch))
        replaced = {name: np.asarray(a, np.float32) for name, a in (replace or {}).items()}
        rows = _rows(len(batch[0]), replaced)
        if rows > len(batch[0]) and not self.fixed_batch:
            values = self._variants(batch, names, replaced, rows)
            if values is not None:
                return values
        if rows > len(batch[0]):
            batch = tuple(np.repeat(array, rows, axis=0) for array in batch)
        if not self.fixed_batch:
            return self._run(batch, names, replaced)
        parts = []
        for index, part in enumerate(self._parts(batch)):
            piece = slice(index * self.fixed_batch, (index + 1) * self.fixed_batch)
            own = {name: _padded(a[piece], self.fixed_batch) for name, a in replaced.items()}
            parts.append(self._run(part, names, own))
        return _joined(parts, rows)

    def _variants(
        self,
        batch: tuple[Array, ...],
        names: tuple[str, ...],
        replaced: dict[str, Array],
        rows: int,
    ) -> dict[str, Array] | None:
        """Run on one image with many variants of a layer, or return None where that fails.

        Paths around the layer then meet it with a single row. Sums and products repeat such a
        row, as they should; a concatenation refuses it, and a reshape by the row's own batch
        size would give another number of rows than there are variants.
        """
        if self._needs_repeats.intersection(replaced):
            return None
        try:
            values = self._run(batch, names, replaced)
        except InputError:
            values = {}
        if values and all(len(value) == rows for value in values.values()):
            return values
        self._needs_repeats.update(replaced)
        return None

    def pullback(
        self,
        x: Batch,
        seed: Seed,
        wrt: Iterable[str],
        fetch: Iterable[str] = ("logits",),
        relu: Rectifier = "exact",
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Carry a cotangent, given at any layers, back to any earlier layers.

        The forward pass runs once. `seed` receives the fetched values and returns the cotangent
        at some of them; the backward pass runs from exactly those to exactly `wrt`, never to
        the parameters.

        Parameters
        ----------
        x : the batch, `(N, C, *spatial)`, or one such array per input.
        seed : from `{name: value}` to `{name: cotangent}`, of the same shapes; its names are
            among `fetch`.
        wrt : names of the layers at which the gradient is wanted.
        fetch : names of the layers whose values `seed` needs.
        relu : rectifier rule. `"exact"`: the derivative. `"guided"`: negative cotangents are
            set to zero at every rectifier, then the derivative applies. `"deconv"`: negative
            cotangents are set to zero and the derivative is not applied. On the ONNX engine also
            the rules of `pellucid.graph.propagation`, for all operators.

        Returns
        -------
        values, gradients : `{name: array}` over `fetch` and over `wrt`. The gradient of a layer
            that the seeded ones do not depend on is zero.
        """
        if relu not in get_args(Rectifier):
            raise InputError(f"relu={relu!r} is no rule: {', '.join(get_args(Rectifier))}.")
        if relu not in ("exact", "guided", "deconv") and self.engine != "onnx":
            raise UnsupportedError(
                f"relu={relu!r} is a rule of the ONNX engine: explain the model with engine='onnx'."
            )
        batch = self.batch(x)
        wanted, names = tuple(dict.fromkeys(wrt)), tuple(dict.fromkeys(fetch))

        def checked(values: Mapping[str, Array]) -> Mapping[str, Array]:
            return _checked_cotangents(seed(values), values)

        if not self.fixed_batch:
            return self._pullback(batch, checked, wanted, names, relu)
        values = self.run(batch, names)
        cotangents = checked(values)
        parts: list[dict[str, Array]] = []
        for index, part in enumerate(self._parts(batch)):
            rows = slice(index * self.fixed_batch, (index + 1) * self.fixed_batch)
            piece = {n: _padded(c[rows], self.fixed_batch, 0) for n, c in cotangents.items()}
            parts.append(self._pullback(part, lambda _, p=piece: p, wanted, names, relu)[1])  # type: ignore[misc]
        return values, _joined(parts, len(batch[0]))

    def predict(self, images: Any) -> Any:
        """Return the outputs for images, in the model's own layout and order.

        Takes what `pellucid.explain` takes; one array, or a tuple for several outputs.
        """
        values = self.run(self.prepare(images).batch, [port.name for port in self.outputs])
        own = tuple(port.own_layout(values[port.name]) for port in self.outputs)
        return own[0] if len(own) == 1 else own

    def prepare(self, images: Any) -> Prepared:
        """Turn what a user holds into a batch: see `pellucid.images.prepare`."""
        from pellucid.images import prepare

        return prepare(images, self.inputs, self.preprocessing)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing in force: the caller's, or a guess that says it is one."""
        from pellucid.images import Preprocess

        pictures = [port for port in self.inputs if len(port.shape) == 4]
        return Preprocess.of(
            self.preprocess,
            (pictures or self.inputs)[0],
            scales_input=self.scales_input,
            framework=self.framework,
        )

    def layer(self, name: str) -> Layer:
        """Look a layer up by name.

        Raises
        ------
        LayerError : there is no such layer; the message offers the nearest names.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise self.unknown_layer(name)

    def unknown_layer(self, name: str) -> LayerError:
        """Build the error for a name that has no value in the forward pass."""
        known = [layer.name for layer in self.layers]
        stem, _, call = name.rpartition(":")
        calls = sum(n == stem or n.rpartition(":")[0] == stem for n in known)
        if calls and call.isdigit():
            times = "once" if calls == 1 else f"{calls} times"
            return LayerError(
                f"Layer {stem!r} is called {times} in the forward pass, so {name!r} has no value."
            )
        if around := self._around(name):
            return LayerError(
                f"{name!r} is an operation in the network's code and no layer, so its value cannot "
                f"be taken. The nearest that can be: {' or '.join(map(repr, around))}."
            )
        return LayerError(
            f"There is no layer {name!r} in this model. {nearest(name, known)} "
            "`pellucid layers MODEL` lists all of them."
        )

    def _around(self, name: str) -> list[str]:
        """Find the layers after and before one that only the graph names, if it is at hand."""
        try:
            at_hand = self._graph is not None or self.has_form
            if not at_hand or name not in self.graph:
                return []
        except UnsupportedError:
            return []
        known = {layer.name for layer in self.layers}
        found = []
        for step in ("outputs", "inputs"):
            waiting = [name]
            while waiting and not (near := [n for n in waiting if n in known]):
                waiting = [n for one in waiting for n in getattr(self.graph[one], step)]
            found += near[:1] if waiting else []
        return found

    def batch(self, x: Batch) -> tuple[Array, ...]:
        """Check a batch against the inputs and return one float32 array per input."""
        ports = self.inputs
        if isinstance(x, Mapping):
            names = {port.own_name: port.name for port in ports}
            given = {names.get(key, key): value for key, value in x.items()}
            if missing := [port.name for port in ports if port.name not in given]:
                raise InputError(f"The batch lacks {', '.join(missing)}.")
            arrays = [given[port.name] for port in ports]
        else:
            arrays = [x] if isinstance(x, np.ndarray) else list(x)
        if len(arrays) != len(ports):
            raise InputError(
                f"The model takes {len(ports)} inputs, {len(arrays)} were given: "
                f"give a tuple of {len(ports)} arrays."
            )
        checked = tuple(_fitting(a, port) for a, port in zip(arrays, ports, strict=True))
        if len({len(array) for array in checked}) != 1:
            raise InputError(f"The inputs differ in batch size: {[len(a) for a in checked]}.")
        return checked

    def _parts(self, batch: tuple[Array, ...]) -> list[tuple[Array, ...]]:
        """Cut a batch into pieces of the fixed size, the last one padded with its last row."""
        size = self.fixed_batch or len(batch[0])
        starts = range(0, len(batch[0]), size)
        return [tuple(_padded(a[s : s + size], size) for a in batch) for s in starts]

    def __repr__(self) -> str:
        """Name the framework, the inputs and the outputs."""
        shapes = ", ".join(f"{p.name}{list(p.shape)}" for p in (*self.inputs, *self.outputs))
        return f"<{type(self).__name__} {self.source or self.framework}: {shapes}>"


def _fitting(array: Array, port: Port) -> Array:
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise InputError(f"The batch holds {array.dtype}, not numbers.")
    want, have = port.shape, array.shape
    fits = len(want) == len(have) and all(
        w is None or w == h for w, h in zip(want[1:], have[1:], strict=True)
    )
    if not fits:
        shown = tuple("N" if i == 0 else "any" if d is None else d for i, d in enumerate(want))
        raise InputError(
            f"The model's {port.name} takes shape ({', '.join(map(str, shown))}), "
            f"channels first; the batch has shape {have}."
        )
    if not len(array):
        raise InputError("The batch is empty.")
    return array.astype(port.dtype if port.dtype.startswith("int") else np.float32, copy=False)


def _checked_cotangents(
    cotangents: Mapping[str, Array], values: Mapping[str, Array]
) -> dict[str, Array]:
    if not cotangents:
        raise InputError("The seed returned no cotangent.")
    checked = {}
    for name, cotangent in cotangents.items():
        if name not in values:
            raise InputError(f"The seed gave a cotangent at {name!r}, which was not fetched.")
        array = np.asarray(cotangent, np.float32)
        if array.shape != values[name].shape:
            raise InputError(
                f"The cotangent at {name!r} has shape {array.shape}, "
                f"the layer {values[name].shape}."
            )
        checked[name] = array
    return checked


def _rows(count: int, replaced: Mapping[str, Array]) -> int:
    """Return the number of rows that a run with replaced layers has."""
    ports = ("input", "output", "logits")
    if port := next((name for name in replaced if name.partition(":")[0] in ports), None):
        raise LayerError(f"{port!r} is no layer: only the values of layers can be replaced.")
    sizes = {len(array) if array.ndim else 0 for array in replaced.values()}
    if not sizes:
        return count
    if len(sizes) > 1 or 0 in sizes or (sizes != {count} and count != 1):
        raise InputError(
            f"The replaced layers have {', '.join(map(str, sorted(sizes)))} rows for a batch of "
            f"{count}: give one row per image, or any number of variants of a single image."
        )
    return sizes.pop()


def misfit(name: str, replacement: Array, shape: Sequence[int | None]) -> InputError:
    """Build the error for values that do not fit the layer whose place they are to take."""
    shown = ("N", *("any" if size is None else size for size in shape[1:]))
    return InputError(
        f"Layer {name!r} has values of shape ({', '.join(map(str, shown))}), channels first; those "
        f"to replace it have shape {replacement.shape}."
    )


@cache
def installed(package: str) -> str:
    """Return the version of an installed package, which takes a file to read; empty for none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def fits(replacement: Array, shape: Sequence[int | None]) -> bool:
    """Whether values have the shape of a layer, apart from the batch."""
    have = replacement.shape[1:]
    return replacement.ndim == len(shape) and all(
        want is None or want == size for want, size in zip(shape[1:], have, strict=True)
    )


def _padded(array: Array, size: int, fill: float | None = None) -> Array:
    if len(array) == size:
        return array
    last = array[-1:] if fill is None else np.full_like(array[:1], fill)
    return np.concatenate([array, np.repeat(last, size - len(array), axis=0)])


def _joined(parts: list[dict[str, Array]], count: int) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

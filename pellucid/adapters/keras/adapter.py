"""The adapter of Keras models, by TensorFlow's symbolic gradients.

TensorFlow 2.21 corrupts the heap when an eager tape differentiates a strided 1x1 convolution, so
gradients are only ever taken inside a graph. They are added to the graph of the one forward pass
that is traced per input shape, and a program is cut out of it for each question: which values to
fetch, where to seed, where the gradient is wanted.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from pellucid.adapters.base import (
    Adapter,
    Array,
    Batch,
    Layer,
    Port,
    Rectifier,
    Seed,
    fits,
    installed,
    misfit,
    normalised_moments,
    numbered,
)
from pellucid.adapters.keras.program import Program
from pellucid.adapters.keras.trace import (
    Recorder,
    Trace,
    channels_first,
    functions_inlined,
    has_open_functions,
    trace,
)
from pellucid.errors import InputError, UnsupportedError, first_line
from pellucid.graph.form import OnnxForm

__all__ = ["KerasAdapter"]

_SCALING = frozenset((
    "Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add",
    "TFOpLambda",
))  # fmt: skip
_DEFAULT_SIZE = 224
_MOST_PROGRAMS = 64


class KerasAdapter(Adapter):
    """A Keras 3 model on the TensorFlow backend, or a `tf_keras` model.

    Parameters
    ----------
    model : a functional, sequential or subclassed model; its weights are only read.
    labels, preprocess, source : see `pellucid.load`.
    device : "cpu" or "cuda:0"; None leaves it to TensorFlow.
    renamed : from the model's layer names to those by which they are addressed, where a file
        has names that Keras 3 forbids.
    notes : what the reader of its file was not sure of.
    """

    framework = "keras"
    knows_channels = True

    def __init__(
        self,
        model: Any,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        source: str = "",
        device: str | None = None,
        renamed: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(labels=labels, preprocess=preprocess, source=source or model.name)
        self.model = model
        self.notes = tuple(notes)
        self._renamed = dict(renamed or {})
        self._device = _device(device)
        self._lock = threading.RLock()
        self._seen: tuple[tuple[int, ...], ...] | None = None
        self._traces: dict[Any, Trace] = {}
        self._programs: dict[Any, Program] = {}
        self._seeded: dict[Any, tuple[str, ...]] = {}
        self._hashed: tuple[Any, str] = (None, "")

    # ---- description -------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layer calls in the order in which they finish."""
        return self._described.layers

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """The model's inputs, as it declares them."""
        traced = self._described
        ports = []
        for index, (spec, tensor) in enumerate(zip(self._declared, traced.inputs, strict=True)):
            name = numbered("input", index)
            order = traced.named[name][1]
            shape = channels_first(spec.shape, order)
            own_name = spec.name.split(":")[0] if spec.name else ""
            ports.append(Port(name, (None, *shape[1:]), own_name, order, dtype=tensor.dtype.name))
        return tuple(ports)

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        """The model's outputs, flattened in its own order."""
        traced = self._described
        free = any(None in port.shape[2:] for port in self.inputs)
        ports = []
        for index, activation in enumerate(traced.activations):
            name = numbered("output", index)
            tensor, order = traced.named[name]
            shape = channels_first(tensor.shape, order)
            spatial = (None,) * len(shape[2:]) if free else shape[2:]
            layout = traced.output_layouts[index]
            outer = (None, *shape[1:]) if layout == "tokens" else (None, *shape[1:2], *spatial)
            ports.append(Port(name, outer, "", order, activation, layout=layout))
        return tuple(ports)

    @property
    def fixed_batch(self) -> int | None:  # type: ignore[override]
        """The only batch size the model takes, if it declares one."""
        size = self._declared[0].shape[0] if self._declared[0].shape else None
        return int(size) if size is not None else None

    @cached_property
    def scales_input(self) -> bool:
        """Whether anything rescales or normalises the input before the first weighted layer."""
        for layer in self.layers:
            if layer.kind.startswith(("Conv", "Dense", "Depthwise", "Separable")):
                return False
            if layer.kind in _SCALING and not layer.container:
                return True
        return False

    @cached_property
    def moments(self) -> dict[str, tuple[Array, Array]]:
        """What its BatchNormalization layers tell of the training data, nested ones included."""
        return dict(self._moments_in(self.model, ""))

    def _moments_in(self, model: Any, path: str) -> Iterator[tuple[str, tuple[Array, Array]]]:
        for layer in getattr(model, "layers", ()):
            name = path + self._renamed.get(layer.name, layer.name)
            variance = getattr(layer, "moving_variance", None)
            if variance is None:
                yield from self._moments_in(layer, f"{name}/")
            elif name in self._described.named:
                parts = (getattr(layer, part, None) for part in ("gamma", "beta"))
                gamma, beta = (None if part is None else np.asarray(part) for part in parts)
                yield name, normalised_moments(np.asarray(variance), layer.epsilon, gamma, beta)

    @property
    def versions(self) -> dict[str, str]:
        """The versions of TensorFlow and of the model's own Keras."""
        family = sys.modules[self._family]
        return {"tensorflow": tf.__version__, self._family: family.__version__}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the architecture and of every weight; computed anew after training steps."""
        optimizer = getattr(self.model, "optimizer", None)
        iterations = getattr(optimizer, "iterations", None)
        state = 0 if iterations is None else int(iterations.numpy())
        if self._hashed[0] != state:
            try:
                architecture = self.model.to_json()
            except Exception:  # a subclassed model cannot write its architecture
                architecture = self.model.__class__.__qualname__
            digest = hashlib.sha256(architecture.encode())
            for weight, value in zip(self.model.weights, self.model.get_weights(), strict=True):
                array = np.ascontiguousarray(value)
                digest.update(f"{weight.name}{array.dtype}{array.shape}".encode())
                digest.update(array.view(np.uint8).data)
            self._hashed = (state, digest.hexdigest())
        return self._hashed[1]

    @cached_property
    def _family(self) -> str:
        modules = {base.__module__.split(".")[0] for base in self.model.__class__.__mro__}
        return "tf_keras" if "tf_keras" in modules else "keras"

    @cached_property
    def _declared(self) -> list[Any]:
        """What the model says of its inputs: anything with `shape`, `dtype` and `name`."""
        if symbolic := getattr(self.model, "inputs", None):
            return list(symbolic)
        if not self.model.built:
            raise UnsupportedError(
                f"The model {self.model.name!r} is not built, so it has no weights yet. "
                "Call it once on a batch before it is explained."
            )
        shapes = self._seen or _called_on(self.model)
        if not shapes:
            raise UnsupportedError(
                f"The model {self.model.name!r} does not say what input it takes: explain a batch "
                "of floats first, (N, H, W, C)."
            )
        return [tf.TensorSpec((None, *shape[1:]), tf.float32) for shape in shapes]

    def _see(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Take the shapes of a batch for those of a model that does not declare its own."""
        if self._is_functional or not self.model.built:
            return
        known = self._seen or _called_on(self.model)
        if known is None or not _fits(shapes, known):
            self._seen = shapes
            for name in ("_declared", "_described", "inputs", "outputs", "scales_input", "moments"):
                self.__dict__.pop(name, None)

    # ---- tracing -----------------------------------------------------------------------------

    @cached_property
    def _described(self) -> Trace:
        """The trace from which the layers are listed; a size that is free is taken as 224."""
        return self._trace(self._described_shapes)

    @property
    def _described_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(_DEFAULT_SIZE if size is None else size for size in spec.shape[1:])
            for spec in self._declared
        )

    def _trace(self, own_shapes: tuple[tuple[int, ...], ...]) -> Trace:
        with self._lock:
            if own_shapes not in self._traces:
                traced = self._traced(self._specs(own_shapes))
                if has_open_functions(traced.graph):  # no rule would hold in there
                    with functions_inlined():
                        traced = self._traced(self._specs(own_shapes))
                self._traces[own_shapes] = traced
            return self._traces[own_shapes]

    def _specs(self, own_shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        return [
            tf.TensorSpec((spec.shape[0], *shape), spec.dtype)
            for spec, shape in zip(self._declared, own_shapes, strict=True)
        ]

    def _traced(self, specs: Sequence[Any], recorder: Recorder | None = None) -> Trace:
        family = sys.modules[self._family]
        operation = getattr(family, "Operation", family.layers.Layer)
        # Only how the inputs are nested: the symbolic tensors would keep the model alive.
        symbolic = getattr(self.model, "input", None)  # a Sequential from a file has none
        structure = tf.nest.map_structure(lambda _: 0, symbolic)
        nested = isinstance(structure, list | tuple | dict)

        def call(tensors: Sequence[Any]) -> Any:
            if not nested:
                packed = tensors[0] if len(tensors) == 1 else list(tensors)
            else:
                packed = tf.nest.pack_sequence_as(structure, list(tensors))
            return self.model(packed, training=False)

        try:
            data_format = family.backend.image_data_format()
            recorder = recorder or Recorder(family.Model, self._renamed)
            with tf.device(self._device):
                return trace(operation, call, specs, data_format, recorder)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            shapes = ", ".join(str(tuple(spec.shape)) for spec in specs)
            raise InputError(
                f"The model cannot be called on shape {shapes}: {first_line(error)}"
            ) from error

    @property
    def _is_functional(self) -> bool:
        return bool(getattr(self.model, "inputs", None))

    # ---- the ONNX form -----------------------------------------------------------------------

    @property
    def form_key(self) -> tuple[str, ...]:
        """All that the ONNX form follows from: versions and the shapes of the inputs too."""
        own = (str(self._described_shapes), installed("tf2onnx"), self._code)
        return (*super().form_key, *own)

    @cached_property
    def _code(self) -> str:
        """Digest of what layers compute that are not Keras's own: their configurations may lack it.

        It is that of a trace of its own, since programs add to the one that is kept.
        """
        layers = [self.model, *self.model._flatten_layers()]
        origins = {type(layer).__module__.partition(".")[0] for layer in layers}
        if origins <= {"keras", "tf_keras", "pellucid"}:
            return ""
        graph = self._traced(self._specs(self._described_shapes)).graph.as_graph_def()
        return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()

    def _export(self) -> OnnxForm:
        from pellucid.adapters.keras.export import MarkingRecorder, export_trace

        family = sys.modules[self._family]
        recorder = MarkingRecorder(family.Model, self._renamed)
        with self._lock:
            with functions_inlined():
                traced = self._traced(self._specs(self._described_shapes), recorder)
            return export_trace(traced, recorder, self.model, (self.inputs, self.outputs))

    # ---- computing ---------------------------------------------------------------------------

    def prepare(self, images: Any) -> Any:
        """Turn what a user holds into a batch; a ready one may show the input's shape."""
        arrays = images if isinstance(images, tuple) else (images,)
        if all(getattr(getattr(a, "dtype", None), "kind", "") == "f" for a in arrays):
            self._see(tuple(np.shape(array) for array in arrays))
        return super().prepare(images)

    def batch(self, x: Batch) -> tuple[Array, ...]:
        """Check a batch, which shows the input's shape of a model that declares none."""
        if not isinstance(x, Mapping):
            arrays = [x] if isinstance(x, np.ndarray) else x
            own = [np.moveaxis(np.asarray(a), 1, -1) if np.ndim(a) > 3 else a for a in arrays]
            self._see(tuple(np.shape(array) for array in own))
        return super().batch(x)

    def _run(
        self, x: tuple[Array, ...], fetch: tuple[str, ...], replace: Mapping[str, Array]
    ) -> dict[str, Array]:
        program = self._program(x, fetch, (), (), "exact", tuple(replace))
        for name, array in replace.items():
            if not fits(array, program.shape(name)):
                raise misfit(name, array, program.shape(name))
        try:
            return program(x, None, tuple(replace.values()))[0]
        except tf.errors.OpError as error:
            if not replace:
                raise
            raise InputError(
                f"The network failed on replaced values of {', '.join(replace)}: "
                + first_line(error)
            ) from error

    def _pullback(
        self,
        x: tuple[Array, ...],
        seed: Seed,
        wrt: tuple[str, ...],
        fetch: tuple[str, ...],
        relu: Rectifier,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        question = (fetch, wrt)
        with self._lock:
            # Which of the fetched layers the seed gives a cotangent at shows only when it is
            # called. The guess is the last one; the answer is remembered.
            seeded = self._seeded.get(question, fetch[-1:])
            values, gradients, given = self._program(x, fetch, wrt, seeded, relu)(x, seed)
            if given.keys() != set(seeded):
                seeded = self._seeded[question] = tuple(n for n in fetch if n in given)
                program = self._program(x, fetch, wrt, seeded, relu)
                values, gradients, _ = program(x, lambda _: given)
            return values, gradients

    def _program(
        self,
        x: tuple[Array, ...],
        fetch: tuple[str, ...],
        wrt: tuple[str, ...],
        seeded: tuple[str, ...],
        relu: Rectifier,
        replaced: tuple[str, ...] = (),
    ) -> Program:
        own_shapes = tuple(
            port.own_layout(array).shape[1:] for port, array in zip(self.inputs, x, strict=True)
        )
        key = (own_shapes, fetch, wrt, seeded, relu, replaced)
        with self._lock:
            if key not in self._programs:
                if len(self._programs) >= _MOST_PROGRAMS:  # their operations fill the graph
                    self._programs.clear()
                    self._traces.clear()
                traced = self._trace(own_shapes)
                for name in (*fetch, *wrt, *replaced):
                    if name not in traced.named:
                        raise self.unknown_layer(name)
                self._programs[key] = Program(traced, fetch, wrt, seeded, relu, replaced)
            return self._programs[key]


def _called_on(model: Any) -> tuple[tuple[int | None, ...], ...] | None:
    """Return the shapes of the inputs that a model was first called on, if it remembers them."""
    shape = (model.get_build_config() or {}).get("input_shape")
    if not shape or isinstance(shape, dict):
        return None
    several = isinstance(shape[0], list | tuple | tf.TensorShape)
    return tuple(tuple(one) for one in (shape if several else [shape]))


def _fits(shapes: Sequence[Sequence[int]], known: Sequence[Sequence[int | None]]) -> bool:
    """Whether a batch is of known shapes, whatever its own size; or lacks the batch's axis."""
    return len(shapes) == len(known) and all(
        len(shape) < len(wanted)
        or (
            len(shape) == len(wanted)
            and all(w in (None, s) for s, w in zip(shape[1:], wanted[1:], strict=True))
        )
        for shape, wanted in zip(shapes, known, strict=True)
    )


def _device(name: str | None) -> str | None:
    """Return TensorFlow's name of a device.

    Raises
    ------
    UnsupportedError : TensorFlow sees no such device.
    """
    if name is None:
        return None
    kind, _, index = name.lower().partition(":")
    wanted = f"/device:{'GPU' if kind in ('cuda', 'gpu') else kind.upper()}:{index or 0}"
    known = [device.name for device in tf.config.list_logical_devices()]
    if wanted not in known:
        raise UnsupportedError(
            f"TensorFlow sees no device {name!r} here, only {', '.join(known)}: leave device= out."
        )
    return wanted

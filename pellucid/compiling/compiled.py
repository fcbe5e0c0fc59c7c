"""Running an explanation that was compiled to an ONNX file."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pellucid.adapters.base import Array, Port
from pellucid.adapters.onnx.adapter import OnnxAdapter
from pellucid.errors import LoadError, TargetError
from pellucid.explanation import Explanation, replacing
from pellucid.images import Preprocess, prepare, resize_map
from pellucid.labels import find_label
from pellucid.methods.batching import MEMORY_OF_GRADIENTS, chunks, gradient_rows
from pellucid.methods.objective import probabilities

__all__ = ["CompiledExplainer", "load_explainer"]

_PREFIX = "pellucid."
# Bytes of all tensors of a pass; onnxruntime has about a quarter of them in memory at a time.
_MEMORY = 4 * MEMORY_OF_GRADIENTS


def load_explainer(path: str | Path) -> CompiledExplainer:
    """Open a file that `pellucid.compile` wrote.

    Raises
    ------
    LoadError : it is no such file.

    Example
    -------
    >>> pellucid.load_explainer("cam.onnx")("cat.jpg").save("cat.png")  # doctest: +SKIP
    """
    adapter = OnnxAdapter.from_file(Path(path).expanduser())
    return CompiledExplainer(adapter.model, source=str(path))


class CompiledExplainer:
    """A network and an explanation of what it says, in one ONNX graph.

    Parameters
    ----------
    model : what `pellucid.compile` wrote.
    source : where it came from, for messages.

    Attributes
    ----------
    facts : what the file says of itself: model, model_sha256, framework, method, layer, target,
        space, options, labels, preprocess, and the names of its outputs.
    """

    def __init__(self, model: onnx.ModelProto, *, source: str = "") -> None:
        self.model, self.source = model, source
        found = {p.key.removeprefix(_PREFIX): p.value for p in model.metadata_props
                 if p.key.startswith(_PREFIX)}  # fmt: skip
        if "names" not in found:
            raise LoadError(
                f"{source or 'This model'} is no compiled explanation: `pellucid compile` makes "
                "one from a model."
            )
        self.facts: dict[str, Any] = {name: json.loads(value) for name, value in found.items()}

    def save(self, path: str | Path) -> Path:
        """Write the `.onnx` file; an earlier one is replaced."""
        path = Path(path).expanduser()
        with replacing(path) as file:
            file.write(self.model.SerializeToString())
        return path

    @cached_property
    def _adapter(self) -> OnnxAdapter:
        layouts = {tensor: tuple(order) for tensor, order in self.facts["layouts"].items()}
        return OnnxAdapter(
            self.model, labels=self.facts["labels"], source=self.source, layouts=layouts
        )

    @cached_property
    def _ports(self) -> tuple[Port, ...]:
        return tuple(port for port in self._adapter.inputs if port.own_name != "class_index")

    def __call__(self, images: Any, target: Any = None) -> Explanation | list[Explanation]:
        """Explain images.

        Parameters
        ----------
        images : what `pellucid.explain` takes.
        target : class index or label, or one per image, if the file was compiled with
            `target="input"`.
        """
        began = time.perf_counter()
        settings = self.facts["preprocess"]
        preprocess = None if settings is None else _preprocess(settings)
        prepared = prepare(images, self._ports, preprocess)
        count = len(prepared)
        feeds = dict(zip((port.name for port in self._ports), prepared.batch, strict=True))
        indices = self._indices(target, count)
        batch = [feeds.get(port.name, indices) for port in self._adapter.inputs]
        names = self.facts["names"]
        output = next(p.name for p in self._adapter.outputs if p.own_name == self.facts["output"])
        wanted = (output, *names.values())
        rows = gradient_rows(self._adapter, batch[0], _MEMORY)
        parts = [
            self._adapter.run([array[some] for array in batch], wanted)
            for some in chunks(count, rows)
        ]
        values = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        seconds = time.perf_counter() - began
        found = {name: values[own] for name, own in names.items()}
        predicted = self._predicted(values[output])
        made = [
            self._explanation(prepared, found, predicted, index, seconds) for index in range(count)
        ]
        return made[0] if prepared.single else made

    def _indices(self, target: Any, count: int) -> Any:
        """Return one class index per image."""
        if self.facts["target"] != "input":
            if target is not None:
                raise TargetError(
                    f"This file explains {self.facts['target']!r}: compile the model with "
                    "target='input' to choose the class of each call."
                )
            return None
        if target is None:
            raise TargetError("This file takes a class index for each image: give target=.")
        given = list(target) if isinstance(target, list | tuple | np.ndarray) else [target] * count
        labels = self.facts["labels"]
        return np.asarray([
            find_label(t, labels) if isinstance(t, str) and labels else int(t) for t in given
        ], np.int64)  # fmt: skip

    def _predicted(self, output: Array) -> Array:
        """Return the probability of each class, `(N, K)`; dense outputs are averaged."""
        port = next(p for p in self._adapter.outputs if p.own_name == self.facts["output"])
        activation = self.facts["activation"]
        if activation == "log_softmax":
            output = np.exp(output)
        elif activation is None:
            output = probabilities(output, port)
        places = tuple(a for a in range(1, output.ndim) if a != port.class_axis)
        return output.mean(axis=places) if places else output

    def _explanation(
        self, prepared: Any, found: dict[str, Array], predicted: Array, index: int, seconds: float
    ) -> Explanation:
        from pellucid import __version__

        heatmap, target = found["heatmap"][index], int(found["target"][index])
        if found["attribution"].ndim == found["heatmap"].ndim:  # a map: drawn in one step
            heatmap = np.maximum(found["attribution"][index], 0)
            heatmap = heatmap / max(heatmap.max(), np.finfo(np.float32).tiny)
        by_class, labels = predicted[index], self.facts["labels"]
        signed, layer = self.facts["signed"], self.facts["layer"]
        if prepared.pictures[index] is None:
            drawn = resize_map(heatmap, prepared.batch[0].shape[2:])
        else:
            drawn = prepared.to_image(heatmap, index)
            if signed:  # what lies outside the part that the network saw is zero
                drawn = (1 + prepared.to_image(2 * heatmap - 1, index)) / 2

        def label(number: int) -> str | None:
            return labels[number] if labels and number < len(labels) else None

        best = [int(i) for i in np.argsort(-by_class, kind="stable")[:5]]
        return Explanation(
            attribution=found["attribution"][index],
            heatmap=np.clip(drawn, 0, 1),
            method=self.facts["method"],
            score=float(found["score"][index]),
            probability=float(by_class[target]) if target < len(by_class) else None,
            target=target,
            label=label(target),
            layer=tuple(layer) if isinstance(layer, list) else layer,
            space=self.facts["space"],
            options=self.facts["options"],
            provenance={
                "model": self.facts["model"],
                "model_sha256": self.facts["model_sha256"],
                "framework": self.facts["framework"],
                "versions": {"pellucid": __version__, **self._adapter.versions},
                "engine": "compiled",
                "seed": self.facts["seed"],
                "seconds": round(seconds, 4),
            },
            image=prepared.pictures[index],
            signed=signed,
            top=tuple((i, label(i), float(by_class[i])) for i in best),
        )


def _preprocess(settings: dict[str, Any]) -> Preprocess:
    lists = {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    return Preprocess(**{**settings, **lists})

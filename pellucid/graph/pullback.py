"""Running a differentiated graph when the cotangent is computed from the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import InputError
from pellucid.graph.gradient import Gradient, differentiate
from pellucid.graph.rectifiers import Rectifier
from pellucid.graph.runtime import session

__all__ = ["OnnxPullback", "Recorded"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Recorded:
    """What a forward pass leaves.

    Attributes
    ----------
    values : `{tensor: array}` over what was fetched.
    crossing : what the backward half takes, as the runtime holds it.
    """

    values: dict[str, NDArray[Any]]
    crossing: dict[str, Any]


class OnnxPullback:
    """Forward and backward pass of one ONNX graph, in two onnxruntime sessions.

    Parameters
    ----------
    model : the network; it is not changed.
    fetch : tensors whose values are returned and handed to the seed.
    wrt : tensors whose gradients are returned.
    seeds : tensors at which the seed may give cotangents, by default all that are fetched. The
        fewer, the less there is to compute.
    relu : the rectifier rule: `"exact"`, `"guided"` or `"deconv"`.
    opened : makes a session of a model; by default on the CPU, with one thread for each core.

    Example
    -------
    >>> pullback = OnnxPullback(model, ["logits"], ["input"])  # doctest: +SKIP
    >>> values, gradients = pullback({"input": x}, lambda v: {"logits": onehot})  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ir.Model | onnx.ModelProto,
        fetch: Sequence[str],
        wrt: Sequence[str],
        seeds: Sequence[str] | None = None,
        relu: Rectifier = "exact",
        *,
        opened: Callable[[onnx.ModelProto], Any] = session,
    ) -> None:
        self.fetch = tuple(dict.fromkeys(fetch))
        self.wrt = tuple(dict.fromkeys(wrt))
        self.seeds = self.fetch if seeds is None else tuple(dict.fromkeys(seeds))
        self.gradient: Gradient = differentiate(
            model, self.seeds, self.wrt, relu=relu, fetch=self.fetch
        )
        forward, backward = self.gradient.split()
        self.inputs = tuple(v.name or "" for v in forward.graph.inputs)
        self._crossing = [v.name or "" for v in forward.graph.outputs]
        taken = [v.name or "" for v in backward.graph.inputs]
        self._residuals = [name for name in taken if not name.startswith("seed/")]
        self._given = [name.removeprefix("seed/") for name in taken if name.startswith("seed/")]
        self._forward = opened(ir.to_proto(forward)) if self._crossing else None
        self._backward = opened(ir.to_proto(backward))

    @property
    def residuals(self) -> tuple[str, ...]:
        """Tensors that the backward half takes from the forward half."""
        return tuple(self._residuals)

    def __call__(
        self, feeds: Arrays, seed: Callable[[Arrays], Arrays]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Run both halves.

        Parameters
        ----------
        feeds : the network's inputs by name.
        seed : from `{tensor: value}` over `fetch` to `{tensor: cotangent}` over some of `seeds`.

        Returns
        -------
        values, gradients : `{tensor: array}` over `fetch` and over `wrt`.
        """
        recorded = self.forward(feeds)
        return recorded.values, self.backward(recorded, seed(recorded.values))

    def forward(self, feeds: Arrays) -> Recorded:
        """Run the forward half and keep what the backward half needs."""
        from onnxruntime import OrtValue

        given = {n: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in feeds.items()}
        if self._forward is None:  # nothing but inputs is fetched or needed
            return Recorded({}, {})
        outputs = self._forward.run_with_ort_values(self._crossing, given)
        crossing = dict(zip(self._crossing, outputs, strict=True))
        return Recorded({name: crossing[name].numpy() for name in self.fetch}, crossing)

    def backward(self, recorded: Recorded, cotangents: Arrays) -> dict[str, NDArray[Any]]:
        """Run the backward half on what the forward half recorded: `{tensor: gradient}`."""
        from onnxruntime import OrtValue

        if unknown := [name for name in cotangents if name not in self.seeds]:
            raise InputError(
                f"The seed gave a cotangent at {unknown[0]!r}, which is not among the seeds "
                f"{', '.join(self.seeds)}."
            )
        pulled = {name: recorded.crossing[name] for name in self._residuals}
        for name in self._given:
            cotangent = cotangents.get(name)
            if cotangent is None and name in recorded.values:
                cotangent = np.zeros_like(recorded.values[name])
            if cotangent is None:
                raise InputError(f"The seed gave no cotangent at {name!r}, which was not fetched.")
            contents = np.ascontiguousarray(cotangent, _element_type(self._backward, name))
            pulled[f"seed/{name}"] = OrtValue.ortvalue_from_numpy(contents)
        names = [f"grad/{name}" for name in self.wrt]
        gradients = self._backward.run_with_ort_values(names, pulled)
        return {n: g.numpy() for n, g in zip(self.wrt, gradients, strict=True)}


def _element_type(session: Any, name: str) -> Any:
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    found = next(i.type for i in session.get_inputs() if i.name == f"seed/{name}")
    return kinds.get(found, np.float32)

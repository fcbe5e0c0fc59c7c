"""Running a differentiated graph when the cotangent is computed from the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pellucid.errors import InputError
from pellucid.graph.gradient import Gradient, differentiate
from pellucid.graph.rectifiers import Rectifier
from pellucid.graph.runtime import session

__all__ = ["OnnxPullback"]

Arrays = Mapping[str, NDArray[Any]]


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
    threads : threads within an operator, by default one for each core.

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
        threads: int | None = None,
    ) -> None:
        self.fetch = tuple(dict.fromkeys(fetch))
        self.wrt = tuple(dict.fromkeys(wrt))
        self.seeds = self.fetch if seeds is None else tuple(dict.fromkeys(seeds))
        self.gradient: Gradient = differentiate(
            model, self.seeds, self.wrt, relu=relu, fetch=self.fetch
        )
        forward, backward = self.gradient.split()
        self._inputs = {v.name: v for v in forward.graph.inputs}
        self._crossing = [v.name or "" for v in forward.graph.outputs]
        taken = [v.name or "" for v in backward.graph.inputs]
        self._residuals = [name for name in taken if not name.startswith("seed/")]
        self._given = [name.removeprefix("seed/") for name in taken if name.startswith("seed/")]
        self._forward = session(ir.to_proto(forward), threads=threads)
        self._backward = session(ir.to_proto(backward), threads=threads)

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
        from onnxruntime import OrtValue

        given = {n: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in feeds.items()}
        outputs = self._forward.run_with_ort_values(self._crossing, given)
        crossing = dict(zip(self._crossing, outputs, strict=True))
        values = {name: crossing[name].numpy() for name in self.fetch}
        cotangents = seed(values)
        if unknown := [name for name in cotangents if name not in self.seeds]:
            raise InputError(
                f"The seed gave a cotangent at {unknown[0]!r}, which is not among the seeds "
                f"{', '.join(self.seeds)}."
            )
        pulled = {name: crossing[name] for name in self._residuals}
        for name in self._given:
            cotangent = cotangents.get(name)
            if cotangent is None:
                cotangent = np.zeros_like(values[name]) if name in values else None
            if cotangent is None:
                raise InputError(f"The seed gave no cotangent at {name!r}, which was not fetched.")
            contents = np.ascontiguousarray(cotangent, _element_type(self._backward, name))
            pulled[f"seed/{name}"] = OrtValue.ortvalue_from_numpy(contents)
        names = [f"grad/{name}" for name in self.wrt]
        gradients = self._backward.run_with_ort_values(names, pulled)
        return values, {n: g.numpy() for n, g in zip(self.wrt, gradients, strict=True)}


def _element_type(session: Any, name: str) -> Any:
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    found = next(i.type for i in session.get_inputs() if i.name == f"seed/{name}")
    return kinds.get(found, np.float32)

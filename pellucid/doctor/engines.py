"""Runs a model that was opened: does it answer, and does another engine give the same?"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.adapters.base import Adapter, Array
from pellucid.doctor.findings import Check
from pellucid.errors import PellucidError, first_line

__all__ = ["behaviour", "second_engine"]

_FREE = 64  # pixels along an axis whose size is open
_AGREES = 1e-3  # of the largest output


def behaviour(adapter: Adapter) -> Check:
    """Run the model on black, white and noise: it must answer, with numbers, and differently."""
    name = "the network answers"
    names = [port.logits for port in adapter.outputs]
    try:
        values = adapter.run(_pictures(adapter), names)
    except Exception as error:  # a size that it does not take, or an operator that fails
        return Check(name, None, f"it was not run: {' '.join(str(error).split())[:200]}")
    if not all(np.isfinite(value).all() for value in values.values()):
        return Check(name, False, "some outputs are not finite numbers")
    if all((value == value[:1]).all() for value in values.values()):
        return Check(name, False, "black, white and noise give the same output: it is dead")
    return Check(name, True, "black, white and noise give finite and different outputs")


def _pictures(adapter: Adapter, sizes: tuple[tuple[int | None, ...], ...] = ()) -> list[Array]:
    """Return black, white and two of noise for every input, channels first."""
    random = np.random.default_rng(0)
    batch = []
    for index, port in enumerate(adapter.inputs):
        given = sizes[index] if sizes else port.shape
        shape = tuple(_FREE if size is None else size for size in given[1:])
        noise = random.uniform(size=(2, *shape))
        both = np.concatenate([np.zeros((1, *shape)), np.ones((1, *shape)), noise])
        batch.append(both.astype(port.dtype if port.dtype.startswith("int") else np.float32))
    return batch


def second_engine(adapter: Adapter) -> Check:
    """Compare the outputs with those that onnxruntime computes from the model's ONNX form."""
    name = "onnxruntime computes the same"
    try:
        form = adapter.form
    except PellucidError as error:
        return Check(name, None, f"it has no ONNX form to compare with: {first_line(error)}")
    try:
        from pellucid.adapters.onnx.sessions import open_session
        from pellucid.graph.protobuf import dimensions

        declared = {value.name: dimensions(value) or () for value in form.model.graph.input}
        sizes = tuple(
            tuple(np.array(declared[port.tensor], object)[np.argsort(port.to_own)])
            if port.to_own else tuple(declared[port.tensor])
            for port in form.inputs
        )  # fmt: skip
        batch = _pictures(adapter, sizes)
        session = open_session(form.model, source="the ONNX form", device="cpu")
        fed: dict[str, Any] = {
            port.tensor: np.ascontiguousarray(own.own_layout(array))
            for port, own, array in zip(form.inputs, adapter.inputs, batch, strict=True)
        }
        if adapter.fixed_batch:
            fed = {key: np.resize(array, (adapter.fixed_batch, *array.shape[1:]))
                   for key, array in fed.items()}  # fmt: skip
            batch = [np.resize(array, (adapter.fixed_batch, *array.shape[1:])) for array in batch]
        theirs = session.run([port.tensor for port in form.outputs], fed)
        ours = adapter.run(batch, [port.name for port in adapter.outputs])
    except Exception as error:  # whatever another engine says
        return Check(name, None, f"it was not compared: {first_line(error)[:200]}")
    worst = 0.0
    for port, other in zip(adapter.outputs, theirs, strict=True):
        own = port.own_layout(ours[port.name])
        if own.shape != other.shape:
            return Check(name, False, f"its output has the shape {other.shape}, not {own.shape}")
        worst = max(worst, float(np.abs(own - other).max() / max(np.abs(own).max(), 1e-6)))
    text = f"the outputs differ by {worst:.1g} of the largest"
    return Check(name, bool(worst <= _AGREES), text)

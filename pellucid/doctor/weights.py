"""Whether weights look trained, dead, damaged or as they were first drawn.

Initial values leave marks that training wipes out: biases and moving means of exactly zero, scales
and variances of exactly one, kernels spread evenly up to the very limit of Glorot's formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.doctor.findings import Finding, State

__all__ = ["examine"]

Array = NDArray[Any]

_START = {
    "bias": 0.0, "beta": 0.0, "moving_mean": 0.0, "running_mean": 0.0, "gamma": 1.0,
    "moving_variance": 1.0, "running_var": 1.0,
}  # fmt: skip
_FEWEST = 64  # values of a kernel below which its distribution says nothing
_SHARE_OF_LIMIT = 0.97
_SPREAD = 0.08  # relative error of a standard deviation that counts as equal


def examine(
    weights: Mapping[str, Mapping[str, Array]],
) -> tuple[State, str, tuple[Finding, ...]]:
    """Look at all arrays of a network.

    Parameters
    ----------
    weights : by layer, then by the name of the array.

    Returns
    -------
    state, reason, findings : the verdict, a sentence for it, and what is odd about single arrays.
    """
    arrays = [(layer, name, a) for layer, own in weights.items() for name, a in own.items()]
    findings = [Finding(*item[:2], text) for item in arrays for text in _odd(item[1], item[2])]
    if not arrays:
        return "unknown", "there are no weights", ()
    if broken := [f for f in findings if "not finite" in f.text]:
        where = f"{broken[0].layer} ({broken[0].array})"
        return "damaged", f"there are values that are not finite, first in {where}", tuple(findings)
    kernels = [(layer, name, a) for layer, name, a in arrays if _is_kernel(name, a)]
    dead = [layer for layer, _, a in kernels if not a.any()]
    if kernels and len(dead) == len(kernels):
        return "dead", "all kernels are zero", tuple(findings)
    verdict = _verdict(weights)
    if dead:
        return "dead", f"the kernel of {dead[0]} is zero throughout", tuple(findings)
    return (*verdict, tuple(findings))


def _odd(name: str, array: Array) -> Iterator[str]:
    if array.dtype.kind != "f" or not array.size:
        return
    finite = np.isfinite(array)
    if not finite.all():
        yield f"{int((~finite).sum()):,} of {array.size:,} values are not finite"
        return
    if _is_kernel(name, array):
        if not array.any():
            yield "all values are zero"
        elif array.min() == array.max():
            yield f"all values are {float(array.flat[0]):g}"
        elif silent := _silent(array):
            yield f"{silent} of {array.shape[-1]} units have only zeros"
    elif _last(name) in ("moving_variance", "running_var") and (array < 0).any():
        yield "a variance is negative"


def _last(name: str) -> str:
    return name.split("/")[-1].split(".")[-1].split(":")[0]


def _is_kernel(name: str, array: Array) -> bool:
    """Whether an array is a matrix of weights; attention has biases of several axes too."""
    return array.ndim > 1 and array.dtype.kind == "f" and "bias" not in _last(name)


def _silent(kernel: Array) -> int:
    """Count the units, along the last axis, whose weights are all zero."""
    return int((~kernel.reshape(-1, kernel.shape[-1]).any(axis=0)).sum())


def _verdict(weights: Mapping[str, Mapping[str, Array]]) -> tuple[State, str]:
    fresh: list[str] = []
    changed: list[str] = []
    for layer, own in weights.items():
        marks = [
            mark for name, array in own.items() if (mark := _as_drawn(name, array)) is not None
        ]
        if marks:
            (fresh if all(marks) else changed).append(layer)
    known = len(fresh) + len(changed)
    if not known:
        return "unknown", "the arrays carry no mark of how they began"
    if not changed:
        return "untouched", (
            f"all {known} layers are as an initialiser leaves them: biases of exactly zero, "
            "unit statistics or evenly drawn kernels"
        )
    if fresh:
        shown = ", ".join(fresh[:3]) + (" and others" if len(fresh) > 3 else "")
        return "partly untouched", (
            f"{len(fresh)} of {known} layers are as an initialiser leaves them: {shown}"
        )
    return "trained", f"all {known} layers differ from what an initialiser leaves"


def _as_drawn(name: str, array: Array) -> bool | None:
    """Say whether an array is as initialisers leave it; None where that cannot be told."""
    last = _last(name)
    start = _START.get(last)
    if start is not None:
        unit_forget = last == "bias" and set(np.unique(array)) == {0.0, 1.0}  # of an LSTM
        return bool((array == start).all()) or unit_forget
    if array.ndim < 2 or array.size < _FEWEST or not (last.endswith("kernel") or last == "weight"):
        return None
    return _evenly_drawn(array)


def _evenly_drawn(kernel: Array) -> bool | None:
    """Whether a kernel fills the interval of Glorot's or He's uniform initialiser evenly."""
    field = int(np.prod(kernel.shape[:-2]))
    fans = (kernel.shape[-2] * field, kernel.shape[-1] * field)
    largest, spread = float(np.abs(kernel).max()), float(kernel.std())
    for limit in ((6 / sum(fans)) ** 0.5, (6 / fans[0]) ** 0.5, 0.05):
        reaches = _SHARE_OF_LIMIT * limit < largest <= limit * 1.0001
        if reaches and abs(spread * 3**0.5 / limit - 1) < _SPREAD:
            return True
    return False if kernel.size > 4 * _FEWEST else None

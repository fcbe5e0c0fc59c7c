"""Sobol indices: the share of the score's variance that a part of the image has a hand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pellucid.errors import MethodError
from pellucid.methods.perturbation.details import Finding
from pellucid.methods.perturbation.subject import Subject

__all__ = ["sobol"]


def sobol(
    subject: Subject,
    *,
    designs: int = 32,
    segments: Any = "grid",
    num_segments: int = 64,
    segment_options: Mapping[str, Any] | None = None,
    replacement: Any = "zero",
) -> Finding:
    """Estimate the total Sobol index of every part.

    Every part is mixed with its replacement by a share drawn evenly from [0, 1]. The total index
    of a part is the share of the score's variance that vanishes when all others are known,
    interactions included, by Jansen's estimator `E (f(A) - f(A with the part from B))^2 / 2 Var`.

    Parameters
    ----------
    designs : pairs A, B of quasi-random draws, best a power of two; each takes K + 2 predictions.
    segments, num_segments, segment_options, replacement : as for `lime`; the paper has a grid.

    Returns
    -------
    Finding
        The indices as weights, never negative, with their standard errors.

    Source
    ------
    Fel et al., "Look at the Variance!", NeurIPS 2021, 2111.04138; Jansen, 1999.
    """
    if not isinstance(designs, int) or isinstance(designs, bool) or designs < 2:
        raise MethodError(f"designs={designs!r} must be a whole number, 2 or more.")
    from scipy.stats import qmc

    labels, compose = subject.hidden_segments(segments, num_segments, segment_options, replacement)
    count = int(labels.max()) + 1
    exponent = int(np.ceil(np.log2(designs)))
    drawn = qmc.Sobol(2 * count, seed=subject.seed).random_base2(exponent)[:designs]
    one, other = drawn[:, :count], drawn[:, count:]  # (designs, K)
    exchanged = np.repeat(one[:, None], count, axis=1)  # (designs, K, K)
    place = np.arange(count)
    exchanged[:, place, place] = other
    # Design by design, so that what is done when Ctrl-C comes is whole designs.
    codes = np.concatenate([one[:, None], other[:, None], exchanged], axis=1)
    scores = subject.scores(codes.reshape(-1, count), compose)
    done = len(scores) // (count + 2)
    if done < 2:
        raise KeyboardInterrupt
    scores = scores[: done * (count + 2)].reshape(done, count + 2)
    variance = float(scores[:, :2].var())
    halves = (scores[:, :1] - scores[:, 2:]) ** 2 / 2  # (designs, K)
    indices = halves / variance if variance else np.zeros_like(halves)
    weights = indices.mean(axis=0)
    return Finding(
        attribution=np.asarray(weights[labels], np.float32),
        segments=labels,
        weights=weights,
        standard_errors=indices.std(axis=0, ddof=1) / np.sqrt(done),
        facts={"designs": done, "variance": variance},
        signed=False,
    )

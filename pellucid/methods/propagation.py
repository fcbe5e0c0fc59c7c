"""DeepLIFT and layer-wise relevance propagation: the score, carried back by rules of their own.

They run on the ONNX form of a model, whichever framework it comes from; the rules are in
`pellucid.graph.propagation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from pellucid.adapters.base import Adapter, Array, Batch, Rectifier
from pellucid.errors import MethodError, UnsupportedError
from pellucid.methods.baselines import Baseline, baselines_of
from pellucid.methods.gradient import copies, first_input
from pellucid.methods.objective import Objective

__all__ = ["deep_lift", "lrp"]

Rule = Literal["epsilon", "gamma", "z-plus", "composite"]


def deep_lift(
    model: Adapter,
    x: Batch,
    objective: Objective,
    *,
    baseline: Baseline = "zero",
    seed: int = 0,
) -> Array:
    """Share the difference of the scores of image and baseline among the pixels, layer by layer.

    The rescale rule for functions of one number, and the mean of the other factor for products.
    The attributions sum to `score(x) - score(b)` in every network, up to rounding; the
    convergence delta tells.

    Parameters
    ----------
    model : the network, on the ONNX engine.
    x : batch of N images, `(N, C, *spatial)`; other inputs keep their values in the baseline.
    objective : the score; where it is no linear function of the logits (`space="probability"`, a
        function as target) its gradient at the image is what is shared.
    baseline : see `pellucid.methods.baselines.baselines_of`; over several the result is averaged.
    seed : governs the baseline `"uniform"`.

    Source
    ------
    Shrikumar et al., "Learning Important Features Through Propagating Activation Differences",
    1704.02685.
    """
    if model.fixed_batch:
        raise UnsupportedError(
            "DeepLIFT runs images and baselines as one batch, and this model takes only batches of "
            f"{model.fixed_batch}: export it with a free batch size."
        )
    start = first_input(x)
    objective.settle(x)
    result, ends = np.zeros_like(start), np.zeros(len(start), np.float32)
    origins = baselines_of(start, baseline, seed)

    def seeded(values: Mapping[str, Array]) -> dict[str, Array]:
        images, before = (
            {name: values[name][half] for name in objective.fetch}
            for half in (slice(None, len(start)), slice(len(start), None))
        )
        ends[:] += objective.score(before)[0] / len(origins)
        cotangents = objective.score(images)[1]
        return {name: np.concatenate([c, c]) for name, c in cotangents.items()}

    for origin in origins:
        both = copies(x, [start, origin])
        found = model.pullback(both, seeded, ["input"], objective.fetch, "deeplift")[1]["input"]
        result += (start - origin) * found[: len(start)] / len(origins)
    total = result.reshape(len(result), -1).sum(axis=1, dtype=np.float64)
    objective.details["baseline_score"] = ends
    objective.details["convergence_delta"] = total - (objective.scores - ends)
    return result


def lrp(model: Adapter, x: Batch, objective: Objective, *, rule: Rule = "composite") -> Array:
    """Carry the score back as relevance, split at every layer among what it was summed from.

    BatchNorm is merged into the convolution before it; rectifiers and other functions of one
    number let relevance through; maxima pass it to the winner; gates and attention weights count
    as constants.

    Parameters
    ----------
    model : the network, on the ONNX engine.
    rule : of convolutions and dense layers. `"epsilon"`: in proportion to the terms, with a
        stabiliser of 1e-9; `"gamma"`: terms of the result's sign count 1.25 times; `"z-plus"`:
        only terms that push up; `"composite"`: z-plus in convolutions, epsilon in dense layers.
        Where branches are added up, gamma favours those of the sum's sign and z-plus and
        composite leave out the others.

    Source
    ------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation", PLoS ONE 2015; Montavon et al., "Layer-Wise Relevance Propagation: An
    Overview", 2019; for attention Ali et al., 2202.07304.
    """
    if rule not in get_args(Rule):
        raise MethodError(f"rule={rule!r} is unknown: {', '.join(get_args(Rule))}.")
    name: Rectifier = f"lrp-{rule}"  # type: ignore[assignment]
    found = model.pullback(x, objective, ["input"], objective.fetch, name)[1]["input"]
    return first_input(x) * found

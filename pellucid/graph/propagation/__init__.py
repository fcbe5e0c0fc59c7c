"""Relevance carried back by other rules than the derivative: DeepLIFT and LRP.

Both are written as cotangents g such that `value times g` is the relevance of a value. In that
form whatever is linear keeps its derivative, in all its spellings, and only a few operators have a
rule of their own. An operator that is neither linear nor listed is refused.

DeepLIFT runs on a batch of two halves, the images and their baselines, and sends the same g to
both: the multiplier. With `delta` the difference of the halves, a function of one number multiplies
by `delta y / delta x` (the rescale rule); a product `a b`, exactly, by the mean of the other factor
over the halves. So what the inputs get sums to the difference of the scores, normalisation and
attention included. Sources: Shrikumar et al., 1704.02685; the product's rule is the Shapley value
of two factors.

LRP splits the relevance of a sum among its terms. Sources: Bach et al., PLoS ONE 2015; Montavon et
al., "Layer-wise relevance propagation: an overview", 2019; gates and attention weights count as
constants, Ali et al., 2202.07304.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from pellucid.graph.propagation.deeplift import RULES_OF_DEEPLIFT, norm_between, rescale
from pellucid.graph.propagation.lrp import RULES_OF_LRP, constant_deviation, passed_on
from pellucid.graph.propagation.shared import NormRule
from pellucid.graph.rules.table import Rule

__all__ = ["PROPAGATIONS", "Propagation"]


@dataclass(frozen=True)
class Propagation:
    """A way to carry relevance back.

    Attributes
    ----------
    rules : by operator, like `pellucid.graph.rules.RULES`.
    unit : the rule of a function of one number, from (tape, x, y, g).
    norm : the rule of a normalisation that is spelled out.
    merges : whether layers take in what scales and shifts their channels first.
    """

    rules: Mapping[str, Rule]
    unit: Callable[..., ir.Value]
    norm: NormRule
    merges: bool


PROPAGATIONS: dict[str, Propagation] = {
    "deeplift": Propagation(RULES_OF_DEEPLIFT, rescale, norm_between, merges=False),
    **{
        name: Propagation(rules, passed_on, constant_deviation, merges=True)
        for name, rules in RULES_OF_LRP.items()
    },
}

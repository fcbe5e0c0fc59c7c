"""Operators written out in others, so that the rules of those apply.

What tools fused (`FUSED`) is opened wherever it stands; other operators (`EXPANSIONS`) only where
a gradient passes, since the runtime computes them faster whole.
"""

from pellucid.graph.expansions import attention, fused, masks, quantised, recurrent, sampling, steps
from pellucid.graph.expansions.table import EXPANSIONS, FUSED, expand

__all__ = [
    "EXPANSIONS",
    "FUSED",
    "attention",
    "expand",
    "fused",
    "masks",
    "quantised",
    "recurrent",
    "sampling",
    "steps",
]

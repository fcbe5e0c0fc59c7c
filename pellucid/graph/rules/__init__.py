"""One small rule per operator; importing this package fills the table."""

from pellucid.graph.rules import (
    arithmetic,
    convolution,
    indexing,
    linear,
    normalization,
    pooling,
    rectifier,
    reduction,
    sampling,
    shape,
    unary,
)
from pellucid.graph.rules.table import RULES, rule

__all__ = [
    "RULES",
    "arithmetic",
    "convolution",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "rectifier",
    "reduction",
    "rule",
    "sampling",
    "shape",
    "unary",
]

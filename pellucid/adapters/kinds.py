"""The vocabulary of layer kinds, which lives with the layer graph."""

from pellucid.graph.kinds import POOLING, kind_of, layout_of

__all__ = ["POOLING", "kind_of", "layout_of"]

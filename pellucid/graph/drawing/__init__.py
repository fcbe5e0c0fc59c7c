"""Pictures of a layer graph, without Graphviz."""

from pellucid.graph.drawing.draw import FORMATS, STYLES, draw, scene_of

__all__ = ["FORMATS", "STYLES", "draw", "scene_of"]

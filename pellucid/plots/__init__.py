"""Pictures of explanations: the overlay, the figure, the grid."""

from pellucid.plots.colours import HEAT, SIGNED, Blend, colormap_names, overlay
from pellucid.plots.figures import figure, grid
from pellucid.plots.panels import draw
from pellucid.plots.sheet import FIGURE_SUFFIXES, save_figure

__all__ = [
    "FIGURE_SUFFIXES",
    "HEAT",
    "SIGNED",
    "Blend",
    "colormap_names",
    "draw",
    "figure",
    "grid",
    "overlay",
    "save_figure",
]

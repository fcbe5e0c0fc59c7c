"""Heat turned into colours, and laid over an image.

Colours always span 0 to 1, never the range of the map at hand: the same heat has the same colour
in every picture, so that pictures can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import ImageError, MethodError, nearest
from pellucid.plots.sheet import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

__all__ = [
    "HEAT",
    "SIGNED",
    "Blend",
    "Picture",
    "colormap_named",
    "colormap_names",
    "colour_bar",
    "overlay",
    "ticks",
]

HEAT = "inferno"
SIGNED = "RdBu_r"

Blend = Literal["heat", "even"]
Picture = NDArray[np.uint8]


def colormap_names() -> tuple[str, ...]:
    """Return the names of all colour maps."""
    import matplotlib

    return tuple(matplotlib.colormaps)


def colormap_named(name: str | None, signed: bool) -> Colormap:
    """Look a colour map up; without a name, the one for heat or for signed values."""
    import matplotlib

    name = name or (SIGNED if signed else HEAT)
    if name not in matplotlib.colormaps:
        raise MethodError(f"There is no colour map {name!r}. {nearest(name, matplotlib.colormaps)}")
    return matplotlib.colormaps[name]


def overlay(
    image: Picture | None,
    heatmap: Array,
    *,
    colormap: str | None = None,
    alpha: float = 0.5,
    signed: bool = False,
    blend: Blend = "heat",
) -> Picture:
    """Lay a heatmap over a picture.

    `(1 - w) image + w colour(heat)`, where with `blend="heat"` the weight grows with the heat,
    `w = alpha ** (3 ** (1 - 2 heat))`, so that cold regions leave the picture visible: at the
    default alpha the weight is 1/8 at heat 0, 1/2 at heat 1/2 and 0.79 at heat 1. Alpha 0 gives
    the picture and alpha 1 the pure colours, exactly.

    Parameters
    ----------
    image : `(H, W, 3)` or greyscale `(H, W)`, uint8; None gives the pure colours.
    heatmap : `(H, W)` in [0, 1]; without a picture, of any shape.
    colormap : name of a matplotlib colour map; by default `inferno`, signed maps `RdBu_r`.
    alpha : weight of the colours at heat one half, in [0, 1].
    signed : whether 0.5 means zero and heat is the distance from it.
    blend : `"heat"`, or `"even"` for the weight `alpha` everywhere.

    Returns
    -------
    `(H, W, 3)` uint8.

    Raises
    ------
    ImageError : picture and heatmap differ in size, or the picture is not uint8.
    MethodError : unknown colour map or blend, or alpha outside [0, 1].

    Examples
    --------
    >>> heat = np.array([[0, 0.5, 1]], np.float32)
    >>> overlay(np.zeros((1, 3, 3), np.uint8), heat, colormap="gray")[..., 0].tolist()
    [[0, 64, 202]]
    """
    if not 0 <= alpha <= 1:
        raise MethodError(f"alpha={alpha} is outside [0, 1].")
    if blend not in ("heat", "even"):
        raise MethodError(f"blend={blend!r} is unknown: heat or even.")
    colours, weight = _table(colormap_named(colormap, signed), alpha, signed, blend)
    levels = len(colours)
    if image is None:
        return colours[_level(heatmap, levels)]
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(
            f"A picture is (H, W, 3) or (H, W) of uint8; this is {image.shape} of {image.dtype}."
        )
    if image.shape[:2] != heatmap.shape:
        raise ImageError(
            f"The picture is {image.shape[:2]}, the heatmap {heatmap.shape}: "
            "resize one to the size of the other."
        )

    added = (weight * colours).astype(np.float32)  # (levels, 3)
    kept = (1 - weight).astype(np.float32)  # (levels, 1)
    blended = np.empty((*heatmap.shape, 3), np.uint8)
    step = max(1, 2**18 // max(1, heatmap.shape[1]))  # the temporaries stay in the cache
    for start in range(0, len(blended), step):
        rows = slice(start, start + step)
        level = _level(heatmap[rows], levels)
        mixed = image[rows] * kept[level] + added[level]
        blended[rows] = np.rint(mixed, out=mixed)
    return blended


def _table(
    colormap: Colormap, alpha: float, signed: bool, blend: Blend
) -> tuple[Picture, NDArray[np.float64]]:
    """Return the colours `(levels, 3)` of a colour map and their weights `(levels, 1)`."""
    colours = colormap(np.arange(colormap.N), bytes=True)[:, :3]
    heat = np.linspace(0, 1, colormap.N)[:, None]
    strength = np.abs(2 * heat - 1) if signed else heat
    weight = np.power(alpha, 3 ** (1 - 2 * strength) if blend == "heat" else np.ones_like(heat))
    return np.asarray(colours, np.uint8), weight


def _level(heatmap: Array, levels: int) -> NDArray[np.intp]:
    """Index into a table of colours, rounded the way matplotlib does."""
    return np.clip(np.nan_to_num(heatmap) * levels, 0, levels - 1).astype(np.intp)


# ---- one axes ------------------------------------------------------------------------------------


def ticks(signed: bool) -> list[str]:
    """Label both ends and the middle of a scale."""
    return ["\N{MINUS SIGN}1", "0", "1"] if signed else ["0", "0.5", "1"]


def colour_bar(axes: Axes, colormap: str | None, signed: bool, vertical: bool = True) -> None:
    """Draw the scale of the heat."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), colormap_named(colormap, signed))
    orientation = "vertical" if vertical else "horizontal"
    bar = axes.figure.colorbar(scale, cax=axes, orientation=orientation)
    bar.set_ticks([0, 0.5, 1], labels=ticks(signed))
    bar.ax.tick_params(labelsize=SMALL, width=0.5, length=2.5)
    bar.outline.set_linewidth(0.5)

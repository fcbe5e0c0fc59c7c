"""An explanation by parts of the image: which superpixels speak for the target, and how surely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import MethodError
from pellucid.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RegionExplanation"]

Sign = Literal["positive", "negative", "both"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RegionExplanation(Explanation):
    """What a perturbation method found.

    Methods without superpixels (RISE, occlusion, Sobol) leave `segments`, `weights` and what
    belongs to them at None.

    Attributes
    ----------
    segments : superpixel of every pixel of the heatmap's grid, 0 to K - 1, or -1 where the
        network does not look; int32.
    weights : of the superpixels, `(K,)` float64, in units of the score.
    standard_errors : of the weights, `(K,)`.
    intercept : score that the method gives to the image with everything hidden.
    r2 : share of the variance of the scores that the weights explain.
    local_prediction : score that intercept and weights give to the image itself.
    rank_stability : rank correlation to expect between this answer and that of another seed.
    certainty : probability that the top superpixels are the top superpixels.
    settled : whether the stated confidence was reached; None where none was asked for.
    predictions : how many predictions it took.
    facts : further numbers of the method.
    """

    segments: NDArray[np.int32] | None = None
    weights: NDArray[np.float64] | None = None
    standard_errors: NDArray[np.float64] | None = None
    intercept: float | None = None
    r2: float | None = None
    local_prediction: float | None = None
    rank_stability: float | None = None
    certainty: float | None = None
    settled: bool | None = None
    predictions: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    another: Callable[[Any], RegionExplanation] | None = None

    _ARRAYS = ("segments", "weights", "standard_errors")
    _NUMBERS = (
        "intercept", "r2", "local_prediction", "rank_stability", "certainty", "settled",
        "predictions", "facts",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._ARRAYS:
            array = getattr(self, name)
            if array is not None:
                view = np.asarray(array, np.int32 if name == "segments" else np.float64).view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    # ---- regions -----------------------------------------------------------------------------

    def of(self, target: Any) -> RegionExplanation:
        """Explain another class; what the network said already is not asked again.

        Raises
        ------
        MethodError : this explanation was read from a file.
        """
        if self.another is None:
            raise MethodError("This explanation was read from a file: the network is not at hand.")
        return self.another(target)

    def ranking(self, sign: Sign = "both") -> list[int]:
        """Return the superpixels from the largest magnitude of weight to the smallest.

        Parameters
        ----------
        sign : only those that speak for (`"positive"`) or against (`"negative"`) the target.
        """
        if self.weights is None:
            raise MethodError(f"{self.method} has no superpixels; look at the heatmap.")
        if sign not in ("positive", "negative", "both"):
            raise MethodError(f"sign={sign!r} is unknown: 'positive', 'negative' or 'both'.")
        order = np.argsort(-np.abs(self.weights), kind="stable")
        wanted = {"positive": self.weights > 0, "negative": self.weights < 0}.get(
            sign, np.ones(len(order), bool)
        )
        return [int(k) for k in order if wanted[k]]

    def regions(
        self, top: int = 5, *, sign: Sign = "positive", minimum: float = 0.0
    ) -> NDArray[np.bool_]:
        """Mark the pixels of the superpixels that matter most.

        Parameters
        ----------
        top : how many superpixels at most.
        sign : `"positive"`, `"negative"` or `"both"`.
        minimum : least magnitude of weight.

        Returns
        -------
        mask : on the heatmap's grid.
        """
        chosen = self.ranking(sign)[:top]
        assert self.segments is not None
        assert self.weights is not None
        return np.isin(self.segments, [k for k in chosen if abs(self.weights[k]) >= minimum])

    # ---- pictures and files ------------------------------------------------------------------

    def plot(
        self,
        ax: Axes | None = None,
        *,
        colormap: str | None = None,
        alpha: float = 0.5,
        signal: Array | None = None,
    ) -> Figure:
        """Draw kept regions, weights, the top superpixels and how sure they are.

        As `Explanation.plot`; on given axes, or without superpixels, the overlay alone.
        """
        if ax is not None or self.segments is None or self.heatmap.ndim != 2:
            return super().plot(ax, colormap=colormap, alpha=alpha, signal=signal)
        from pellucid.plots.regions import region_figure

        return region_figure(self, colormap=colormap, alpha=alpha)

    def summary(self) -> list[str]:
        """Say in sentences how the answer came about and how sure it is."""
        reused = self.facts.get("reused")
        told = [f"{self.predictions} predictions" + (f", {reused} of them known" if reused else "")]
        top = self.facts.get("top_segments")
        if self.certainty is not None and top:
            told.append(f"the top {top} regions are the top {top} with {_surely(self.certainty)}")
        if self.rank_stability is not None:
            kind = "correlation" if self.weights is None else "rank correlation"
            told.append(f"{kind} with another seed about {self.rank_stability:.2f}")
        if self.r2 is not None:
            told.append(f"the weights explain {self.r2:.0%} of the score's changes")
        return told

    def _facts(self) -> dict[str, Any]:
        from pellucid.explanation import _plain

        return super()._facts() | {name: _plain(getattr(self, name)) for name in self._NUMBERS}

    def _arrays(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self._ARRAYS}
        return super()._arrays() | {k: v for k, v in own.items() if v is not None}

    def to_dict(self) -> dict[str, Any]:
        """As `Explanation.to_dict`; with weights and their errors, and the superpixels' number."""
        from pellucid.explanation import _plain

        return super().to_dict() | {
            "weights": _plain(self.weights),
            "standard_errors": _plain(self.standard_errors),
            "segments": None if self.weights is None else len(self.weights),
        }


def _surely(certainty: float) -> str:
    return "more than 99% certainty" if certainty > 0.99 else f"{certainty:.0%} certainty"

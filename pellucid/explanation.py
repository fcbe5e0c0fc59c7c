"""What every method returns: the map, what it explains, and how it came about."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pellucid.adapters.base import Array
from pellucid.errors import (
    ImageError,
    LoadError,
    MethodError,
    PellucidError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "Explanation", "replacing"]

SUFFIXES = (".png", ".pdf", ".svg", ".npz", ".json")
FORMAT = 1
WRITTEN_OUT = 4096  # arrays of up to this many elements appear in JSON number by number


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanation:
    """A map of what mattered to a network, with everything needed to repeat it.

    `numpy.asarray(explanation)` is the heatmap. The arrays are read-only.

    Attributes
    ----------
    attribution : raw values at the method's own resolution: `(h, w)` for class activation maps,
        `(C, H, W)` for pixel methods, `(L,)` or `(D, H, W)` for 1-D and 3-D inputs. float32.
    heatmap : `(H, W)` on the image's grid (or `(L,)`, `(D, H, W)`), in [0, 1]. float32.
    method : name of the method, such as `"grad-cam"`.
    score : the value that was explained.
    probability : of the target's class, where it is one.
    target : index of the class, index into the output, or None where it was no single element.
    label : name of the class.
    space : what the score is: `"logit"` or `"probability"`.
    layer : the layer, or layers, at which the method looked.
    layer_reason : why that layer, if the library chose it.
    options : the method's options.
    provenance : model hash, source, framework, versions, engine, preprocessing, seed, seconds.
    image : the picture, `(H, W, 3)` uint8, or None.
    top : the best predictions, each `(index, label, score)`.
    notes : warnings in words.
    details : what the method found besides the map, by name; plain values.
    signed : whether the heatmap has a sign: 0.5 then means zero.
    """

    attribution: Array
    heatmap: Array
    method: str
    score: float
    target: int | tuple[int, ...] | None = None
    label: str | None = None
    probability: float | None = None
    space: str = "logit"
    layer: str | tuple[str, ...] | None = None
    layer_reason: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    image: NDArray[np.uint8] | None = None
    top: tuple[tuple[int, str | None, float], ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    signed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "attribution", _read_only(self.attribution))
        object.__setattr__(self, "heatmap", _read_only(self.heatmap))
        heatmap = self.heatmap
        if not 1 <= heatmap.ndim <= 3 or not heatmap.size:
            raise MethodError(
                f"A heatmap is (L,), (H, W) or (D, H, W) and not empty; this is {heatmap.shape}."
            )
        if not (heatmap.min() >= 0 and heatmap.max() <= 1):  # so that NaN is caught as well
            raise MethodError(
                f"The heatmap of {self.method} holds values outside [0, 1], or NaN: does the "
                "network return finite values for this image?"
            )
        if self.space not in ("logit", "probability"):
            raise MethodError(f"space={self.space!r} is unknown: logit or probability.")
        if self.image is None:
            return
        image = np.asarray(self.image)
        if image.dtype != np.uint8 or image.shape != (*heatmap.shape, 3):
            raise ImageError(
                f"The picture of an explanation is {(*heatmap.shape, 3)} uint8, on the grid of "
                f"the heatmap; this is {image.shape} {image.dtype}."
            )
        object.__setattr__(self, "image", _read_only(image, np.uint8))

    # ---- words -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What was explained: the label, or the target in words."""
        if self.label:
            return self.label
        if self.target is None:
            return "custom target"
        return f"class {self.target}" if isinstance(self.target, int) else f"output {self.target}"

    @property
    def score_text(self) -> str:
        """The score for a title: the probability if there is one, else `logit 12.3`."""
        if self.probability is None and self.space == "logit":
            return f"logit {self.score:.3g}"
        shown = self.score if self.probability is None else self.probability
        return f"{shown:.2f}" if not 0 < shown < 0.005 else f"{shown:.1e}"

    @property
    def place(self) -> str:
        """The layer for a subtitle: `" at layer4"`, or nothing."""
        layers = (self.layer,) if isinstance(self.layer, str) else self.layer or ()
        return " at " + ", ".join(layers) if layers else ""

    def __repr__(self) -> str:
        """Name the method, the target, the score and the layer."""
        name = repr(self.label) if self.label else self.name
        return f"<Explanation {self.method} of {name} {self.score_text}{self.place}>"

    # ---- pictures ----------------------------------------------------------------------------

    def plot(
        self,
        ax: Axes | None = None,
        *,
        colormap: str | None = None,
        alpha: float = 0.5,
        signal: Array | None = None,
    ) -> Figure:
        """Draw the explanation, on given axes or in a figure of its own.

        Parameters
        ----------
        ax : matplotlib axes that receive the overlay alone; by default a new figure shows the
            picture beside the overlay, with title and colour bar. pyplot is not involved.
        colormap, alpha : as for `overlay`.
        signal : values to draw beneath the map of a 1-D or 3-D input, of the heatmap's shape.

        Returns
        -------
        The matplotlib `Figure`.
        """
        from pellucid import plots

        if ax is None:
            return plots.figure(self, colormap=colormap, alpha=alpha, signal=signal)
        plots.draw(ax, self, colormap=colormap, alpha=alpha, signal=signal)
        figure = ax.get_figure(root=True)
        assert figure is not None
        return figure

    def overlay(self, colormap: str | None = None, alpha: float = 0.5) -> NDArray[np.uint8]:
        """Lay the heatmap over the picture: `(H, W, 3)` uint8.

        The weight of the colours grows with the heat; alpha 0 is the picture and alpha 1 the
        pure colours. Without a picture the result is the pure colours. See
        `pellucid.plots.overlay`, which can also blend evenly.
        """
        from pellucid import plots

        return plots.overlay(
            self.image, self.heatmap, colormap=colormap, alpha=alpha, signed=self.signed
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Give the heatmap."""
        return np.array(self.heatmap, dtype=dtype, copy=copy)

    # ---- files -------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels as plain values that JSON can hold.

        Arrays are `{"shape", "dtype", "minimum", "maximum", "values"}`. The values are nested
        lists of the shortest decimals that give the same float32 back, or None for arrays of
        more than 4096 elements, which `.npz` holds. NaN and infinities become None. Options
        that are no plain values are named by their type, functions by their name.
        """
        picture = None if self.image is None else {"shape": list(self.image.shape)}
        return {
            **self._facts(),
            "attribution": _described(self.attribution),
            "heatmap": _described(self.heatmap),
            "image": picture,
        }

    def _facts(self) -> dict[str, Any]:
        keys = ("index", "label", "score")
        return {
            "format": FORMAT,
            "method": self.method,
            "target": _plain(self.target),
            "label": self.label,
            "score": _plain(self.score),
            "probability": _plain(self.probability),
            "space": self.space,
            "layer": _plain(self.layer),
            "layer_reason": self.layer_reason,
            "signed": bool(self.signed),
            "options": _plain(self.options),
            "provenance": _plain(self.provenance),
            "top": [dict(zip(keys, _plain(entry), strict=True)) for entry in self.top],
            "notes": list(self.notes),
            "details": _plain(self.details),
        }

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "attribution": self.attribution,
            "heatmap": self.heatmap,
            "image": self.image,
        }
        return {name: array for name, array in arrays.items() if array is not None}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the explanation, whole or not at all.

        Parameters
        ----------
        path : `.png`, `.pdf` and `.svg` hold the figure, `.npz` everything at full precision
            (see `load`), `.json` what `to_dict` gives.

        Returns
        -------
        The path.

        Raises
        ------
        UnsupportedError : another suffix.
        PellucidError : the folder is missing or the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise UnsupportedError(
                f"{path.name}: an explanation is saved as {', '.join(SUFFIXES)}, "
                f"not as {path.suffix or 'a file without suffix'}."
            )
        if suffix == ".json":
            with replacing(path) as file:
                file.write(json.dumps(self.to_dict(), indent=2, allow_nan=False).encode() + b"\n")
        elif suffix == ".npz":
            facts = np.array(json.dumps(self._facts(), allow_nan=False))
            with replacing(path) as file:
                np.savez_compressed(file, explanation=facts, **self._arrays())
        else:
            from pellucid import plots

            plots.save_figure(self.plot(), path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read back what `save` wrote as `.npz`.

        The arrays come back bit for bit. Options and provenance come back as JSON holds them:
        tuples among them as lists. Nothing in the file is run.

        Raises
        ------
        LoadError : the file is missing, is damaged, or holds no explanation.
        """
        path = Path(path)
        advice = "`Explanation.load` reads the .npz files that `Explanation.save` writes."
        try:
            with np.load(path, allow_pickle=False) as archive:
                fields: dict[str, Any] = dict(archive)
            fields |= json.loads(str(fields.pop("explanation")[()]))
            if fields.pop("format") != FORMAT:
                raise LoadError(f"{path} was written by another version of Pellucid.")
            if fields["score"] is None:
                fields["score"] = math.nan
            for name in ("target", "layer", "notes"):
                if isinstance(fields[name], list):
                    fields[name] = tuple(fields[name])
            fields["top"] = tuple((e["index"], e["label"], e["score"]) for e in fields["top"])
            return _kind_of(fields, cls)(**fields)
        except FileNotFoundError as error:
            raise LoadError(f"There is no file {path}. {advice}") from error
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
            EOFError,
        ) as error:
            raise LoadError(f"{path} holds no explanation. {advice}") from error


def _kind_of(fields: Mapping[str, Any], otherwise: type[Explanation]) -> type[Explanation]:
    """Tell from the fields of a file which explanation it holds."""
    if "predictions" not in fields:
        return otherwise
    from pellucid.region_explanation import RegionExplanation

    return RegionExplanation


def _read_only(array: Any, dtype: Any = np.float32) -> NDArray[Any]:
    view = np.asarray(array, dtype).view()
    view.flags.writeable = False
    return view


def _described(array: Array) -> dict[str, Any]:
    written = array.size <= WRITTEN_OUT
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "minimum": _plain(array.min()) if array.size else None,
        "maximum": _plain(array.max()) if array.size else None,
        "values": _shortest(array) if written else None,
    }


def _shortest(array: Array) -> Any:
    if array.ndim:
        return [_shortest(row) for row in array]
    return float(str(array)) if np.isfinite(array) else None


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.float32 | np.float16):
        value = float(str(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        if value.size <= WRITTEN_OUT:
            return _plain(value.tolist())
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else f"<{type(value).__qualname__}>"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` only once it is whole.

    Raises
    ------
    PellucidError : the folder is missing or the file cannot be written; an older file of that
        name is then as it was.
    """
    if not path.parent.is_dir():
        raise PellucidError(f"{path} cannot be written: make the folder {path.parent} first.")
    unfinished = path.parent / f".pellucid-{secrets.token_hex(8)}"
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise PellucidError(f"{path} cannot be written: {reason}.") from error
    finally:
        unfinished.unlink(missing_ok=True)

"""The ways in which pictures are usually preprocessed, and how usual each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pellucid.adapters.base import Port
from pellucid.images import PRESETS, Preprocess

__all__ = ["Candidate", "candidates", "in_words", "sizes", "with_size"]

_SIZES = (32, 64, 96, 128, 160, 224, 299, 384)
# Log-odds of each against the commonest.
_VALUES = {
    "0-1": 0.0, "imagenet": 0.0, "tf": 0.0, "0-255": 0.0, "caffe": -0.5, "standardise": -1.5,
    "centred": -2.0,
}  # fmt: skip
_SWAPPED, _GREY = -2.0, -2.5
_CENTRED = {"mean": (0.5,), "std": (1.0,)}
_DEFAULT = (224, 224)  # what `Preprocess` takes for an input of any size
_UNUSUAL_SIZE = -1.0
_SCALED_INSIDE = 3.0  # for plain pixels, where the network has layers that scale them


@dataclass(frozen=True)
class Candidate:
    """A preprocessing to try.

    Attributes
    ----------
    spec : as `pellucid.load(preprocess=)` and, as JSON, `--preprocess` take it.
    preprocess : the same, made.
    habit : log-odds of how common it is, the size included.
    usual : the same without the size.
    """

    spec: str | Mapping[str, Any]
    preprocess: Preprocess
    habit: float
    usual: float


def candidates(port: Port, *, scaled_inside: bool = False) -> list[Candidate]:
    """Return what to try for an input with one or three channels.

    Parameters
    ----------
    port : the input.
    scaled_inside : whether the network begins with layers that scale.
    """
    found = []
    for name, habit in _VALUES.items():
        habit += _SCALED_INSIDE if scaled_inside and name == "0-255" else 0.0
        if port.shape[1] == 1:
            if name not in ("imagenet", "caffe"):
                found.append(_candidate(name, None, port, habit))
            continue
        natural = "bgr" if name == "caffe" else "rgb"
        for channels in ("rgb", "bgr", "grey3"):
            odd = _GREY if channels == "grey3" else _SWAPPED if channels != natural else 0.0
            found.append(_candidate(name, channels, port, habit + odd))
    return found


def _candidate(name: str, channels: str | None, port: Port, habit: float) -> Candidate:
    spec: dict[str, Any] = dict(_CENTRED) if name == "centred" else {"name": name}
    natural = PRESETS.get(name, {}).get("channels", "rgb")
    if channels is not None and channels != natural:
        spec["channels"] = channels
        mean, std = (PRESETS.get(name, {}).get(key) for key in ("mean", "std"))
        if channels != "grey3":  # each channel keeps its own mean
            spec |= {k: v[::-1] for k, v in (("mean", mean), ("std", std)) if v and len(v) > 1}
    given: str | dict[str, Any] = name if spec == {"name": name} else spec
    made = Preprocess.of(given, port)
    assert isinstance(made, Preprocess)
    return Candidate(given, made, habit, habit)


def with_size(candidate: Candidate, size: tuple[int, int]) -> Candidate:
    """Return the candidate for pictures resized to (h, w)."""
    spec = candidate.spec
    if size != _DEFAULT:
        named = {"name": spec} if isinstance(spec, str) else dict(spec)
        spec = {**{k: v for k, v in named.items() if k != "size"}, "size": size}
    elif not isinstance(spec, str):
        spec = {key: value for key, value in spec.items() if key != "size"}
        spec = spec["name"] if spec.keys() == {"name"} else spec
    usual = candidate.usual + (0.0 if size == _DEFAULT else _UNUSUAL_SIZE)
    return replace(
        candidate, spec=spec, preprocess=replace(candidate.preprocess, size=size), habit=usual
    )


def sizes(port: Port, pictures: Sequence[Any]) -> list[tuple[int, int]]:
    """Return sizes to try for an input that takes any: the usual ones and the pictures' own."""
    own = {picture.shape[:2] for picture in pictures}
    tried = {(side, side) for side in _SIZES}
    if len(own) == 1 and max(next(iter(own))) <= max(_SIZES):
        tried |= own
    fixed = port.shape[2:]
    fitted = {
        tuple(side if f is None else f for side, f in zip(size, fixed, strict=True))
        for size in tried
    }
    return sorted((height, width) for height, width in fitted)


def in_words(preprocess: Preprocess) -> str:
    """Write a preprocessing as a formula, `pixel / 127.5 - 1, RGB`."""
    orders = {"rgb": "RGB", "bgr": "BGR", "grey": "grey", "grey3": "grey in three channels"}
    formula = _formula(preprocess)
    size = f", {preprocess.size[0]} x {preprocess.size[1]}" if preprocess.size else ""
    return f"{formula}, {orders.get(preprocess.channels, 'channels as they are')}{size}"


def _formula(preprocess: Preprocess) -> str:
    if preprocess.standardise:
        return "each picture minus its own mean, divided by its own deviation"
    factor = "pixels" if preprocess.scale == 1 else f"pixels / {1 / preprocess.scale:.6g}"
    mean = ", ".join(f"{value:g}" for value in preprocess.mean)
    std = ", ".join(f"{value:g}" for value in preprocess.std)
    shifted = factor
    if any(preprocess.mean):
        shifted = f"{factor} - {mean}" if len(preprocess.mean) == 1 else f"{factor} - ({mean})"
    if any(value != 1 for value in preprocess.std):
        return f"({shifted}) / ({std})" if len(preprocess.std) > 1 else f"({shifted}) / {std}"
    ranges = {(1.0, 0.0): "0..255", (1 / 255, 0.0): "0..1", (1 / 127.5, 1.0): "-1..1"}
    covered = (
        ranges.get((preprocess.scale, preprocess.mean[0])) if len(preprocess.mean) == 1 else ""
    )
    return f"{shifted} ({covered})" if covered else shifted

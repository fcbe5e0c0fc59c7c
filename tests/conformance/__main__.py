"""Run every case through every library and write `docs/conformance.md`."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.conformance.cases import CASES, Case
from tests.conformance.shims import SCALED, SHIMS, scaled

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
PACKAGES = ("captum", "grad-cam", "tf-keras-vis", *(["xplique"] if "xplique" in SHIMS else []))


_WHAT = """\
Networks small enough for paper, and the exact array that each method's paper defines for them:
`tests/conformance/cases.py` holds both, with the reason, and `tests/conformance/shims.py` how each
library is asked. `make conformance` runs all of it and writes this page.

{versions}."""
_HOW = """\
`exact`: equal to 1e-4. `-`: the library has no such method. Maps that a library hands out scaled
are compared with both sides scaled to a maximum of one. Pellucid explains the score before a final
softmax; the PyTorch libraries explain what the network returns."""
_WHY = """\
Guided backpropagation and deconvnet differ where a library looks for certain modules or layers
(`nn.ReLU`, Keras layers whose activation is `relu`) and the rectifier is written another way: then
it silently gives the plain gradient. Grad-CAM differs where pytorch-grad-cam and tf-keras-vis
subtract the smallest value of a map that is positive everywhere, which the paper does not; a
published figure of theirs is had by `like=`. A saturated softmax has no gradient, whatever explains
it. xplique gets a column where it is installed; it wants an older TensorFlow than the others."""


def outcome(case: Case, method: str, library: str) -> tuple[str, str]:
    """Return a mark and, where the answer is another one, a sentence about it."""
    expected = case.expected[method]
    try:
        found = SHIMS[library](case, method)
    except Exception as error:
        return "error", f"raises {type(error).__name__}: {str(error).splitlines()[0][:100]}"
    if found is None:
        return "-", ""
    found = np.asarray(found, np.float32)
    if (library, method) in SCALED:
        expected, found = (scaled(np.maximum(a, 0)) for a in (expected, found))
    if np.allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()):
        return "exact", ""
    return "differs", f"gives {shown(found)}, exact is {shown(expected)}"


def shown(array: np.ndarray) -> str:
    """Write a 2 x 2 array in one line."""
    return "[" + "; ".join(" ".join(f"{v:.3g}" for v in row) for row in array) + "]"


def page() -> str:
    """Run everything and write the page."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Conformance", "", _WHAT.format(versions=versions), "", _HOW, "",
        f"| network | method | {' | '.join(SHIMS)} |", f"|---|---|{'---|' * len(SHIMS)}",
    ]  # fmt: skip
    remarks = []
    for case in CASES:
        for method in case.expected:
            marks = []
            for library in SHIMS:
                mark, words = outcome(case, method, library)
                marks.append(f"**{mark}**" if words else mark)
                if words:
                    remarks.append(f"- **{case.name}, {method}, {library}** {words}.")
            lines.append(f"| {case.name} | {method} | {' | '.join(marks)} |")
    lines += ["", "## The networks", ""]
    lines += [f"- **{case.name}**: {case.why}." for case in CASES]
    lines += ["", "## The differences", "", _WHY, "", *(remarks or ["There are none."]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    PAGE.write_text(page())

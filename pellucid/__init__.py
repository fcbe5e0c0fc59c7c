"""Pellucid explains image models whatever they were written in: Keras, PyTorch, ONNX.

>>> import pellucid
>>> pellucid.explain("model.h5", "cat.jpg").save("explanation.png")  # doctest: +SKIP

Importing this package loads no framework; `load` imports the one that a model needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from pellucid.adapters.base import Adapter as Adapter
    from pellucid.adapters.load import load as load
    from pellucid.candidates import layers as layers
    from pellucid.compiling.compile import compile_explainer
    from pellucid.compiling.compiled import load_explainer as load_explainer
    from pellucid.explainer import explain as explain
    from pellucid.explanation import Explanation as Explanation
    from pellucid.images import Preprocess as Preprocess
    from pellucid.measuring import measure as measure
    from pellucid.methods.targets import Contrast as Contrast
    from pellucid.methods.targets import Counterfactual as Counterfactual
    from pellucid.methods.targets import Detection as Detection
    from pellucid.methods.targets import Region as Region

    compile = compile_explainer  # noqa: A001

__version__ = "0.1.0"

_HOME = {
    "Adapter": "pellucid.adapters.base",
    "Contrast": "pellucid.methods.targets",
    "Counterfactual": "pellucid.methods.targets",
    "Detection": "pellucid.methods.targets",
    "Explanation": "pellucid.explanation",
    "Preprocess": "pellucid.images",
    "Region": "pellucid.methods.targets",
    "compile": "pellucid.compiling.compile",
    "explain": "pellucid.explainer",
    "layers": "pellucid.candidates",
    "load": "pellucid.adapters.load",
    "load_explainer": "pellucid.compiling.compiled",
    "measure": "pellucid.measuring",
}
_OWN_NAME = {"compile": "compile_explainer"}  # where it does not hide the builtin

__all__ = ["PellucidError", "__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), _OWN_NAME.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)

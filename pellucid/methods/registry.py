"""The methods by name, and what the caller of each must know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pellucid.errors import MethodError, nearest
from pellucid.methods import (
    cam,
    conductance,
    forward_cam,
    full_gradient,
    gradient,
    guided_cam,
    matrix_cam,
    path,
    propagation,
    xrai,
)
from pellucid.methods.perturbation import lime, meaningful, occlusion, rise, shapley, sobol

__all__ = ["METHODS", "Method", "method_named"]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes
    ----------
    name : as `pellucid.explain` and the command line take it.
    function : see the methods' own files.
    layer : whether it looks at layers; it then takes their names after the objective.
    pixels : whether it gives `(N, C, *spatial)` over the input; otherwise one map per layer.
    signed : whether the sign of a pixel's value means for or against the target.
    perturbs : whether it asks for predictions of perturbed copies; it then takes a `Subject`.
    asks : whether it asks for many predictions and for no gradient.
    onnx : whether it runs on the ONNX engine alone.
    bends : whether it follows another rule than the derivative at rectifiers.
    like : the libraries whose numbers it can give, and the options that do.
    """

    name: str
    function: Callable[..., Any]
    layer: bool = False
    pixels: bool = True
    signed: bool = False
    perturbs: bool = False
    asks: bool = False
    onnx: bool = False
    bends: bool = False
    like: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"paper": {}})

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The options, with their defaults."""
        return _parameters(self.function)

    @property
    def smoothable(self) -> bool:
        """Whether it can be averaged over noisy copies: it draws none of its own."""
        return "noise" not in self.parameters

    def checked(self, options: Mapping[str, Any], also: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the options, or say which one the method does not have.

        Raises
        ------
        MethodError : an option is unknown, or true or false was wanted.
        """
        known = self.parameters
        for name, value in options.items():
            if name not in known and name not in also:
                raise MethodError(
                    f"{self.name} has no option {name!r}. {nearest(name, [*known, *also])}"
                )
            if isinstance(known.get(name), bool) and not isinstance(value, bool):
                raise MethodError(f"{name}={value!r}: True or False is wanted.")
        return {name: value for name, value in options.items() if name in known}


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def method_named(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    MethodError : there is none of that name; the message offers the nearest.
    """
    if name not in METHODS:
        raise MethodError(f"There is no method {name!r}. {nearest(name, METHODS)}")
    return METHODS[name]


def _like(**like: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name the libraries, and the options that give their numbers; the paper's are the defaults."""
    return {"paper": {}} | {name.replace("_", "-"): options for name, options in like.items()}


def _cam(
    name: str, function: Callable[..., Any], *, asks: bool = False, **like: Mapping[str, Any]
) -> Method:
    return Method(name, function, layer=True, pixels=False, asks=asks, like=_like(**like))


def _asking(name: str, function: Callable[..., Any], **like: Mapping[str, Any]) -> Method:
    return Method(name, function, pixels=False, perturbs=True, asks=True, like=_like(**like))


METHODS = {
    method.name: method
    for method in (
        _cam(
            "grad-cam", cam.grad_cam,
            captum={}, pytorch_grad_cam={}, tf_keras_vis={}, torch_cam={}, xplique={},
        ),
        _cam(
            "grad-cam++", cam.grad_cam_plus_plus,
            pytorch_grad_cam={"formula": "pytorch-grad-cam"},
            tf_keras_vis={"formula": "tf-keras-vis"},
            torch_cam={"formula": "torch-cam"},
            xplique={"formula": "xplique"},
        ),
        _cam("xgrad-cam", cam.xgrad_cam, pytorch_grad_cam={}, torch_cam={"epsilon": 1e-8}),
        _cam("hires-cam", cam.hires_cam, pytorch_grad_cam={}),
        _cam("layer-cam", cam.layer_cam, pytorch_grad_cam={}, tf_keras_vis={}, torch_cam={}),
        _cam("eigen-cam", matrix_cam.eigen_cam, pytorch_grad_cam={"centred": True}),
        _cam("eigengrad-cam", matrix_cam.eigengrad_cam, pytorch_grad_cam={"centred": True}),
        _cam(
            "score-cam", forward_cam.score_cam, asks=True,
            pytorch_grad_cam={"corners": True},
            tf_keras_vis={"corners": True, "softmax": False},
            torch_cam={"scale_first": True},
        ),
        _cam(
            "ablation-cam", forward_cam.ablation_cam, asks=True,
            pytorch_grad_cam={"magnitude": False},
        ),
        _cam("recipro-cam", forward_cam.recipro_cam, asks=True),
        _cam("layer-conductance", conductance.layer_conductance),
        Method("saliency", gradient.saliency, like=_like(captum={}, tf_keras_vis={}, xplique={})),
        Method(
            "input-x-gradient", gradient.input_x_gradient, signed=True,
            like=_like(captum={}, xplique={}),
        ),
        Method(
            "guided-backprop", gradient.guided_backprop, bends=True,
            like=_like(captum={}, pytorch_grad_cam={}, tf_keras_vis={}, xplique={}),
        ),
        Method(
            "deconvnet", gradient.deconvnet, bends=True, like=_like(captum={}, xplique={})
        ),
        Method(
            "integrated-gradients", path.integrated_gradients, signed=True,
            like=_like(captum={}, xplique={"rule": "trapezoid"}),
        ),
        Method("expected-gradients", path.expected_gradients, signed=True),
        Method("blur-ig", path.blur_ig, signed=True),
        Method("guided-ig", path.guided_ig, signed=True),
        Method("xrai", xrai.xrai, pixels=False),
        Method(
            "fullgrad", full_gradient.full_grad, pixels=False, onnx=True,
            like=_like(pytorch_grad_cam={"merged": False, "implicit": False}),
        ),
        Method("deeplift", propagation.deep_lift, signed=True, onnx=True, like=_like(captum={})),
        Method(
            "lrp", propagation.lrp, signed=True, onnx=True, like=_like(captum={"rule": "epsilon"})
        ),
        Method(
            "smoothgrad", gradient.smoothgrad,
            like=_like(
                captum={"samples": 5, "noise": 1.0, "unit": "input", "absolute": True},
                tf_keras_vis={"noise": 0.2},
                xplique={"samples": 50, "noise": 0.2, "unit": "input", "absolute": False,
                         "unbiased": True},
            ),
        ),
        Method(
            "guided-grad-cam", guided_cam.guided_grad_cam, layer=True, bends=True,
            like=_like(captum={"nearest": True}),
        ),
        _asking("lime", lime.lime, lime={}),
        _asking("kernel-shap", shapley.kernel_shap),
        _asking("shapley-sampling", shapley.shapley_sampling),
        _asking("rise", rise.rise),
        _asking(
            "occlusion", occlusion.occlusion,
            captum={"replacement": "zero", "edge": "cut"},
            xplique={"window": 3, "stride": 3, "replacement": "half", "edge": "leave",
                     "overlap": "sum"},
        ),
        _asking("hierarchical-occlusion", occlusion.hierarchical_occlusion),
        _asking("sobol", sobol.sobol),
        _asking("meaningful-perturbation", meaningful.meaningful_perturbation),
    )
}  # fmt: skip

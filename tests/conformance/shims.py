"""How each library is asked: one function per library, from a case and a method to an array.

A shim returns None where the library has no such method. Class activation maps that a library hands
out scaled are compared by shape alone: both sides are scaled to a maximum of one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from tests.conformance.cases import Case
from tests.conformance.networks import keras_network, torch_network
from tests.parity.peers import stand_ins

__all__ = ["SHIMS", "scaled"]

Answer = Any


def scaled(array: Any) -> Any:
    """Scale to a maximum of one."""
    return array / (np.abs(array).max() or 1)


def pellucid_torch(case: Case, method: str) -> Answer:
    """Ask Pellucid about the PyTorch network."""
    import pellucid

    layer = {"layer": "layer"} if method == "grad-cam" else {}
    (one,) = pellucid.explain(torch_network(case), case.x[None, None], method, target=0, **layer)
    return one.attribution.reshape(2, 2)


def pellucid_keras(case: Case, method: str) -> Answer:
    """Ask Pellucid about the Keras network."""
    import pellucid

    layer = {"layer": "layer"} if method == "grad-cam" else {}
    x = case.x[None, :, :, None]
    (one,) = pellucid.explain(keras_network(case), x, method, target=0, **layer)
    return one.attribution.reshape(2, 2)


def captum(case: Case, method: str) -> Answer:
    """Ask captum."""
    import captum.attr as attr
    import torch

    network, x = torch_network(case), torch.from_numpy(case.x[None, None]).requires_grad_()
    makers: dict[str, Callable[[], Any]] = {
        "saliency": lambda: attr.Saliency(network),
        "input-x-gradient": lambda: attr.InputXGradient(network),
        "integrated-gradients": lambda: attr.IntegratedGradients(network),
        "guided-backprop": lambda: attr.GuidedBackprop(network),
        "deconvnet": lambda: attr.Deconvolution(network),
        "grad-cam": lambda: attr.LayerGradCam(network, network.layer),
    }
    found = makers[method]().attribute(x, target=0).detach().numpy().reshape(2, 2)
    return np.maximum(found, 0) if method == "grad-cam" else found  # its own ReLU is off


def pytorch_grad_cam(case: Case, method: str) -> Answer:
    """Ask pytorch-grad-cam."""
    import torch

    with stand_ins():
        from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    network, x = torch_network(case), torch.from_numpy(case.x[None, None])
    if method == "guided-backprop":
        return GuidedBackpropReLUModel(network, "cpu")(x, 0).reshape(2, 2)
    if method != "grad-cam":
        return None
    with GradCAM(network, [network.layer]) as cam:
        return cam(x, [ClassifierOutputTarget(0)])[0]


def tf_keras_vis(case: Case, method: str) -> Answer:
    """Ask tf-keras-vis, which replaces a final softmax as its guides advise."""
    with stand_ins():
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.saliency import Saliency
        from tf_keras_vis.utils.model_modifiers import GuidedBackpropagation, ReplaceToLinear
        from tf_keras_vis.utils.scores import CategoricalScore
    model, x, score = keras_network(case), case.x[None, :, :, None], CategoricalScore(0)
    if method == "grad-cam":
        peer = Gradcam(model, model_modifier=ReplaceToLinear())
        return peer(score, x, penultimate_layer="layer", seek_penultimate_conv_layer=False)[0]
    modifiers = {"saliency": [ReplaceToLinear()],
                 "guided-backprop": [ReplaceToLinear(), GuidedBackpropagation()]}  # fmt: skip
    if method not in modifiers:
        return None
    peer = Saliency(model, model_modifier=modifiers[method])
    keep = {"keepdims": True, "normalize_map": False, "gradient_modifier": None}
    if method == "saliency":
        keep.pop("gradient_modifier")
    return np.asarray(peer(score, x, **keep)).reshape(2, 2)


def xplique(case: Case, method: str) -> Answer:
    """Ask xplique, of the version 2.0."""
    from xplique import attributions

    model, x = keras_network(case), case.x[None, :, :, None]
    makers: dict[str, Callable[[], Any]] = {
        "saliency": lambda: attributions.Saliency(model),
        "input-x-gradient": lambda: attributions.GradientInput(model),
        "integrated-gradients": lambda: attributions.IntegratedGradients(model),
        "guided-backprop": lambda: attributions.GuidedBackprop(model),
        "deconvnet": lambda: attributions.DeconvNet(model),
        "grad-cam": lambda: attributions.GradCAM(model, conv_layer="layer"),
    }
    return np.asarray(makers[method]()(x, np.eye(2, dtype=np.float32)[:1])).reshape(2, 2)


SHIMS: dict[str, Callable[[Case, str], Answer]] = {
    "Pellucid (PyTorch)": pellucid_torch,
    "Pellucid (Keras)": pellucid_keras,
    "captum": captum,
    "pytorch-grad-cam": pytorch_grad_cam,
    "tf-keras-vis": tf_keras_vis,
    **({"xplique": xplique} if find_spec("xplique") else {}),  # it wants an older TensorFlow
}
SCALED = {("pytorch-grad-cam", "grad-cam"), ("tf-keras-vis", "grad-cam")}  # handed out so

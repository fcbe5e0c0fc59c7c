"""Images and kernels in the order of axes in which PyTorch is fastest on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Copies", "kernels_of", "pays", "with_channels_last"]

# Numbers of kernels, per number of the images, whose copying costs what the order saves: one image
# through a ResNet-50 takes as long either way, two are faster.
_BREAK_EVEN = 60


Kernels = dict[Tensor, str]  # each with the name of a convolution that it is of


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.device.type == "cpu"


def with_channels_last(tensor: Tensor) -> Tensor:
    """Copy an image so that the channels of a pixel lie side by side."""
    if not _is_image(tensor):
        return tensor
    # `contiguous` would leave the strides of a single channel as they are.
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def kernels_of(module: nn.Module) -> Kernels:
    """Find the kernels that PyTorch would copy: those of one pixel need no copy."""
    found: Kernels = {}
    for name, convolution in module.named_modules():
        if isinstance(convolution, nn.Conv2d):
            kernel = convolution._parameters.get("weight")
            if kernel is not None and _gains(kernel):
                found.setdefault(kernel, name)
    return found


def _gains(kernel: Tensor) -> bool:
    plain = type(kernel) is nn.Parameter and not kernel.is_inference()
    lies_otherwise = not kernel.is_contiguous(memory_format=torch.channels_last)
    return plain and kernel.device.type == "cpu" and lies_otherwise


def pays(kernels: Kernels, tensors: Sequence[Tensor]) -> bool:
    """Whether there are images to compute with, and enough of them to copy the kernels for."""
    images = sum(tensor.numel() for tensor in tensors if _is_image(tensor))
    return sum(kernel.numel() for kernel in kernels) < _BREAK_EVEN * images


class Copies:
    """Copies of a module's kernels with channels last.

    PyTorch makes such a copy in every pass, forward and back, where images have their channels
    last: an eighth of the time of a ResNet-50's gradient, of which memory that is kept saves most.
    They are made at every call, since a change by way of `kernel.data` leaves no trace.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}  # by the name of the convolution

    @contextmanager
    def lent(self, kernels: Kernels) -> Iterator[None]:
        """Put the copies into the place of the kernels inside the context."""
        own: list[tuple[Tensor, Tensor]] = []
        try:
            for kernel, name in kernels.items():
                own.append((kernel, kernel.data))
                kernel.data = self._copy(name, kernel.data)
            yield
        finally:
            for changed, data in own:
                changed.data = data

    def _copy(self, name: str, kernel: Tensor) -> Tensor:
        copy = self._kept.get(name)
        if copy is None or copy.shape != kernel.shape or copy.dtype != kernel.dtype:
            with torch.inference_mode(False):  # else no gradient could pass it later
                copy = torch.empty_like(kernel, memory_format=torch.channels_last)
            self._kept[name] = copy
        return copy.copy_(kernel)

"""What PyTorch computes faster in another way, to rounding the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

__all__ = ["ORDERED", "SCALED", "Shortcuts", "Ways"]

Ways = Mapping[Any, Callable[..., Tensor]]  # by PyTorch's function

# Numbers of a kernel, per number of the images, whose copying costs more than the order saves:
# from 1 to 8 the times of a dozen networks differ little.
_BREAK_EVEN = 4


class Shortcuts(TorchFunctionMode):
    """Computes functions in the ways that are given for them."""

    def __init__(self, ways: Ways) -> None:
        super().__init__()
        self.ways = ways

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, or what is faster."""
        return self.ways.get(func, func)(*args, **(kwargs or {}))


# ---- convolutions ---------------------------------------------------------------------------


def _ordered(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def ordered(
        input: Tensor,  # noqa: A002  PyTorch's names: a caller may use them
        weight: Tensor,
        *others: Any,
        **options: Any,
    ) -> Tensor:
        return convolution(*_in_order(input, weight), *others, **options)

    return ordered


def _in_order(image: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Lay the channels of a pixel side by side wherever that pays for copying the kernel.

    On a CPU it does in the first half of most networks, with large images and small kernels: a
    ResNet-50 takes nine tenths of the time forward and five sixths forward and back. The result
    keeps the order, up to the next convolution. A kernel of one pixel lies in both orders at
    once, so such a convolution takes the image as it comes.
    """
    follows = image.ndim != 4 or kernel.shape[2:] == (1, 1)
    if follows or not (_on_cpu(image) and _on_cpu(kernel)):
        return image, kernel
    pays = kernel.numel() < _BREAK_EVEN * image.numel()
    order = torch.channels_last if pays else torch.contiguous_format
    # Left to PyTorch, the kernel would be copied once forward and once back.
    return image.contiguous(memory_format=order), kernel.contiguous(memory_format=order)


def _on_cpu(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"


_operators = torch.ops.aten  # which exported and scripted programs call

ORDERED: Ways = {
    convolution: _ordered(convolution)
    for convolution in (
        torch.conv2d,
        torch.conv_transpose2d,
        _operators.conv2d.default,
        _operators.conv_transpose2d.input,
        _operators._convolution.default,
    )
}


# ---- batch normalisation --------------------------------------------------------------------


def _scaled(
    input: Tensor,  # noqa: A002  PyTorch's names
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise in evaluation by what that is there: a factor and a summand per channel.

    Autograd then multiplies the gradient by the factor, in a third of the time of the kernel for
    training, which evaluation shares: a tenth of a ResNet-50's gradient.
    """
    statistics = (running_mean, running_var)
    constants = [v for v in (*statistics, weight, bias) if v is not None]
    if (
        not input.requires_grad
        or training
        or running_mean is None
        or running_var is None
        or any(v.requires_grad or v.dtype != input.dtype for v in constants)
    ):
        return batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    channels = (-1, *(1,) * (input.ndim - 2))
    return torch.addcmul(shift.view(channels), input, scale.view(channels))


def _scaled_operator(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    _cudnn: bool,
) -> Tensor:
    return _scaled(input, running_mean, running_var, weight, bias, training, momentum, eps)


SCALED: Ways = {batch_norm: _scaled, _operators.batch_norm.default: _scaled_operator}

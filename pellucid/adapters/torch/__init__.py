"""PyTorch modules behind the adapter interface."""

from pellucid.adapters.torch.adapter import TorchAdapter

__all__ = ["TorchAdapter"]

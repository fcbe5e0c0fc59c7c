"""PyTorch modules behind the adapter interface: live ones, `.pt2`, TorchScript, weight files."""

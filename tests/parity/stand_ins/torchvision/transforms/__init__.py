"""The names that pytorch-grad-cam imports; its Grad-CAM uses none of them."""

Compose = Normalize = ToTensor = None

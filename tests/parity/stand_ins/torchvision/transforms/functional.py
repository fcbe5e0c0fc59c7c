"""The name that pytorch-grad-cam imports; its Grad-CAM does not use it."""

resize = None

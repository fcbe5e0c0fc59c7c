"""Stands in for OpenCV: what pytorch-grad-cam's Grad-CAM uses of it, through torch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

COLORMAP_JET = 2  # a default argument, which is not used


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize floats (h, w) to `size`, (W, H), as `INTER_LINEAR` does: half-pixel, bilinear."""
    planes = torch.from_numpy(image)[None, None]
    resized = F.interpolate(planes, size[::-1], mode="bilinear", align_corners=False)
    return resized[0, 0].numpy()

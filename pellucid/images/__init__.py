"""Pictures in and heatmaps back: reading, preprocessing, and the way onto the picture again.

`read_image` opens anything that is a picture, a `Preprocess` turns one into what the network
takes and carries a heatmap back onto the picture's grid, and `prepare` does it for whatever a
user holds. No framework is imported here.
"""

from pellucid.images.batches import Prepared, prepare
from pellucid.images.function import CallablePreprocess
from pellucid.images.ports import InputPort
from pellucid.images.preprocessing import PRESETS, Preprocess, Preprocessing
from pellucid.images.reading import as_array, display_picture, read_image
from pellucid.images.resampling import resize_map

__all__ = [
    "PRESETS",
    "CallablePreprocess",
    "InputPort",
    "Prepared",
    "Preprocess",
    "Preprocessing",
    "as_array",
    "display_picture",
    "prepare",
    "read_image",
    "resize_map",
]

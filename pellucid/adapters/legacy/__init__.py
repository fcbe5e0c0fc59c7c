"""Opens Keras files of any year: `read` takes one apart, `build` makes a Keras 3 model of it."""

from pellucid.adapters.legacy.model import LegacyModel, Need, Producer
from pellucid.adapters.legacy.read import read

__all__ = ["LegacyModel", "Need", "Producer", "read"]

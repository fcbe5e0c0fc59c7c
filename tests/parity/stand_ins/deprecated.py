"""Stands in for the package of this name, with which tf-keras-vis marks its old functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def deprecated(**_options: Any) -> Callable[[Any], Any]:
    return lambda function: function

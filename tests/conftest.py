"""What every test shares: quiet, reproducible frameworks and the twin networks."""

from __future__ import annotations

import gc
import os
import tempfile
from functools import cache

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share what one of them has exported
    _cache = tempfile.TemporaryDirectory(prefix="pellucid-tests-")
    os.environ["PELLUCID_CACHE"] = _cache.name
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.twins import TWINS, Twin


def pytest_collection_finish() -> None:
    """Spare every test what the imported frameworks cost it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    # An export reads the source of every operator of torchlib again, a quarter of its time.
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))
    gc.collect()
    gc.freeze()  # a garbage collection walks over all their objects, for a second


@pytest.fixture(params=sorted(TWINS))
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each twin network in turn.

    For some of them: `@pytest.mark.parametrize("twin", ["plain", "fused"], indirect=True)`.
    """
    return TWINS[request.param]

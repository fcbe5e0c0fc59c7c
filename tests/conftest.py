"""What every test shares: quiet, reproducible frameworks and the twin networks."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from contextlib import suppress
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
    """Spare the tests what imported frameworks cost each of them, a third of their time."""
    if "torch" in sys.modules:
        with suppress(ImportError):  # elsewhere in another version: then it is only slower
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            # Every export reads the source of all operators of torchlib again.
            ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))
    gc.collect()
    gc.freeze()  # millions of objects that every full collection would walk over
    gc.set_threshold(10_000, 20, 100)


@pytest.fixture(params=sorted(TWINS))
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each twin network in turn.

    For some of them: `@pytest.mark.parametrize("twin", ["plain", "fused"], indirect=True)`.
    """
    return TWINS[request.param]

"""What every test shares: quiet, reproducible frameworks and the twin networks."""

from __future__ import annotations

import os
import tempfile

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share what one of them has exported
    _cache = tempfile.TemporaryDirectory(prefix="pellucid-tests-")
    os.environ["PELLUCID_CACHE"] = _cache.name
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.twins import TWINS, Twin


@pytest.fixture(params=sorted(TWINS))
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each twin network in turn.

    For some of them: `@pytest.mark.parametrize("twin", ["plain", "fused"], indirect=True)`.
    """
    return TWINS[request.param]

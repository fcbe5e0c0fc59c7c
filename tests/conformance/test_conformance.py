"""Pellucid is exact on every case, and the published table says what the libraries do."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.conformance.__main__ import PAGE, outcome
from tests.conformance.cases import CASES
from tests.conformance.shims import SHIMS

ROWS = [(case, method) for case in CASES for method in case.expected]


@pytest.mark.parametrize(("case", "method"), ROWS, ids=lambda one: getattr(one, "name", one))
@pytest.mark.parametrize("library", ["Pellucid (PyTorch)", "Pellucid (Keras)"])
def test_pellucid_is_exact(case, method, library):
    found = np.asarray(SHIMS[library](case, method))
    np.testing.assert_allclose(found, case.expected[method], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["captum", "pytorch-grad-cam", "tf-keras-vis"])
def test_the_published_table_holds(library):
    column = 2 + list(SHIMS).index(library)
    table = {
        (cells[0], cells[1]): cells[column]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and (cells := re.findall(r"[^|*]+", line.replace(" | ", "|")))
    }
    table = {key: value.strip() for key, value in table.items()}
    for case, method in ROWS:
        published = next(
            value for (name, of), value in table.items()
            if (name.strip("| "), of.strip()) == (case.name, method)
        )  # fmt: skip
        assert outcome(case, method, library)[0] == published

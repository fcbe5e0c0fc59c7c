"""Cases of the backend test suite of onnx, differentiated; `backend_suite.py` measures all."""

from __future__ import annotations

import pytest

from tests.graph.backend_suite import REFUSED, questions

EVERY = 9  # a sample; `python -m tests.graph.backend_suite` takes all


@pytest.mark.slow
def test_a_sample_of_onnx_own_cases_has_the_derivative_of_differences() -> None:
    answers = {q.name: (q.operators, q.answer()) for q in questions(every=EVERY)}
    assert len(answers) > 70
    wrong = {name: answer for name, (_, answer) in answers.items()
             if answer != "right" and not answer.startswith("refused")}  # fmt: skip
    assert not wrong
    unknown = {name: answer for name, (operators, answer) in answers.items()
               if answer != "right" and not operators & REFUSED}  # fmt: skip
    assert not unknown
    assert sum(answer == "right" for _, answer in answers.values()) > 0.9 * len(answers)

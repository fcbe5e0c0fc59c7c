# Two commands do everything: `make demo` and `make test`. Both make .venv on first use.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt

.PHONY: demo test lint types contracts tests bench conformance clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py demo

test: lint types contracts tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

contracts: $(INSTALLED)
	$(BIN)/lint-imports --no-logo

# Two workers with one computing thread each; a test file stays in one worker.
tests: $(INSTALLED)
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=25

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.grad_cam

# The cases of tests/conformance against the other libraries; writes docs/conformance.md.
conformance: $(INSTALLED)
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m tests.conformance

$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch  # first and alone, so that nothing else chooses its build
	$(PIP) -r requirements/dev.txt -e ".[cpu,torch,tensorflow]"
	$(PIP) --no-deps -r requirements/without-dependencies.txt
	touch $@

clean:
	rm -rf .venv demo build *.egg-info

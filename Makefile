# Two commands do everything: `make demo` and `make test`. Both make .venv on first use.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
NODE := tests/node/node_modules/installed
BROWSER := .venv/browser/installed
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
tests: $(INSTALLED) $(NODE) $(BROWSER)
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations=25

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.grad_cam
	$(BIN)/python -m benchmarks.compiled
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.lime

# The cases of tests/conformance against the other libraries; writes docs/conformance.md.
conformance: $(INSTALLED)
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m tests.conformance

$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch  # first and alone, so that nothing else chooses its build
	$(PIP) -r requirements/dev.txt -e ".[cpu,torch,tensorflow]"
	$(PIP) --no-deps -r requirements/without-dependencies.txt
	touch $@

# onnxruntime for JavaScript, with its library in the package; without npm its test is skipped.
$(NODE): tests/node/package.json
	-npm install --prefix tests/node --ignore-scripts --no-audit --no-fund --no-package-lock --silent \
		&& touch $@

# A Chromium for the tests of HTML pages. Its npm package carries the program itself, packed;
# where there is no npm, the tests take the system's chromium or are skipped, and say so.
$(BROWSER): requirements/browser.txt | $(INSTALLED)
	mkdir -p $(@D)
	-cd $(@D) && npm install --silent --no-save --ignore-scripts $$(cat $(CURDIR)/$<) && \
	TMPDIR=$$PWD AWS_EXECUTION_ENV=nodejs20.x node --input-type=module -e \
	'import("@sparticuz/chromium").then(c => c.default.executablePath())' && \
	rm -r node_modules && touch $(@F)

clean:
	rm -rf .venv demo build tests/node/node_modules *.egg-info

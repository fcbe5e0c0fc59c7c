"""Networks small enough for paper, what each method must give on them, and who does.

`cases.py` holds the networks as data, weights, image and the exact array of every method, worked
out by hand. A shim of about ten lines lets a library answer. `make conformance` runs all of them
and writes `docs/conformance.md`.
"""

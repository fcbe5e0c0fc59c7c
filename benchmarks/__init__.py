"""Benchmarks: Pellucid beside its peers and beside the bare framework, in one run."""

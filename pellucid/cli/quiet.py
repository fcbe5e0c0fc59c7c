"""Keeping the frameworks' start-up talk off the terminal, and nothing else.

TensorFlow logs from C++ before its own log level applies, so no environment variable silences
it. While a framework is at work, stderr runs through a small process that drops the lines known
to be talk and passes everything else on at once. It is a process, not a thread or a file, so that
the last words of an interpreter that crashes get through as well.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

__all__ = ["debugging", "quiet", "talk_aside"]

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "KERAS_BACKEND": "tensorflow",  # a keras.json that names another is no reason to fail
}
_FILTER = r"""
import re, sys
talk = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \S+:\d+\] "  # "I0000 00:00:17.2  9 port.cc:1] "
    rb"|\S* ?\S*\[W:onnxruntime:"
)
for line in sys.stdin.buffer:
    if not talk.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def debugging() -> bool:
    """Whether the user asked to see everything."""
    return bool(os.environ.get("PELLUCID_DEBUG"))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Python warnings and log messages below errors."""
    if debugging():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def talk_aside() -> Iterator[None]:
    """Keep what frameworks and a model's own code say out of the results.

    What they print goes to stderr, where the lines that frameworks log as they start are dropped
    and everything else passes through.
    """
    with redirect_stdout(sys.stderr):
        talkative = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1")
        filtering = None if talkative or debugging() else _filter()
        if filtering is None:
            yield
            return
        process, saved = filtering
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            with suppress(subprocess.TimeoutExpired):  # a child of ours may hold it open
                process.communicate(timeout=2)


def _filter() -> tuple[subprocess.Popen[bytes], int] | None:
    """Start the filter; return it and the stderr of before, or None where it cannot be had."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER],
            stdin=subprocess.PIPE,
            stderr=saved,
            start_new_session=True,  # Ctrl-C is not for it
        )
    except OSError:
        os.close(saved)
        return None
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    return process, saved

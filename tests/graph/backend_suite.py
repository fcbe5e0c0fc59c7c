"""The operator cases of onnx's own backend test suite, as questions for derivatives.

A case is a question if onnxruntime runs it and gives the outputs that the case expects, and if its
float outputs change smoothly with its float inputs at the values that the case has: in float64 the
difference quotients to both sides agree, and not all of them are zero. The oracle is the reference
evaluator of onnx in float64.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from pellucid.errors import UnsupportedError
from pellucid.graph.pullback import OnnxPullback
from pellucid.graph.runtime import session

TOLERANCE = 1e-3  # of the gradient's length, in float32 and often through a softmax
_STEPS = (2e-6, 1e-6)
_TRIALS = 3
_OTHER_DOMAINS = ("ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.preview", "ai.onnx.training")
# Inputs that hold parameters or statistics, which are never differentiated.
_DATA = {
    "Conv": 1, "ConvTranspose": 1, "DeformConv": 1, "GRU": 1, "LSTM": 1, "RNN": 1, "Resize": 1,
    "InstanceNormalization": 1, "GroupNormalization": 1, "LayerNormalization": 1,
    "RMSNormalization": 1, "RoiAlign": 1, "PRelu": 1, "Dropout": 1, "Clip": 1, "Upsample": 1,
    "DequantizeLinear": 1, "QuantizeLinear": 1, "Pad": 1, "OneHot": 3, "RotaryEmbedding": 1,
    "BatchNormalization": 1, "CausalConvWithState": 1, "GridSample": 1, "TensorScatter": 2,
    "Col2Im": 1, "CumProd": 1,
}  # fmt: skip


# Operators of which some cases are refused: the message names them.
REFUSED = {"If", "Attention", "BatchNormalization", "LSTM", "TensorScatter"}
# The reference evaluator leaves the magnitude out of |x|, which shows where x is 0.
NOT_ASKED = {"test_l1normalization_axis_last"}


@dataclass(frozen=True)
class Question:
    """A case with what its derivative should be.

    Attributes
    ----------
    name : of the case.
    model : as the case has it; inputs that are parameters are constants.
    inputs : as the case has them.
    wrt : names of the inputs whose gradient is asked for.
    cotangents : by output.
    directions, slopes : some random directions over all of `wrt`, and the derivative along each.
    """

    name: str
    model: onnx.ModelProto
    inputs: Mapping[str, np.ndarray]
    wrt: tuple[str, ...]
    cotangents: Mapping[str, np.ndarray]
    directions: tuple[Mapping[str, np.ndarray], ...]
    slopes: tuple[float, ...]

    @property
    def operators(self) -> set[str]:
        """The operators of the case."""
        return {node.op_type for node in self.model.graph.node}

    def answer(self) -> str:
        """Differentiate: "right", "wrong", "refused: why" or "failed: why"."""
        try:
            with quiet():
                pullback = OnnxPullback(self.model, list(self.cotangents), list(self.wrt))
                feeds = {n: a for n, a in self.inputs.items() if n in pullback.inputs}
                seeds = {n: a.astype(np.float32) for n, a in self.cotangents.items()}
                _, gradients = pullback(feeds, lambda _: seeds)
        except UnsupportedError as error:
            return f"refused: {error}"
        except Exception as error:
            return f"failed: {type(error).__name__}: {error}"
        norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64)))
                           for g in gradients.values()))  # fmt: skip
        for direction, slope in zip(self.directions, self.slopes, strict=True):
            found = sum(float(np.sum(gradients[n] * d)) for n, d in direction.items())
            if not abs(found - slope) <= TOLERANCE * max(norm, abs(slope)) + 1e-6:
                return f"wrong: {found} is not {slope}"
        return "right"


def questions(only: str = "", every: int = 1) -> Iterator[Question]:
    """Yield the cases that have a derivative, or a sample of them."""
    with quiet():
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    for case in cases[::every]:
        if (
            only in case.name
            and case.name not in NOT_ASKED
            and (question := _question(case)) is not None
        ):
            yield question


def _question(case: Any) -> Question | None:
    graph = case.model.graph
    if any(node.domain in _OTHER_DOMAINS for node in graph.node):
        return None
    if not case.data_sets or not graph.input or not graph.output:
        return None
    given, _ = case.data_sets[0]
    names = [value.name for value in graph.input]
    if not all(isinstance(array, np.ndarray) for array in given) or len(given) != len(names):
        return None
    inputs = dict(zip(names, given, strict=True))
    if any(array.dtype.kind not in "fiub" or array.dtype == np.float16 for array in given):
        return None
    kinds = {node.op_type for node in graph.node}
    operator, count = case.name.removeprefix("test_"), len(names)
    for kind, data in _DATA.items():
        if kinds == {kind} or operator.startswith(_snake(kind)):
            count = min(count, data)
    data = names[-1:] if kinds == {"OneHot"} else names[:count]
    wrt = tuple(n for n in data if inputs[n].dtype.kind == "f" and inputs[n].size)
    if not wrt:
        return None
    try:
        with quiet():
            if not _runs(case, inputs):
                return None
            return _measured(case, inputs, wrt, names[count:] if kinds & _DATA.keys() else [])
    except Exception:  # one of the two does not know the operator in these types
        return None


def _runs(case: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether onnxruntime gives what the case expects."""
    found = session(case.model).run(None, dict(inputs))
    return all(
        np.allclose(have, want, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5),
                    equal_nan=True)
        for have, want in zip(found, case.data_sets[0][1], strict=True)
    )  # fmt: skip


def _measured(
    case: Any, inputs: Mapping[str, Any], wrt: tuple[str, ...], parameters: list[str]
) -> Question | None:
    rng = np.random.default_rng(0)
    double = _in_float64(case.model)
    evaluator = ReferenceEvaluator(double)
    exact = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in inputs.items()}
    outputs = [value.name for value in double.graph.output]
    values = dict(zip(outputs, evaluator.run(None, exact), strict=True))
    cotangents = {
        name: rng.standard_normal(value.shape)
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size
    }
    if not cotangents or not all(np.isfinite(values[n]).all() for n in cotangents):
        return None

    def along(direction: Mapping[str, np.ndarray], step: float) -> float:
        moved = {n: exact[n] + step * d for n, d in direction.items()}
        found = dict(zip(outputs, evaluator.run(None, {**exact, **moved}), strict=True))
        return sum(float(np.sum(c * found[n])) for n, c in cotangents.items())

    here = sum(float(np.sum(c * values[n])) for n, c in cotangents.items())
    directions, slopes = [], []
    for _ in range(_TRIALS):
        direction, slope = {n: rng.standard_normal(inputs[n].shape) for n in wrt}, np.nan
        for step in _STEPS:
            ahead, behind = along(direction, step), along(direction, -step)
            earlier, slope = slope, (ahead - behind) / (2 * step)
        bend = (ahead - 2 * here + behind) / step
        if not np.isfinite(slope) or abs(bend) > 1e-3 * abs(slope) + 1e-4:
            return None  # a kink or a jump
        if abs(slope - earlier) > 2e-4 * abs(slope) + 1e-6:
            return None  # a jump, or the evaluator computes in float32
        directions.append(direction)
        slopes.append(slope)
    if not any(abs(slope) > 1e-6 for slope in slopes):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for value in [value for value in model.graph.input if value.name in parameters]:
        model.graph.input.remove(value)
        model.graph.initializer.append(numpy_helper.from_array(inputs[value.name], value.name))
    kept = {n: a for n, a in inputs.items() if n not in parameters}
    return Question(case.name, model, kept, wrt, cotangents, tuple(directions), tuple(slopes))


def _in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float32 made float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT:
            kind.elem_type = TensorProto.DOUBLE
    tensors = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return double


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                yield
            finally:
                logging.disable(logging.NOTSET)


def main() -> None:
    """Answer all questions and print the shares, and what is not right."""
    found = [(question.name, question.answer()) for question in questions()]
    right = sum(answer == "right" for _, answer in found)
    for name, answer in found:
        if answer != "right":
            print(f"{name}: {answer}")  # noqa: T201
    print(f"{right} of {len(found)} right: {right / len(found):.1%}")  # noqa: T201


if __name__ == "__main__":
    main()

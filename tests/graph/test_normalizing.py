"""Normalisation is found in whichever way it is spelled, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from pellucid.graph.gradient import path
from pellucid.graph.normalizing import find_norms
from pellucid.graph.prepare import prepare
from pellucid.graph.runtime import session

SCALE, BIAS = (0.5, -2.0, 1.5, 3.0), (1.0, 0.0, -1.0, 0.25)
CONSTANTS = {
    "float[4] s": SCALE, "float[4] b": BIAS, "float e": (1e-3,), "float two": (2,),
    "float minus": (-1,), "float four": (4,), "int64[1] last": (-1,), "int64[2] lasts": (1, 2),
    "int64[1] first": (1,), "int64[1] tokens": (-1,), "int64[4] picture": (1, -1, 4, 1),
    "int64[3] others": (0, 2, 3), "int64[1] flat": (0,), "int64[1] channels": (4,),
    "int64[4] pairs": (0, 6, 2, 2), "int64[2] within": (1, 3), "int64[3] grouped": (0, 2, -1),
    "float[2] ones": (1, 1), "float[2] zeros": (0, 0), "float little": (1e-12,),
    "float much": (1e12,), "float three": (3,),
}  # fmt: skip
TAIL = "t = Mul(n, s) y = Add(t, b)"
CENTRED = "m = ReduceMean <keepdims=1> (x, last) d = Sub(x, m) "
SQUARES = "q = Mul(x, x) v = ReduceMean <keepdims=1> (q, last) a = Add(v, e) r = Sqrt(a) "
SPELLINGS = {
    "by a quotient": CENTRED + "q = Pow(d, two) v = ReduceMean <keepdims=1> (q, last) "
    "a = Add(v, e) r = Sqrt(a) n = Div(d, r) " + TAIL,
    "Keras": "m = ReduceMean <keepdims=1> (x, last) k = Neg(m) d = Sub(x, m) q = Mul(d, d) "
    "v = ReduceMean <keepdims=1> (q, last) a = Add(v, e) r = Sqrt(a) i = Reciprocal(r) "
    "p = Mul(i, s) y1 = Mul(x, p) y2 = Mul(k, p) y3 = Add(y2, b) y = Add(y1, y3)",
    "mean of squares": "m = ReduceMean <keepdims=1> (x, last) x2 = Mul(x, x) "
    "q = ReduceMean <keepdims=1> (x2, last) m2 = Mul(m, m) v = Sub(q, m2) a = Add(v, e) "
    "r = Sqrt(a) d = Sub(x, m) n = Div(d, r) " + TAIL,
    "by sums": "u = ReduceSum <keepdims=1> (x, last) m = Div(u, four) d = Sub(x, m) "
    "q = ReduceSumSquare <keepdims=1> (d, last) v = Div(q, four) a = Add(v, e) r = Sqrt(a) "
    "n = Div(d, r) " + TAIL,
    "tf_keras": """
        z = Shape(x) pic = Reshape(x, picture) m = ReduceMean <keepdims=1> (pic, others)
        d = Sub(pic, m) q = ReduceSumSquare <keepdims=0> (d, others) v = Div(q, four)
        mean = Squeeze(m, others) rows = Shape(mean) one = Expand(hot, rows)
        none = Expand(cold, rows)
        n4 = BatchNormalization <epsilon = 0.001> (pic, one, none, mean, v)
        n = Reshape(n4, z) """ + TAIL,
    "the negative": CENTRED + "q = Mul(d, d) v = ReduceMean <keepdims=1> (q, last) "
    "a = Add(v, e) r = Sqrt(a) o = Div(d, r) n = Mul(o, minus) " + TAIL,
    "without scale": CENTRED + "q = Mul(d, d) v = ReduceMean <keepdims=1> (q, last) "
    "a = Add(v, e) r = Sqrt(a) y = Div(d, r)",
    "of the channels of tokens": SQUARES.replace("last", "first") + "n = Div(x, r) " + TAIL,
    "of instances": CENTRED.replace("last", "first") + "q = Mul(d, d) "
    "v = ReduceMean <keepdims=1> (q, first) a = Add(v, e) r = Sqrt(a) n = Div(d, r) " + TAIL,
    "of groups": """
        z = Shape(x) f = Reshape(x, pairs) m = ReduceMean <keepdims=1> (f, within)
        d = Sub(f, m) q = Mul(d, d) v = ReduceMean <keepdims=1> (q, within) a = Add(v, e)
        r = Sqrt(a) i = Div(d, r) n = Reshape(i, z) """ + TAIL,
    "of groups, by instances": """
        z = Shape(x) tt = Transpose <perm = [0, 2, 1]> (x) f = Reshape(tt, grouped)
        i = InstanceNormalization <epsilon = 0.001> (f, ones, zeros) tz = Shape(tt)
        u = Reshape(i, tz) n = Transpose <perm = [0, 2, 1]> (u) """ + TAIL,
    "root mean square": SQUARES + "n = Div(x, r) " + TAIL,
    "LLaMA": "q = Pow(x, two) v = ReduceMean <keepdims=1> (q, last) a = Add(v, e) r = Sqrt(a) "
    "i = Reciprocal(r) n = Mul(x, i) " + TAIL,
    "Keras, by the deviation": CENTRED + "q = Mul(d, d) v = ReduceMean <keepdims=1> (q, last) "
    "a = Add(v, e) r = Sqrt(a) i = Reciprocal(r) n = Mul(x, i) " + TAIL,
    "unit length": "k = ReduceL2 <keepdims=1> (x, last) c = Clip(k, little) n = Div(x, c) " + TAIL,
    "unit length, Keras": "q = Mul(x, x) k = ReduceSum <keepdims=1> (q, last) r = Sqrt(k) "
    "i = Reciprocal(r) c = Min(i, much) n = Mul(x, c) " + TAIL,
    "epsilon beside the deviation": CENTRED + "q = Mul(d, d) "
    "v = ReduceMean <keepdims=1> (q, last) a = Sqrt(v) r = Add(a, e) n = Div(d, r) " + TAIL,
    "the mean of all but one": CENTRED + "q = Mul(d, d) u = ReduceSum <keepdims=1> (q, last) "
    "v = Div(u, three) a = Add(v, e) r = Sqrt(a) n = Div(d, r) " + TAIL,
    "of two axes": "m = ReduceMean <keepdims=1> (x, lasts) d = Sub(x, m) q = Mul(d, d) "
    "v = ReduceMean <keepdims=1> (q, lasts) a = Add(v, e) r = Sqrt(a) n = Div(d, r) " + TAIL,
}  # fmt: skip
PAIRS = (1, None, 2)
KINDS = {  # numbers together along each axis, whether the mean is taken off, and in the deviation
    "of the channels of tokens": ((1, None, 1), False, False),
    "of instances": ((1, None, 1), True, True),
    "of groups": (PAIRS, True, True),
    "of groups, by instances": (PAIRS, True, True),
    "root mean square": ((1, 1, None), False, False),
    "LLaMA": ((1, 1, None), False, False),
    "Keras, by the deviation": ((1, 1, None), False, True),
    "unit length": ((1, 1, None), False, False),
    "unit length, Keras": ((1, 1, None), False, False),
    "of two axes": ((1, None, None), True, True),
}
EPSILONS = {"unit length": 0, "unit length, Keras": 0, "the mean of all but one": 0.75e-3}
FACTORS = {"unit length": 0.5, "unit length, Keras": 0.5, "the mean of all but one": 0.75**0.5}
OTHERS = {
    "by the sum": "m = ReduceSum <keepdims=1> (x, last) n = Div(x, m) " + TAIL,
    "of one image by another": "q = Mul(x, x) v = ReduceMean <keepdims=1> (q, flat) "
    "a = Add(v, e) r = Sqrt(a) n = Div(x, r) " + TAIL,
    "only centred": CENTRED + "n = Identity(d) " + TAIL,
    "of the magnitude": CENTRED + "q = Abs(d) v = ReduceMean <keepdims=1> (q, last) "
    "a = Add(v, e) n = Div(d, a) " + TAIL,
    "of something else": CENTRED + "w = Tanh(x) q = Mul(d, d) v = ReduceMean <keepdims=1> "
    "(q, last) a = Add(v, e) r = Sqrt(a) g = Sub(w, m) n = Div(g, r) " + TAIL,
}


def model(body, batch="N"):
    given = [f"{name} = {{{', '.join(map(str, values))}}}" for name, values in CONSTANTS.items()]
    given += ["float hot = {1}", "float cold = {0}"]
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        graph (float[{batch},6,4] given) => (float[{batch},6,4] out) <{", ".join(given)}>
        {{ x = Tanh(given) {body} out = Tanh(y) }}
    """)


def found(body, named=(), batch="N"):
    graph = prepare(model(body, batch)).graph
    values = {value.name: value for node in graph for value in node.outputs}
    nodes, _ = path(graph, graph.outputs, graph.inputs)
    spelled = find_norms(nodes, graph, {values[name] for name in named})
    return {root.outputs[0].name: one for root, one in spelled.items()}


def by_definition(spelled, x):
    """Normalise block by block, as slowly as it is defined."""
    norm, y = spelled.norm, np.empty_like(x)
    scale, bias = (
        np.broadcast_to(one, x.shape)
        for one in (norm.scale, 0 if spelled.bias is None else spelled.bias)
    )
    blocks = [block or size for block, size in zip(norm.blocks, x.shape, strict=True)]
    for first in np.ndindex(*(size // block for size, block in zip(x.shape, blocks, strict=True))):
        at = tuple(slice(i * b, (i + 1) * b) for i, b in zip(first, blocks, strict=True))
        part = x[at]
        away = part - part.mean() if norm.about_mean else part
        deviation = np.sqrt((away**2).mean() + norm.epsilon) + norm.beside
        y[at] = scale[at] * (part - part.mean() * norm.centred) / deviation + bias[at]
    return y


def answers(body, x, batch="N"):
    graph = onnx.load_from_string(model(body, batch).SerializeToString())
    graph.graph.output[0].name = graph.graph.node[-1].input[0]
    del graph.graph.node[-1]
    return session(graph).run(None, {"given": x})[0]


X = 3 * np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)


def kind(spelled):
    norm = spelled.norm
    return norm.blocks, norm.centred, norm.about_mean


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_is_found_and_answers_the_same(spelling):
    spelled = found(SPELLINGS[spelling])
    assert list(spelled) == ["y"]
    expected = KINDS.get(spelling, ((1, 1, None), True, True))
    assert kind(spelled["y"]) == expected
    assert spelled["y"].norm.epsilon + spelled["y"].norm.beside == pytest.approx(
        EPSILONS.get(spelling, 1e-3)
    )
    sign = {"the negative": -1.0, "without scale": None}.get(spelling, 1.0)
    if sign is not None:
        scale = np.broadcast_to(sign * np.asarray(SCALE), spelled["y"].norm.scale.shape)
        share = FACTORS.get(spelling, 1.0)
        np.testing.assert_allclose(spelled["y"].norm.scale, share * scale, rtol=1e-5)
    right = answers(SPELLINGS[spelling], X)
    np.testing.assert_allclose(by_definition(spelled["y"], np.tanh(X)), right, atol=3e-6)


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_none_is_not_found(other):
    assert not found(OTHERS[other])


def test_a_tensor_that_is_asked_for_is_inside_of_none():
    body = SPELLINGS["by a quotient"]
    assert list(found(body, ["n"])) == ["n"]  # what follows it is scale and shift
    assert not found(body, ["v"])


def test_a_fixed_batch_of_one_is_drawn_often_enough():
    body = SPELLINGS["Keras"]
    spelled = found(body, batch="1")
    right = answers(body, X[:1], "1")
    np.testing.assert_allclose(by_definition(spelled["y"], np.tanh(X[:1])), right, atol=3e-6)


def test_two_after_the_other_are_two():
    body = SPELLINGS["Keras"].replace("y = Add(y1, y3)", "o = Add(y1, y3)")
    second = "mm = ReduceMean <keepdims=1> (o, last) dd = Sub(o, mm) qq = Mul(dd, dd) "
    second += "vv = ReduceMean <keepdims=1> (qq, last) aa = Add(vv, e) rr = Sqrt(aa) "
    assert list(found(body + " " + second + "y = Div(dd, rr)")) == ["o", "y"]

"""Layer normalisation is found in whichever way it is spelled, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from pellucid.graph.normalizing import name_layer_norms
from pellucid.graph.prepare import prepare
from pellucid.graph.runtime import session

SCALE, BIAS = (0.5, -2.0, 1.5, 3.0), (1.0, 0.0, -1.0, 0.25)
CONSTANTS = {
    "float[4] s": SCALE, "float[4] b": BIAS, "float e": (1e-3,), "float two": (2,),
    "float minus": (-1,), "float four": (4,), "int64[1] last": (-1,), "int64[2] lasts": (1, 2),
    "int64[1] first": (1,), "int64[1] tokens": (-1,), "int64[4] picture": (1, -1, 4, 1),
    "int64[3] others": (0, 2, 3), "int64[1] flat": (0,), "int64[1] channels": (4,),
}  # fmt: skip
TAIL = "t = Mul(n, s) y = Add(t, b)"
CENTRED = "m = ReduceMean <keepdims=1> (x, last) d = Sub(x, m) "
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
    "of two axes": "m = ReduceMean <keepdims=1> (x, lasts) d = Sub(x, m) q = Mul(d, d) "
    "v = ReduceMean <keepdims=1> (q, lasts) a = Add(v, e) r = Sqrt(a) n = Div(d, r) " + TAIL,
}  # fmt: skip
OTHERS = {
    "over tokens": SPELLINGS["by a quotient"].replace("last", "first"),
    "root mean square": "q = Mul(x, x) v = ReduceMean <keepdims=1> (q, last) a = Add(v, e) "
    "r = Sqrt(a) n = Div(x, r) " + TAIL,
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


def answers(graph, x):
    found = session(onnx.load_from_string(graph.SerializeToString())).run(None, {"given": x})
    return found[0]


def rewritten(body, named=(), batch="N"):
    import onnx_ir as ir

    graph = prepare(model(body, batch))
    name_layer_norms(graph, set(named))
    return graph, ir.to_proto(graph)


X = 3 * np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_operator_is_left_and_answers_the_same(spelling):
    _, proto = rewritten(SPELLINGS[spelling])
    assert [node.op_type for node in proto.graph.node] == ["Tanh", "LayerNormalization", "Tanh"]
    np.testing.assert_allclose(answers(proto, X), answers(model(SPELLINGS[spelling]), X), atol=3e-6)
    (_, norm, _) = proto.graph.node
    assert norm.output[0] == "y"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in norm.attribute}
    assert attributes["epsilon"] == pytest.approx(1e-3)
    assert attributes["axis"] == (-2 if spelling == "of two axes" else -1)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    sign = {"the negative": -1.0}.get(spelling, 1.0)
    if spelling != "without scale":
        expected = np.broadcast_to(sign * np.asarray(SCALE), constants[norm.input[1]].shape)
        np.testing.assert_allclose(constants[norm.input[1]], expected, rtol=1e-5)


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_none_stays(other):
    graph, _ = rewritten(OTHERS[other])
    assert not any(node.op_type == "LayerNormalization" for node in graph.graph)


def test_a_tensor_that_is_asked_for_keeps_its_way_to_the_outputs():
    body = SPELLINGS["by a quotient"]
    graph, _ = rewritten(body, ["n"])  # what follows it is scale and shift
    kinds = [node.op_type for node in graph.graph]
    assert kinds == ["Tanh", "LayerNormalization", "Mul", "Add", "Tanh"]
    graph, _ = rewritten(body, ["v"])
    assert not any(node.op_type == "LayerNormalization" for node in graph.graph)


def test_a_fixed_batch_of_one_has_rows_enough():
    body = SPELLINGS["Keras"]
    _, proto = rewritten(body, batch="1")
    assert [node.op_type for node in proto.graph.node] == ["Tanh", "LayerNormalization", "Tanh"]
    np.testing.assert_allclose(answers(proto, X[:1]), answers(model(body, "1"), X[:1]), atol=3e-6)


def test_two_after_the_other_are_two():
    body = SPELLINGS["Keras"].replace("y = Add(y1, y3)", "o = Add(y1, y3)")
    second = "mm = ReduceMean <keepdims=1> (o, last) dd = Sub(o, mm) qq = Mul(dd, dd) "
    second += "vv = ReduceMean <keepdims=1> (qq, last) aa = Add(vv, e) rr = Sqrt(aa) "
    _, proto = rewritten(body + " " + second + "y = Div(dd, rr)")
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == ["Tanh", "LayerNormalization", "LayerNormalization", "Tanh"]

"""Operations that old files hold in the graph itself, as a table from their names to Keras's.

`tf.keras` saved calls of TensorFlow functions between layers (TFOpLambda, SlicingOpLambda,
TensorFlowOpLayer), Keras 3 saves its own operations. A name that is not in the table is never
looked up anywhere else: the file would decide which function runs.

Every entry takes `keras.ops` first, so that this module imports no framework.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pellucid.adapters.legacy.model import Config

__all__ = ["OPERATIONS", "operation_of", "slices"]

Ops = Any


def operation_of(raw: Config) -> Config | None:
    """Return `{"function": key, "arguments": constants}` if a layer is a saved operation."""
    kind, config = raw["class_name"], raw.get("config") or {}
    if kind in ("TFOpLambda", "SlicingOpLambda", "ClassMethod"):
        symbol = str(config.get("function") or config.get("symbol") or "").removeprefix("tf.")
        return {"function": symbol.removeprefix("compat.v1."), "arguments": {}}
    if kind in ("InstanceProperty", "InstanceMethod"):
        name = config.get("attr_name") or config.get("method_name")
        return {"function": f"{kind}:{name}", "arguments": {}}
    if kind == "TensorFlowOpLayer":
        node = config.get("node_def")
        if isinstance(node, str):
            try:
                node = json.loads(node)
            except ValueError:
                node = None
        if not isinstance(node, dict):
            return {"function": "TensorFlowOpLayer", "arguments": {}}
        constants = config.get("constants") or {}
        attributes = {k: _attribute(v) for k, v in (node.get("attr") or {}).items()}
        return {
            "function": f"raw:{node.get('op')}",
            "arguments": {"constants": constants, "attributes": attributes},
        }
    module = raw.get("module")
    unnamed = module is None and "trainable" not in config  # HDF5 leaves modules out
    unnamed = unnamed and any(isinstance(node, dict) for node in raw.get("inbound_nodes") or ())
    known = unnamed and f"keras:{kind}" in OPERATIONS
    if known or re.match(r"keras(\.src)?\.ops", str(module)):
        constants = {k: v for k, v in config.items() if k not in ("name", "dtype")}
        return {"function": f"keras:{kind}", "arguments": constants}
    return None


def _attribute(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, dict) and "i" in value:
        return [int(i) for i in value["i"]]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def slices(value: Any) -> Any:
    """Read an index as TensorFlow or Keras 3 saves it."""
    if isinstance(value, (list, tuple)):
        return tuple(slices(item) for item in value)
    if isinstance(value, dict):
        if "start" in value:
            return slice(value["start"], value["stop"], value["step"])
        inner = value.get("config", value.get("value"))
        if value.get("class_name") in ("slice", "__slice__"):
            return slice(*(inner.values() if isinstance(inner, dict) else inner or [None]))
        if value.get("class_name") == "__ellipsis__":
            return Ellipsis
        return slices(inner)
    return Ellipsis if value == "..." else value


def _list(value: Any) -> Any:
    """A shape or a list of axes that may have been saved as a constant of any form."""
    if isinstance(value, dict):
        value = value.get("value", value.get("config"))
    return value


def _transpose(o: Ops, a: Any, perm: Any = None, conjugate: bool = False) -> Any:
    return o.transpose(a, axes=_list(perm))


def _pad(
    o: Ops, tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0
) -> Any:
    value = constant_values if mode.lower() == "constant" else None
    return o.pad(tensor, _list(paddings), mode=mode.lower(), constant_values=value)


def _resize(o: Ops, images: Any, size: Any, method: str = "bilinear", antialias: bool = False,
            preserve_aspect_ratio: bool = False) -> Any:  # fmt: skip
    return o.image.resize(images, _list(size), interpolation=method, antialias=antialias,
                          data_format="channels_last")  # fmt: skip


def _pool(kind: str) -> Callable[..., Any]:
    def pool(o: Ops, x: Any, ksize: Any, strides: Any, padding: str, **_: Any) -> Any:
        both = (ksize, strides)
        sizes, steps = (v[1:3] if isinstance(v, list) and len(v) == 4 else v for v in both)
        return getattr(o, kind)(x, sizes, steps, padding.lower(), data_format="channels_last")

    return pool


def _l2_normalize(o: Ops, x: Any, axis: Any = None, epsilon: float = 1e-12, **_: Any) -> Any:
    total = o.sum(o.square(x), axis=axis, keepdims=True)
    return x * o.rsqrt(o.maximum(total, epsilon))


def _batch_norm(o: Ops, x: Any, mean: Any, variance: Any, offset: Any, scale: Any,
                variance_epsilon: float) -> Any:  # fmt: skip
    return (x - mean) * scale / o.sqrt(variance + variance_epsilon) + offset


def _reduce(kind: str) -> Callable[..., Any]:
    def reduce(
        o: Ops, input_tensor: Any, axis: Any = None, keepdims: bool = False, **_: Any
    ) -> Any:
        return getattr(o, kind)(input_tensor, axis=_list(axis), keepdims=bool(keepdims))

    return reduce


def _cast(o: Ops, x: Any, dtype: Any, **_: Any) -> Any:
    return o.cast(x, "float32" if str(dtype).startswith(("float", "bfloat")) else dtype)


def _two(kind: str) -> Callable[..., Any]:
    return lambda o, x, y, **_: getattr(o, kind)(x, y)


def _one(kind: str) -> Callable[..., Any]:
    return lambda o, x, *_, **__: getattr(o, kind)(x)


_BINARY = {
    "subtract": "subtract", "multiply": "multiply", "divide": "divide",
    "truediv": "true_divide", "maximum": "maximum", "minimum": "minimum", "pow": "power",
    "floordiv": "floor_divide", "mod": "mod", "squared_difference": "squared_difference",
    "greater": "greater", "less": "less", "greater_equal": "greater_equal",
    "less_equal": "less_equal", "equal": "equal", "not_equal": "not_equal",
    "logical_and": "logical_and", "logical_or": "logical_or", "divide_no_nan": "divide_no_nan",
}  # fmt: skip
_UNARY = {
    "abs": "abs", "sqrt": "sqrt", "square": "square", "exp": "exp", "log": "log", "rsqrt": "rsqrt",
    "negative": "negative", "sigmoid": "sigmoid", "tanh": "tanh", "softplus": "softplus",
    "sin": "sin", "cos": "cos", "floor": "floor", "ceil": "ceil", "round": "round", "sign": "sign",
    "reciprocal": "reciprocal", "log1p": "log1p", "expm1": "expm1", "erf": "erf",
    "logical_not": "logical_not", "softsign": "softsign",
}  # fmt: skip
_REDUCTIONS = {
    "reduce_mean": "mean", "reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min",
    "reduce_prod": "prod", "reduce_std": "std", "reduce_variance": "var",
    "reduce_logsumexp": "logsumexp",
}  # fmt: skip

OPERATIONS: dict[str, Callable[..., Any]] = {
    "__operators__.getitem": lambda o, x, slice_spec, **_: x[slices(slice_spec)],
    # `keras.ops.add` mistakes the axis of some vectors.
    **dict.fromkeys(("add", "math.add", "__operators__.add"), lambda o, x, y, **_: x + y),
    "__operators__.sub": _two("subtract"),
    "nn.relu": lambda o, features, **_: o.relu(features),
    "nn.relu6": lambda o, features, **_: o.relu6(features),
    "nn.leaky_relu": lambda o, features, alpha=0.2, **_: o.leaky_relu(features, alpha),
    "nn.elu": lambda o, features, **_: o.elu(features),
    "nn.selu": lambda o, features, **_: o.selu(features),
    "nn.silu": lambda o, features, beta=1.0: features * o.sigmoid(beta * features),
    "nn.swish": lambda o, features, beta=1.0: features * o.sigmoid(beta * features),
    "nn.gelu": lambda o, features, approximate=False, **_: o.gelu(features, bool(approximate)),
    "nn.softmax": lambda o, logits, axis=None, **_: o.softmax(logits, -1 if axis is None else axis),
    "nn.log_softmax": lambda o, logits, axis=-1, **_: o.log_softmax(logits, axis=axis),
    "nn.bias_add": lambda o, value, bias, **_: value + bias,
    "nn.l2_normalize": _l2_normalize, "math.l2_normalize": _l2_normalize,
    "linalg.l2_normalize": _l2_normalize, "nn.batch_normalization": _batch_norm,
    "nn.max_pool": _pool("max_pool"), "nn.max_pool2d": _pool("max_pool"),
    "nn.avg_pool": _pool("average_pool"), "nn.avg_pool2d": _pool("average_pool"),
    "keras.activations.relu": lambda o, x, alpha=0.0, max_value=None, threshold=0.0, **_: (
        o.clip(o.relu(x), 0.0, max_value) if max_value is not None
        else o.leaky_relu(x, alpha) if alpha else o.relu(x)
    ),
    "reshape": lambda o, tensor, shape, **_: o.reshape(tensor, _list(shape)),
    "transpose": _transpose, "pad": _pad, "image.resize": _resize, "image.resize_v2": _resize,
    "expand_dims": lambda o, x, axis, **_: o.expand_dims(x, axis),
    "squeeze": lambda o, x, axis=None, **_: o.squeeze(x, _list(axis)),
    "concat": lambda o, values, axis, **_: o.concatenate(values, axis),
    "stack": lambda o, values, axis=0, **_: o.stack(values, axis),
    "unstack": lambda o, value, num=None, axis=0, **_: o.unstack(value, num, axis),
    "split": lambda o, value, num_or_size_splits, axis=0, **_: o.split(
        value, num_or_size_splits if isinstance(num_or_size_splits, int)
        else [sum(num_or_size_splits[: i + 1]) for i in range(len(num_or_size_splits) - 1)], axis
    ),
    "tile": lambda o, x, multiples, **_: o.tile(x, _list(multiples)),
    "repeat": lambda o, x, repeats, axis=None, **_: o.repeat(x, repeats, axis),
    "reverse": lambda o, tensor, axis, **_: o.flip(tensor, _list(axis)),
    "gather": lambda o, params, indices, axis=0, **_: o.take(
        params, o.convert_to_tensor(indices), axis
    ),
    "cast": _cast,
    "clip_by_value": lambda o, x, clip_value_min, clip_value_max, **_: o.clip(
        x, clip_value_min, clip_value_max
    ),
    "identity": lambda o, x, **_: x + 0, "stop_gradient": _one("stop_gradient"),
    "zeros_like": _one("zeros_like"), "ones_like": _one("ones_like"),
    "broadcast_to": lambda o, x, shape, **_: o.broadcast_to(x, _list(shape)),
    "linalg.matmul": lambda o, a, b, transpose_a=False, transpose_b=False, **_: o.matmul(
        o.swapaxes(a, -1, -2) if transpose_a else a, o.swapaxes(b, -1, -2) if transpose_b else b
    ),
    "math.argmax": lambda o, x, axis=None, **_: o.argmax(x, axis=0 if axis is None else axis),
    "where": lambda o, condition, x, y, **_: o.where(condition, x, y),
    "shape": lambda o, x, **_: o.shape(x),
    "InstanceProperty:shape": lambda o, x, **_: x.shape,
    "image.rgb_to_grayscale": lambda o, images, **_: o.image.rgb_to_grayscale(
        images, data_format="channels_last"
    ),
    "nn.depth_to_space": lambda o, x, block_size, **_: _depth_to_space(o, x, block_size),
    "norm": lambda o, x, axis=None, keepdims=False, **_: o.sqrt(
        o.sum(o.square(x), axis=axis, keepdims=bool(keepdims))
    ),
}  # fmt: skip
OPERATIONS["math.softmax"] = OPERATIONS["nn.softmax"]


def _depth_to_space(o: Ops, x: Any, block: int) -> Any:
    _, h, w, c = o.shape(x)
    x = o.reshape(x, (-1, h, w, block, block, c // block**2))  # (N, h, w, b, b, C)
    return o.reshape(o.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, h * block, w * block, c // block**2))


for _name, _kind in _BINARY.items():
    OPERATIONS[f"math.{_name}"] = OPERATIONS[_name] = _two(_kind)
for _name, _kind in _UNARY.items():
    OPERATIONS[f"math.{_name}"] = OPERATIONS[_name] = OPERATIONS[f"nn.{_name}"] = _one(_kind)
for _name, _kind in _REDUCTIONS.items():
    OPERATIONS[f"math.{_name}"] = OPERATIONS[_name] = _reduce(_kind)

# TensorFlow's graph operators take their constants by position and the rest as attributes.
_RAW = {
    "Mul": "multiply", "Sub": "subtract", "Add": "add", "AddV2": "add", "RealDiv": "truediv",
    "Div": "divide", "Maximum": "maximum", "Minimum": "minimum", "Pow": "pow",
    "SquaredDifference": "squared_difference", "Relu": "nn.relu", "Relu6": "nn.relu6",
    "Elu": "nn.elu", "Selu": "nn.selu", "Softmax": "nn.softmax", "Sigmoid": "sigmoid",
    "Tanh": "tanh", "Softplus": "softplus", "Abs": "abs", "Sqrt": "sqrt", "Square": "square",
    "Exp": "exp", "Log": "log", "Rsqrt": "rsqrt", "Neg": "negative", "Reshape": "reshape",
    "Transpose": "transpose", "ExpandDims": "expand_dims", "Pad": "pad", "PadV2": "pad",
    "Tile": "tile", "Identity": "identity", "BiasAdd": "nn.bias_add", "ReverseV2": "reverse",
}  # fmt: skip
_RAW_REDUCTIONS = {"Mean": "mean", "Sum": "sum", "Max": "max", "Min": "min", "Prod": "prod"}


def _raw(key: str) -> Callable[..., Any]:
    return lambda o, *inputs, attributes: OPERATIONS[key](o, *inputs)


def _raw_reduce(kind: str) -> Callable[..., Any]:
    return lambda o, x, axis, attributes: getattr(o, kind)(
        x, axis=axis, keepdims=bool(attributes.get("keep_dims"))
    )


for _name, _key in _RAW.items():
    OPERATIONS[f"raw:{_name}"] = _raw(_key)
for _name, _kind in _RAW_REDUCTIONS.items():
    OPERATIONS[f"raw:{_name}"] = _raw_reduce(_kind)
OPERATIONS |= {
    "raw:ConcatV2": lambda o, *inputs, attributes: o.concatenate(inputs[:-1], int(inputs[-1])),
    "raw:LeakyRelu": lambda o, x, attributes: o.leaky_relu(x, attributes.get("alpha", 0.2)),
    "raw:Squeeze": lambda o, x, attributes: o.squeeze(x, attributes.get("squeeze_dims") or None),
    "raw:Cast": lambda o, x, attributes: o.cast(x, "float32"),
    "raw:Pack": lambda o, *inputs, attributes: o.stack(inputs, int(attributes.get("axis", 0))),
}

# Keras 3 saves the class of an operation; its function is the same name in lower case.
_KERAS = (
    "Abs Absolute Add Arccos Arcsin Arctan Argmax Argmin AveragePool BroadcastTo Cast Ceil "
    "Celu Clip Concatenate Cos Divide Elu Equal Erf Exp ExpandDims Expm1 Flip Floor "
    "FloorDivide Gelu Greater GreaterEqual HardSigmoid HardSilu HardTanh LeakyRelu Less "
    "LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr Matmul Max MaxPool "
    "Maximum Mean Min Minimum Mod Moveaxis Multiply Negative Normalize NotEqual OnesLike Pad "
    "Power Prod Ravel Reciprocal Relu Relu6 Repeat Reshape Roll Round Rsqrt Selu Sigmoid Sign "
    "Silu Sin Softmax Softplus Softsign Split Sqrt Square Squeeze Stack Std Subtract Sum "
    "Swapaxes Take Tanh Tile Transpose TrueDivide Unstack Var Where ZerosLike"
)


def _keras(name: str) -> Callable[..., Any]:
    function = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return lambda o, *args, **kwargs: getattr(o, function)(*args, **kwargs)


for _name in _KERAS.split():
    OPERATIONS[f"keras:{_name}"] = _keras(_name)
OPERATIONS["keras:GetItem"] = lambda o, x, key: x[slices(key)]
OPERATIONS["keras:Resize"] = lambda o, x, **kwargs: o.image.resize(x, **kwargs)

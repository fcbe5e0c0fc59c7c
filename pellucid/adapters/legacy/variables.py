"""Which variables each layer holds, in order, and of which shape.

One table serves three ends: arrays of a file are given names by it, a wrong array is found before
anything is built or allocated, and its error can say what was expected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.adapters.legacy.model import Config

__all__ = ["FROZEN", "Shape", "fits", "variables"]

Shape = tuple[int | None, ...]
FROZEN = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})

_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1, "ConvLSTM1D": 4, "ConvLSTM2D": 4, "ConvLSTM3D": 4}


def variables(layer: Config, shape: Shape | None = None) -> dict[str, Shape] | None:
    """Return the variables of a normalised layer: name to shape, `None` for sizes not known yet.

    Parameters
    ----------
    layer : its class and configuration.
    shape : shape of its input, with the batch, if known.

    Returns
    -------
    table : `{}` for a layer without variables, `None` for one that this table does not know.
    """
    kind, config = layer["class_name"], layer["config"]
    if kind == "TimeDistributed":
        inner = None if shape is None else (shape[0], *shape[2:])
        return variables(config["layer"], inner)
    if kind == "Bidirectional":
        both = variables(config["layer"], shape)
        sides = ("forward", "backward")
        return both and {f"{side}.{k}": v for side in sides for k, v in both.items()}
    rule = _TABLE.get(kind.removeprefix("Theano"))
    return rule(kind.removeprefix("Theano"), config, shape) if rule else None


def fits(expected: Shape, found: tuple[int, ...]) -> bool:
    """Whether a shape is the expected one, unknown sizes fitting anything."""
    return len(expected) == len(found) and all(
        want is None or want == have for want, have in zip(expected, found, strict=True)
    )


def _with_bias(table: dict[str, Shape], config: Config, *bias: int | None) -> dict[str, Shape]:
    return {**table, "bias": bias} if config.get("use_bias", True) else table


def _channels(config: Config, shape: Shape | None) -> int | None:
    if shape is None:
        return None
    return shape[1] if config.get("data_format") == "channels_first" else shape[-1]


def _tuple(value: Any, length: int) -> Shape:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * length


def _times(*factors: Any) -> int | None:
    product = 1
    for factor in factors:
        if factor is None:
            return None
        product *= int(factor)
    return product


def _conv(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    size = _tuple(config.get("kernel_size"), int(kind[4]))
    inputs, filters = _channels(config, shape), config.get("filters")
    if "Transpose" in kind:
        return _with_bias({"kernel": (*size, filters, inputs)}, config, filters)
    inputs = None if inputs is None else inputs // int(config.get("groups") or 1)
    return _with_bias({"kernel": (*size, inputs, filters)}, config, filters)


def _deconvolution(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    return _conv("Conv2DTranspose", config, shape)


def _depthwise(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    size, inputs = _tuple(config.get("kernel_size"), int(kind[-2])), _channels(config, shape)
    many = config.get("depth_multiplier", 1)
    return _with_bias({"kernel": (*size, inputs, many)}, config, _times(inputs, many))


def _separable(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    size, inputs = _tuple(config.get("kernel_size"), int(kind[-2])), _channels(config, shape)
    many, filters = config.get("depth_multiplier", 1), config.get("filters")
    one = (1,) * int(kind[-2])
    table: dict[str, Shape] = {
        "depthwise_kernel": (*size, inputs, many),
        "pointwise_kernel": (*one, _times(inputs, many), filters),
    }
    return _with_bias(table, config, filters)


def _dense(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    units = config.get("units")
    return _with_bias({"kernel": (shape[-1] if shape else None, units)}, config, units)


def _axis(config: Config, shape: Shape | None, default: Any = -1) -> Shape:
    axes = config.get("axis", default)
    axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    return tuple(None if shape is None else shape[axis] for axis in axes)


def _normalised(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    size = _axis(config, shape)
    table = {}
    if config.get("scale", True):
        table["gamma"] = size
    if config.get("center", True):
        table["beta"] = size
    if kind == "BatchNormalization":
        table |= {"moving_mean": size, "moving_variance": size}
    return table


def _recurrent(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    units, gates = config.get("units"), _GATES[kind]
    wide = _times(gates, units)
    bias: Shape = (2, wide) if kind == "GRU" and config.get("reset_after", True) else (wide,)
    inputs = shape[-1] if shape else None
    table: dict[str, Shape] = {"kernel": (inputs, wide), "recurrent_kernel": (units, wide)}
    return _with_bias(table, config, *bias)


def _conv_recurrent(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    size, filters = _tuple(config.get("kernel_size"), int(kind[-2])), config.get("filters")
    inner = None if shape is None else (shape[0], *shape[2:])
    wide = _times(4, filters)
    table = {
        "kernel": (*size, _channels(config, inner), wide),
        "recurrent_kernel": (*size, filters, wide),
    }
    return _with_bias(table, config, wide)


def _like_input(*names: str) -> Callable[[str, Config, Shape | None], dict[str, Shape]]:
    def rule(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
        if shape is None:
            return dict.fromkeys(names, ())
        shared = config.get("shared_axes") or []
        size = tuple(1 if i in shared else n for i, n in enumerate(shape) if i)
        return dict.fromkeys(names, size)

    return rule


def _attention(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    heads, key = config.get("num_heads"), config.get("key_dim")
    value = config.get("value_dim") or key
    width = shape[-1] if shape else None
    table: dict[str, Shape] = {}
    for part, size in (("query", key), ("key", key), ("value", value)):
        table[f"{part}.kernel"] = (width if part == "query" else None, heads, size)
        if config.get("use_bias", True):
            table[f"{part}.bias"] = (heads, size)
    outputs = width if not config.get("output_shape") else None
    table["output.kernel"] = (heads, value, outputs)
    if config.get("use_bias", True):
        table["output.bias"] = (outputs,)
    return table


def _embedding(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    return {"embeddings": (config.get("input_dim"), config.get("output_dim"))}


def _normalization(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    if config.get("mean") is not None:
        return {}
    size = () if config.get("axis") is None else _axis(config, shape)
    return {"mean": size, "variance": size}


def _highway(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    width = shape[-1] if shape else None
    table: dict[str, Shape] = {"kernel": (width, width), "carry_kernel": (width, width)}
    if config.get("use_bias", True):
        table |= {"bias": (width,), "carry_bias": (width,)}
    return table


def _maxout(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    many, units = config.get("nb_feature"), config.get("output_dim")
    table: dict[str, Shape] = {"kernel": (many, shape[-1] if shape else None, units)}
    return {**table, "bias": (many, units)} if config.get("use_bias", True) else table


def _local(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    filters = config.get("filters")
    places: Shape = (None,) * (1 if kind.endswith("1D") else 2)
    first = config.get("data_format") == "channels_first" and kind.endswith("2D")
    bias = (filters, *places) if first else (*places, filters)
    return _with_bias({"kernel": (None, None, filters)}, config, *bias)


def _scale(kind: str, config: Config, shape: Shape | None) -> dict[str, Shape]:
    return {"gamma": (config.get("projection_dim"),)}


_TABLE: dict[str, Callable[[str, Config, Shape | None], dict[str, Shape]]] = {
    **dict.fromkeys(
        ("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        _conv,
    ),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    **dict.fromkeys(
        ("BatchNormalization", "LayerNormalization", "GroupNormalization", "BatchStatistics",
         "SampleNormalization"),
        _normalised,
    ),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), _recurrent),
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _conv_recurrent),
    **dict.fromkeys(("LocallyConnected1D", "LocallyConnected2D"), _local),
    "Dense": _dense, "Deconvolution2D": _deconvolution, "PReLU": _like_input("alpha"),
    "SReLU": _like_input("t_left", "a_left", "t_right", "a_right"),
    "ParametricSoftplus": _like_input("alpha", "beta"), "MultiHeadAttention": _attention,
    "Embedding": _embedding, "Normalization": _normalization, "Highway": _highway,
    "MaxoutDense": _maxout, "LayerScale": _scale,
}  # fmt: skip

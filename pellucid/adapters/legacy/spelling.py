"""Old spellings of layers, as tables: one entry per class or argument that was called otherwise.

What only training uses (initialisers, regularisers, constraints, dropout inside recurrent layers)
is left out: nothing that is loaded here is trained, and each of them is one more object that a
file could make a loader create.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pellucid.adapters.legacy.model import Config, Need, Notes

__all__ = ["ACTIVATIONS", "CLASSES", "LOST", "MODELS", "RECURRENT", "familiar", "respell"]

MODELS = frozenset({"Sequential", "Functional", "Model", "Container"})
RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "RNN"})

# Class in the file -> class in Keras 3.
CLASSES = {
    "Convolution1D": "Conv1D", "Convolution2D": "Conv2D", "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D", "AtrousConvolution2D": "Conv2D",
    "AtrousConv1D": "Conv1D", "AtrousConv2D": "Conv2D",
    "SeparableConvolution1D": "SeparableConv1D", "SeparableConvolution2D": "SeparableConv2D",
    "DepthwiseConvolution2D": "DepthwiseConv2D",
    "Convolution2DTranspose": "Conv2DTranspose", "Convolution3DTranspose": "Conv3DTranspose",
    "Deconv2D": "Conv2DTranspose", "Deconv3D": "Conv3DTranspose",
    "Deconvolution3D": "Conv3DTranspose",
    "BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU", "LSTMV1": "LSTM", "GRUV1": "GRU",
    "TimeDistributedDense": "Dense", "DenseFeatures": "DenseFeatures",
    "MaxPool1D": "MaxPooling1D", "MaxPool2D": "MaxPooling2D", "MaxPool3D": "MaxPooling3D",
    "AvgPool1D": "AveragePooling1D", "AvgPool2D": "AveragePooling2D",
    "AvgPool3D": "AveragePooling3D",
    "GlobalAvgPool1D": "GlobalAveragePooling1D", "GlobalAvgPool2D": "GlobalAveragePooling2D",
    "GlobalAvgPool3D": "GlobalAveragePooling3D", "GlobalMaxPool1D": "GlobalMaxPooling1D",
    "GlobalMaxPool2D": "GlobalMaxPooling2D", "GlobalMaxPool3D": "GlobalMaxPooling3D",
    "ActivityRegularization": "Identity", "RandomHeight": "Identity", "RandomWidth": "Identity",
}  # fmt: skip

# Layers that Keras 3 no longer has and `legacy.layers` provides.
LOST = frozenset({
    "Deconvolution2D", "Highway", "LegacyUpSampling2D", "LocallyConnected1D", "LocallyConnected2D",
    "MaxoutDense", "MergeCosine", "MergeDot", "BatchStatistics", "SampleNormalization",
    "ParametricSoftplus", "SReLU", "LayerScale", "ThresholdedReLU", "Operation", "TheanoConv1D",
    "TheanoConv2D", "TheanoConv2DTranspose", "TheanoDeconvolution2D",
    "TheanoConv3D", "TheanoSeparableConv2D", "TheanoDepthwiseConv2D", "TheanoMaxPooling1D",
    "TheanoMaxPooling2D", "TheanoMaxPooling3D", "TheanoAveragePooling1D",
    "TheanoAveragePooling2D", "TheanoAveragePooling3D",
})  # fmt: skip

# Keras 1 argument -> argument in Keras 3.
_ARGUMENTS = {
    "nb_filter": "filters", "bias": "use_bias", "border_mode": "padding", "subsample": "strides",
    "dim_ordering": "data_format", "output_dim": "units", "p": "rate", "sigma": "stddev",
    "atrous_rate": "dilation_rate", "inner_activation": "recurrent_activation",
    "pool_length": "pool_size", "stride": "strides", "filter_length": "kernel_size",
    "subsample_length": "strides", "input_dtype": "dtype",
}  # fmt: skip
_KEPT = {"Embedding": {"output_dim"}, "MaxoutDense": {"output_dim"}}
_OF_CLASS = {"UpSampling1D": {"length": "size"}}

_TRAINING = re.compile(
    r".*_(initializer|regularizer|constraint)$|[WUb]_(regularizer|constraint|learning_rate)$"
    r"|(init|inner_init|forget_bias_init|initial_weights|weights|W_.*|U_.*)$"
)
_OBSOLETE = frozenset({
    "batch_input_shape", "input_dim", "input_length", "consume_less", "implementation",
    "dropout_W", "dropout_U", "dropout", "recurrent_dropout", "unit_forget_bias", "input_shape",
    "time_major", "batch_size", "autocast", "fused", "virtual_batch_size", "renorm_clipping",
    "renorm_momentum", "synchronized", "seed", "quantization_config", "zero_output_for_mask",
    "lora_rank", "lora_alpha", "cell_class", "query_shape", "key_shape", "value_shape",
    "flash_attention", "experimental_run_tf_function", "could_use_gpu_kernel", "rng_type",
    "force_generator",
})  # fmt: skip
_ARGUMENT_WINS = {"Embedding": {"input_dim"}, "MultiHeadAttention": {"dropout"}}

_FUNCTIONS = (
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh "
    "leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink "
    "softmax softplus softsign sparse_plus sparsemax squareplus swish tanh tanh_shrink "
    "threshold"
)
ACTIVATIONS = frozenset(_FUNCTIONS.split())
_FORMATS = {"th": "channels_first", "tf": "channels_last"}
_SPATIAL = re.compile(
    r".*(Conv\w*|Pooling|Padding|Cropping|UpSampling|SpatialDropout)[123]D(Transpose)?$"
    r"|(LocallyConnected2D|Deconvolution2D|Flatten|CenterCrop|Resizing|Random\w+)$"
)


def respell(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    """Return class and arguments of a layer as Keras 3 spells them.

    Parameters
    ----------
    name : class in the file, known to Keras or to this package.
    config : its arguments in the file; not changed.
    notes : where translations, needs and doubts are recorded.
    path : path of the layer, for messages.
    """
    new, config = CLASSES.get(name, name), dict(config)
    if name != new:
        notes.translate(f"{name} is built as {new}")
    if notes.producer.generation == 1:
        config = _keras_1(name, new, config, notes)
    if special := _SPECIAL.get(new):
        new, config = special(new, config, notes, path)
    if notes.producer.backend == "theano":
        new, config = _theano(new, config, notes, path)
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key] = _activation(config[key], notes, path, name)
    if _SPATIAL.match(new) and not config.get("data_format"):
        config["data_format"] = notes.producer.data_format if (
            notes.producer.generation == 1 and new != "Flatten"
        ) else "channels_last"  # fmt: skip
    keep = _ARGUMENT_WINS.get(new, set())
    config = {
        key: value
        for key, value in config.items()
        if key in keep or not (_TRAINING.match(key) or key in _OBSOLETE)
    }
    config["dtype"] = _dtype(config.get("dtype"), notes, new)
    return new, config


def _keras_1(name: str, new: str, config: Config, notes: Notes) -> Config:
    table = {**_ARGUMENTS, **_OF_CLASS.get(new, {})}
    kept = _KEPT.get(new, set())
    found: Config = {}
    for key, value in config.items():
        found[key if key in kept else table.get(key, key)] = value
    if "data_format" in found:
        found["data_format"] = _FORMATS.get(found["data_format"], found["data_format"])
    sizes = [found.pop(key) for key in ("nb_row", "nb_col") if key in found]
    sizes += [found.pop(f"kernel_dim{i}") for i in (1, 2, 3) if f"kernel_dim{i}" in found]
    if sizes:
        found["kernel_size"] = sizes
    if new in RECURRENT:
        found.setdefault("reset_after", False) if new == "GRU" else None
    if name != new or set(found) != set(config):
        notes.translate("Keras 1 names of layers and arguments are brought to Keras 3's")
    return found


def _dtype(value: Any, notes: Notes, name: str) -> str:
    """Reduce a type or a policy, in any of its spellings, to a type; floats become float32."""
    if isinstance(value, dict):
        value = (value.get("config") or {}).get("name")
    if isinstance(value, str) and re.fullmatch(r"u?int\d+|bool|string", value):
        return value
    if value not in (None, "float32", "infer"):
        notes.translate(f"layers of type {value} compute in float32")
    return "float32"


def _activation(value: Any, notes: Notes, path: str, class_name: str) -> Any:
    """Reduce an activation to a name, or to a layer's class and arguments."""
    if isinstance(value, dict):
        inner = value.get("config")
        if isinstance(inner, dict) and value.get("class_name") not in ("function", "__lambda__"):
            kind = str(value.get("class_name"))
            new, config = respell(kind, inner, notes, path)
            return {"class_name": new, "config": config}
        if value.get("class_name") == "__lambda__":
            notes.need(Need(path, class_name, "lambda", "", inner))
            return None
        value = inner if isinstance(inner, str) else value.get("registered_name")
    if value is None:
        return "linear"
    value = str(value)
    short = value.removesuffix("_v2").removesuffix("_v1")
    if value in ACTIVATIONS or short in ACTIVATIONS:
        if short == "hard_sigmoid" and notes.producer.generation < 3:
            notes.translate("hard_sigmoid has its old slope of 0.2 (Keras 3: 1/6)")
            return "hard_sigmoid_legacy"
        if short == "relu6" and notes.producer.generation < 3:
            notes.translate("the custom function relu6 is min(max(x, 0), 6)")
        return short
    notes.need(Need(path, class_name, "function", value.split(">")[-1]))
    return value


# ---- layers that want more than new names --------------------------------------------------------


def _input(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    if shape is None and config.get("shape") is not None:
        shape = [None, *config["shape"]]
    if config.get("sparse") or config.get("ragged"):
        notes.warn(f"layer {path!r} took sparse or ragged arrays; it takes dense ones here")
    return name, {"name": config.get("name"), "batch_shape": shape, "dtype": config.get("dtype")}


def _batch_normalization(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    axis = config.get("axis", -1)
    if isinstance(axis, list):
        if len(axis) != 1:
            raise notes.fault(f"layer {path!r}", f"BatchNormalization over the axes {axis}: only "
                              "one axis is supported. Give it with replace=.")  # fmt: skip
        config["axis"] = axis[0]
    mode = config.pop("mode", 0)
    if config.pop("renorm", False):
        notes.warn(f"layer {path!r}: renormalisation acts in training only and is left out")
    if mode == 0:
        return name, config
    config.pop("momentum", None)
    if mode == 1:
        notes.translate("BatchNormalization(mode=1) normalises each sample over its last axis")
        config.pop("axis", None)
        return "SampleNormalization", config
    notes.translate("BatchNormalization(mode=2) normalises by the statistics of the whole batch")
    notes.warn(
        f"layer {path!r} normalises by the batch: what the model says of an image depends on the "
        "images beside it"
    )
    return "BatchStatistics", config


def _upsampling(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    producer = notes.producer
    if config.get("interpolation", "nearest") != "bilinear" or producer.software == "keras 3":
        return name, config
    if producer.software == "tf.keras":
        if producer.version == "2.2.4-tf":
            notes.warn(
                f"layer {path!r}: bilinear UpSampling2D of TensorFlow 1.13 and 1.14 had no "
                "half-pixel centres; TensorFlow 1.15 and 2.0 write the same version. The latter "
                "is assumed"
            )
        return name, config
    if producer.backend == "theano":
        raise notes.fault(f"layer {path!r}", "Theano's bilinear UpSampling2D is not supported. "
                          "Give the layer with replace=.")  # fmt: skip
    notes.translate("bilinear UpSampling2D is the old resize without half-pixel centres")
    config.pop("interpolation")
    return "LegacyUpSampling2D", config


def _deconvolution(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    """Keras 1's layer states its output shape; a transposed convolution has to be told it."""
    shape = config.pop("output_shape", None)
    first = config.get("data_format", notes.producer.data_format) == "channels_first"
    if not isinstance(shape, list) or len(shape) != 4:
        raise notes.fault(f"layer {path!r}", f"Deconvolution2D without an output shape: {shape}.")
    config["output_size"] = shape[2:] if first else shape[1:3]
    notes.translate("Deconvolution2D is a transposed convolution with the stated output shape")
    return name, config


def _merge(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    mode, kept = config.get("mode"), {"name": config.get("name")}
    simple = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum"}
    if config.get("mode_type", "raw") != "raw" or not isinstance(mode, str):
        notes.need(Need(path, name, "lambda", "", mode))
        return name, config
    notes.translate(f"Merge(mode={mode!r}) is built as the layer of that operation")
    if mode in simple:
        return simple[mode], kept
    if mode == "concat":
        return "Concatenate", {**kept, "axis": config.get("concat_axis", -1)}
    if mode in ("dot", "cos"):
        axes = config.get("dot_axes", -1)
        return ("MergeDot" if mode == "dot" else "MergeCosine"), {**kept, "axes": axes}
    raise notes.fault(f"layer {path!r}", f"Merge has no mode {mode!r}.")


def _sides(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    """Padding of Keras 1: (1, 2), (top, bottom, left, right) or a dictionary of sides."""
    value = config.get("padding")
    if isinstance(value, dict):
        sides = ("left", "right") if name == "ZeroPadding1D" else ("top", "bottom", "left", "right")
        value = [value.get(f"{side}_pad", 0) for side in sides]
    if name == "ZeroPadding2D" and isinstance(value, list) and len(value) == 4:
        value = [value[:2], value[2:]]
    return name, {**config, "padding": value}


def _leaky(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    if "alpha" in config:
        config["negative_slope"] = _number(config.pop("alpha"))
    return name, config


def _relu(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    return name, {k: v if k == "name" else _number(v) for k, v in config.items() if k != "dtype"}


def _number(value: Any) -> Any:
    """Unpack a number that was saved as an array."""
    if isinstance(value, dict):
        value = value.get("value", (value.get("config") or {}).get("value"))
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _gru(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    if notes.producer.generation < 3 and "reset_after" not in config:
        config["reset_after"] = "recurrent_activation" not in config  # only CuDNNGRU lacks both
    config.setdefault("recurrent_activation", "sigmoid")
    return name, config


def _separable(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    config.pop("groups", None)
    return name, config


def _identity(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    return name, {"name": config.get("name")}


def _lost(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    notes.translate(f"{name}, which Keras 3 no longer has, is provided with equal mathematics")
    return name, config


_SPECIAL: dict[str, Callable[[str, Config, Notes, str], tuple[str, Config]]] = {
    "Identity": _identity, "InputLayer": _input, "BatchNormalization": _batch_normalization,
    "UpSampling2D": _upsampling, "Deconvolution2D": _deconvolution, "Merge": _merge,
    "ZeroPadding1D": _sides, "ZeroPadding2D": _sides, "LeakyReLU": _leaky, "ReLU": _relu,
    "GRU": _gru, "SeparableConv2D": _separable, "SeparableConv1D": _separable,
    "DepthwiseConv2D": _separable, "MaxoutDense": _lost, "Highway": _lost, "SReLU": _lost,
    "ParametricSoftplus": _lost, "ThresholdedReLU": _lost, "LocallyConnected1D": _lost,
    "LocallyConnected2D": _lost,
}  # fmt: skip

# Custom layers of Keras's own applications, known by their arguments as well as by name.
_FAMILIAR = {
    "LayerScale": ({"init_values", "projection_dim"}, "LayerScale"),
    "StochasticDepth": ({"drop_path_rate"}, "Identity"),
    "FixedDropout": ({"rate", "noise_shape"}, "Identity"),
}


def familiar(name: str, config: Config) -> str | None:
    """Return the class to build for a custom layer of `keras.applications`, `None` for others."""
    arguments, new = _FAMILIAR.get(name, (set(), None))
    return new if new and arguments <= set(config) else None


_PADDED = re.compile(r"(Conv[123]D|SeparableConv2D|DepthwiseConv2D|(Max|Average)Pooling[123]D)$")


def _theano(name: str, config: Config, notes: Notes, path: str) -> tuple[str, Config]:
    """Theano pads SAME by half the kernel on both sides; TensorFlow does where that is equal."""
    padding = config.get("padding")
    if padding in (None, "valid", "causal"):
        return name, config
    if not _PADDED.match(name):
        if name not in ("Conv2DTranspose", "Conv3DTranspose", "Deconvolution2D"):
            return name, config
        sizes = _tuple(config.get("kernel_size", 2))
        if padding != "same":
            return name, config
        if name == "Conv3DTranspose" or any(size % 2 == 0 for size in sizes):
            raise notes.fault(
                f"layer {path!r}", "Theano has no transposed convolution with SAME padding "
                f"{'in three dimensions' if '3D' in name else 'and an even kernel'} that could be "
                "followed here. Give the layer with replace=."
            )  # fmt: skip
        notes.translate(
            "transposed SAME convolution is that of symmetric padding, as Theano has it"
        )
        return f"Theano{name}", config
    sizes = _tuple(config.get("kernel_size", config.get("pool_size", 2)))
    strides = _tuple(config.get("strides") or config.get("pool_size", 1))
    odd = all(size % 2 for size in sizes) and all(stride == 1 for stride in strides)
    if padding == "same" and odd and not ("Pooling" in name and max(sizes) > 3):
        return name, config
    notes.translate("strided or even-sized SAME padding is symmetric, as Theano has it")
    return f"Theano{name}", config


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)

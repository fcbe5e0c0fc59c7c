"""One vocabulary of layer kinds for all frameworks.

A framework's class or operator name maps to the kind by one table; what is not in it keeps its
own name, so a custom layer is shown under the name its author gave it.
"""

from __future__ import annotations

import re

__all__ = ["POOLING", "kind_of", "layout_of"]

from typing import Literal

_DIMENSIONS = re.compile(r"^(.*?)_?([123])[dD](Transpose)?$")

# Framework spelling (dimension suffix removed, lower case) -> kind (without suffix).
_KINDS = {
    "conv": "Conv", "convolution": "Conv", "lazyconv": "Conv", "atrousconvolution": "Conv",
    "convtranspose": "ConvTranspose", "deconvolution": "ConvTranspose",
    "depthwiseconv": "DepthwiseConv", "separableconv": "SeparableConv",
    "batchnorm": "BatchNorm", "batchnormalization": "BatchNorm", "syncbatchnorm": "BatchNorm",
    "layernorm": "LayerNorm", "layernormalization": "LayerNorm",
    "groupnorm": "GroupNorm", "groupnormalization": "GroupNorm",
    "instancenorm": "InstanceNorm", "instancenormalization": "InstanceNorm",
    "unitnormalization": "UnitNorm", "rmsnorm": "RMSNorm", "rmsnormalization": "RMSNorm",
    "localresponsenorm": "LRN",
    "linear": "Dense", "dense": "Dense", "gemm": "Dense", "matmul": "Dense", "einsumdense": "Dense",
    "relu": "ReLU", "relu6": "ReLU6", "leakyrelu": "LeakyReLU", "prelu": "PReLU", "elu": "ELU",
    "selu": "SELU", "celu": "CELU", "silu": "SiLU", "swish": "SiLU", "gelu": "GELU",
    "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "mish": "Mish", "sigmoid": "Sigmoid",
    "tanh": "Tanh", "softmax": "Softmax", "logsoftmax": "LogSoftmax", "softplus": "Softplus",
    "maxpool": "MaxPool", "maxpooling": "MaxPool", "avgpool": "AveragePool",
    "averagepool": "AveragePool", "averagepooling": "AveragePool",
    "adaptiveavgpool": "AdaptiveAveragePool", "adaptivemaxpool": "AdaptiveMaxPool",
    "globalaveragepooling": "GlobalAveragePool", "globalaveragepool": "GlobalAveragePool",
    "globalmaxpooling": "GlobalMaxPool", "globalmaxpool": "GlobalMaxPool",
    "flatten": "Flatten", "reshape": "Reshape", "permute": "Permute", "transpose": "Permute",
    "dropout": "Dropout", "spatialdropout": "Dropout", "droppath": "Dropout",
    "gaussiannoise": "Noise", "gaussiandropout": "Noise",
    "zeropad": "Pad", "zeropadding": "Pad", "constantpad": "Pad", "reflectionpad": "Pad",
    "pad": "Pad", "cropping": "Crop", "upsample": "Upsample", "upsampling": "Upsample",
    "resize": "Upsample", "pixelshuffle": "DepthToSpace", "depthtospace": "DepthToSpace",
    "add": "Add", "sub": "Subtract", "subtract": "Subtract", "mul": "Multiply",
    "multiply": "Multiply", "concatenate": "Concat", "concat": "Concat", "average": "Average",
    "maximum": "Maximum", "max": "Maximum", "minimum": "Minimum", "min": "Minimum",
    "multiheadattention": "Attention", "attention": "Attention",
    "embedding": "Embedding", "lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "simplernn": "RNN",
    "bidirectional": "Bidirectional", "timedistributed": "TimeDistributed",
    "identity": "Identity", "inputlayer": "Input", "rescaling": "Rescaling",
    "normalization": "Normalization", "activation": "Activation", "lambda": "Lambda",
    "fusedconv": "Conv", "nhwcfusedconv": "Conv", "nhwcconv": "Conv", "qlinearconv": "Conv",
    "convinteger": "Conv", "fusedgemm": "Dense", "qgemm": "Dense", "fusedmatmul": "Dense",
    "qlinearmatmul": "Dense", "matmulinteger": "Dense", "biasgelu": "GELU", "fastgelu": "GELU",
    "quickgelu": "GELU", "skiplayernormalization": "LayerNorm", "qlinearadd": "Add",
    "qlinearconcat": "Concat", "qlinearmul": "Multiply", "qlinearsoftmax": "Softmax",
    "qlinearglobalaveragepool": "GlobalAveragePool", "qlinearaveragepool": "AveragePool",
    "sequential": "Sequential", "functional": "Model", "model": "Model",
}  # fmt: skip

POOLING = frozenset(
    kind + suffix
    for kind in (
        "MaxPool", "AveragePool", "AdaptiveAveragePool", "AdaptiveMaxPool",
        "GlobalAveragePool", "GlobalMaxPool",
    )
    for suffix in ("", "1D", "2D", "3D")
)  # fmt: skip

_SPATIAL = (
    "Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "MaxPool", "AveragePool",
    "AdaptiveAveragePool", "AdaptiveMaxPool", "Pad", "Crop", "Upsample", "BatchNorm",
    "InstanceNorm",
)  # fmt: skip
_TOKENS = ("LayerNorm", "RMSNorm", "Attention", "Embedding", "LSTM", "GRU", "RNN", "Bidirectional")


def kind_of(name: str, dimensions: int | None = None) -> str:
    """Map a framework's class or operator name to the shared kind.

    Parameters
    ----------
    name : class name such as "BatchNorm2d", "Conv2D", or operator such as "GlobalAveragePool".
    dimensions : number of spatial axes, where the name does not say it ("Conv" in ONNX).
    """
    match = _DIMENSIONS.match(name)
    stem, found = (match[1] + (match[3] or ""), match[2]) if match else (name, "")
    kind = _KINDS.get(stem.replace("_", "").lower())
    if kind is None:
        return name
    if kind in ("BatchNorm", "Dropout", "InstanceNorm"):  # one kind whatever the rank
        return kind
    if not found and dimensions and kind in (*_SPATIAL, "GlobalAveragePool", "GlobalMaxPool"):
        found = str(dimensions)
    return f"{kind}{found}D" if found else kind


def layout_of(kind: str, rank: int) -> Literal["spatial", "tokens"] | None:
    """Say what the axes of a rank-3 output mean, as far as the kind alone tells."""
    stem = kind[:-2] if kind[-2:] in ("1D", "2D", "3D") else kind
    if rank >= 4 or stem in _SPATIAL:
        return "spatial"
    return "tokens" if stem in _TOKENS else None

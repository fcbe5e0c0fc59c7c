"""Colours: one per family of layer kinds, and a scale for numbers."""

from __future__ import annotations

__all__ = ["FAMILIES", "colour_of", "family_of", "ink_on", "scaled"]

FAMILIES = {
    "convolution": "#a9cbe8", "normalisation": "#e3e3e8", "activation": "#f7d9a3",
    "pooling": "#b9dfb4", "dense": "#cbbbe6", "attention": "#f0b3b3", "merging": "#a6dcd6",
    "arranging": "#f3f3f3", "recurrent": "#e5bfd8", "port": "#ffffff", "other": "#ece4d4",
}  # fmt: skip
_FAMILY = {
    "convolution": ("Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose"),
    "normalisation": ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "LRN",
                      "UnitNorm", "Normalization", "Rescaling"),
    "activation": ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "SiLU", "GELU",
                   "HardSwish", "HardSigmoid", "Mish", "Sigmoid", "Tanh", "Softmax", "LogSoftmax",
                   "Softplus", "Clip", "Activation"),
    "pooling": ("MaxPool", "AveragePool", "AdaptiveAveragePool", "AdaptiveMaxPool",
                "GlobalAveragePool", "GlobalMaxPool", "Upsample", "ReduceMean"),
    "dense": ("Dense", "Embedding", "MatMul", "Einsum"),
    "attention": ("Attention",),
    "merging": ("Add", "Subtract", "Multiply", "Concat", "Average", "Maximum", "Minimum", "Div"),
    "arranging": ("Permute", "Reshape", "Flatten", "Identity", "Dropout", "Noise", "Pad", "Crop",
                  "Select", "GetItem", "DepthToSpace", "Split"),
    "recurrent": ("LSTM", "GRU", "RNN", "Bidirectional", "TimeDistributed"),
    "port": ("Input", "Output"),
}  # fmt: skip
_BY_KIND = {kind: family for family, kinds in _FAMILY.items() for kind in kinds}
_SCALE = ((255, 247, 224), (253, 212, 138), (246, 144, 84), (208, 73, 74), (122, 25, 74))


def family_of(kind: str) -> str:
    """Return the family of a kind, "other" for custom layers and blocks."""
    stem = kind[:-2] if kind[-2:] in ("1D", "2D", "3D") else kind
    return _BY_KIND.get(stem, "other")


def colour_of(kind: str) -> str:
    """Return the fill of a kind."""
    return FAMILIES[family_of(kind)]


def scaled(fraction: float) -> str:
    """Return the colour of a number between 0 and 1, pale for small ones."""
    place = min(max(fraction, 0.0), 1.0) * (len(_SCALE) - 1)
    index = min(int(place), len(_SCALE) - 2)
    low, high, part = _SCALE[index], _SCALE[index + 1], place - index
    mixed = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def ink_on(fill: str) -> str:
    """Return black or white, whichever can be read on a fill."""
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return "#1d1d22" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"

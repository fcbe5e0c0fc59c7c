"""The cases: each a network of a few numbers, and the exact answer of each method.

All networks take an image `(1, 1, 2, 2)`, convolve it with 1 x 1 filters to two channels, apply a
function, and weigh the channels' means. So the map of a class activation method and the gradient of
a pixel method are sums one can do in one's head; `why` says how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "Case"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A network `head(mean(function(filters * x + biases)))`, an image, and the exact answers.

    Attributes
    ----------
    name, why : what it shows.
    function : `"linear"`, `"relu"`, `"relu-function"` (no module or layer of its own), `"relu6"`,
        `"square"`, `"residual"` (`relu(z) + z`), `"batchnorm"` (scale 2, shift 1, then ReLU) or
        `"softmax"` (a ReLU, and a softmax over the classes at the end).
    x : the image `(2, 2)`.
    filters, biases : of the two channels.
    head : weight of each channel for the target class; another class has their negatives.
    expected : the array of each method by name; class activation maps at the layer that the
        function gives, before any scaling to the input.
    """

    name: str
    why: str
    function: str
    x: Array
    filters: tuple[float, float]
    biases: tuple[float, float]
    head: tuple[float, float]
    expected: dict[str, Array]


def _array(*rows: tuple[float, ...]) -> Array:
    return np.array(rows, np.float32)


X = _array((1, -2), (3, 0.5))
P, N = np.maximum(X, 0), np.maximum(-X, 0)  # relu(x), relu(-x)
ON, OFF = (X > 0).astype(np.float32), (X < 0).astype(np.float32)

CASES = (
    Case(
        "linear", "score = mean(3 a - b) with a = x, b = -x, so every pixel weighs 4 / 4 = 1",
        "linear", X, (1, -1), (0, 0), (3, -1),
        {
            "saliency": np.ones((2, 2), np.float32),
            "input-x-gradient": X,
            "integrated-gradients": X,
            "guided-backprop": np.ones((2, 2), np.float32),
            "deconvnet": np.ones((2, 2), np.float32),
        },
    ),
    Case(
        "one ReLU", "score = mean(3 relu(x) + relu(-x)): slope 3/4 where x > 0, -1/4 where x < 0",
        "relu", X, (1, -1), (0, 0), (3, 1),
        {
            "saliency": (3 * ON + OFF) / 4,
            "input-x-gradient": (3 * P + N) / 4,
            "integrated-gradients": (3 * P + N) / 4,
            "guided-backprop": (3 * ON - OFF) / 4,
            "deconvnet": np.full((2, 2), (3 - 1) / 4, np.float32),
            "grad-cam": (3 * P + N) / 4,
        },
    ),
    Case(
        "negative evidence", "the second channel speaks against: guided backpropagation stops it",
        "relu", X, (1, -1), (0, 0), (3, -2),
        {
            "saliency": (3 * ON + 2 * OFF) / 4,
            "guided-backprop": 3 * ON / 4,
            "deconvnet": np.full((2, 2), 3 / 4, np.float32),
            "grad-cam": 3 * P / 4,
        },
    ),
    Case(
        "functional ReLU", "the same, with a ReLU that is a function call, not a module",
        "relu-function", X, (1, -1), (0, 0), (3, -2),
        {
            "saliency": (3 * ON + 2 * OFF) / 4,
            "guided-backprop": 3 * ON / 4,
            "deconvnet": np.full((2, 2), 3 / 4, np.float32),
        },
    ),
    Case(
        "ReLU6", "the same with an upper bound, which no value reaches",
        "relu6", X, (1, -1), (0, 0), (3, -2),
        {"saliency": (3 * ON + 2 * OFF) / 4, "guided-backprop": 3 * ON / 4},
    ),
    Case(
        "product", "score = mean(3 x^2 + x^2) = mean(4 x^2): slope 2 x; integrated from zero, x^2",
        "square", X, (1, -1), (0, 0), (3, 1),
        {"saliency": 2 * np.abs(X), "input-x-gradient": 2 * X**2, "integrated-gradients": X**2},
    ),
    Case(
        "residual", "a = relu(x) + x, b = relu(-x) - x: the skip carries gradient past the ReLU",
        "residual", X, (1, -1), (0, 0), (2, 1),
        {
            "saliency": np.abs(2 * (ON + 1) - (OFF + 1)) / 4,
            "integrated-gradients": X * (2 * (ON + 1) - (OFF + 1)) / 4,
        },
    ),
    Case(
        "BatchNorm", "a = relu(2 x + 1), b = relu(1 - 2 x) in evaluation mode",
        "batchnorm", X, (1, -1), (0, 0), (1, 1),
        {
            "saliency": np.abs(2 * (2 * X + 1 > 0) - 2 * (1 - 2 * X > 0)).astype(np.float32) / 4,
            "grad-cam": (np.maximum(2 * X + 1, 0) + np.maximum(1 - 2 * X, 0)) / 4,
        },
    ),
    Case(
        "saturated", "behind a softmax that is sure; the score before it still has a slope",
        "softmax", 100 * X, (1, -1), (0, 0), (3, 1),
        {"saliency": (3 * ON + OFF) / 4, "grad-cam": 100 * (3 * P + N) / 4},
    ),
)  # fmt: skip

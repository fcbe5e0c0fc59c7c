"""The networks of the cases in PyTorch and in Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.cases import Case

__all__ = ["keras_network", "torch_network"]


def torch_network(case: Case) -> Any:
    """Build the network; `layer` is what the function gives."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, z: Any) -> Any:
            return self.relu(z) + z

    class Called(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

        def forward(self, z: Any) -> Any:
            return self.function(z)

    norm = nn.BatchNorm2d(2, eps=0)
    with torch.no_grad():
        norm.weight.fill_(2)
        norm.bias.fill_(1)
    functions = {
        "linear": nn.Identity(), "relu": nn.ReLU(), "relu-function": Called(torch.relu),
        "relu6": nn.ReLU6(), "square": Called(torch.square), "residual": Residual(),
        "batchnorm": nn.Sequential(norm, nn.ReLU()), "softmax": nn.ReLU(),
    }  # fmt: skip

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.layer = nn.Conv2d(1, 2, 1), functions[case.function]
            self.head = nn.Linear(2, 2, bias=False)
            self.end = nn.Softmax(-1) if case.function == "softmax" else nn.Identity()
            with torch.no_grad():
                self.conv.weight.copy_(torch.tensor(case.filters).reshape(2, 1, 1, 1))
                self.conv.bias.copy_(torch.tensor(case.biases))
                self.head.weight.copy_(torch.tensor([case.head, [-w for w in case.head]]))

        def forward(self, x: Any) -> Any:
            return self.end(self.head(self.layer(self.conv(x)).mean((2, 3))))

    return Network().eval()


def keras_network(case: Case) -> Any:
    """Build the network; the layer that the function gives is called `layer`."""
    import keras

    layers, ops = keras.layers, keras.ops
    image = keras.Input((2, 2, 1))
    z = layers.Conv2D(2, 1, name="conv")(image)
    if case.function == "batchnorm":
        z = layers.BatchNormalization(epsilon=0.0, name="norm")(z)
    y = {
        "linear": lambda: layers.Activation("linear", name="layer")(z),
        "relu": lambda: layers.Activation("relu", name="layer")(z),
        "relu-function": lambda: layers.Identity(name="layer")(ops.relu(z)),
        "relu6": lambda: layers.ReLU(6.0, name="layer")(z),
        "square": lambda: layers.Identity(name="layer")(ops.square(z)),
        "residual": lambda: layers.Add(name="layer")([layers.Activation("relu")(z), z]),
        "batchnorm": lambda: layers.Activation("relu", name="layer")(z),
        "softmax": lambda: layers.Activation("relu", name="layer")(z),
    }[case.function]()
    end = "softmax" if case.function == "softmax" else None
    pooled = layers.GlobalAveragePooling2D()(y)
    model = keras.Model(image, layers.Dense(2, end, use_bias=False, name="head")(pooled))
    head = np.array(case.head, np.float32)
    model.get_layer("conv").set_weights(
        [np.array(case.filters, np.float32).reshape(1, 1, 1, 2), np.array(case.biases, np.float32)]
    )
    model.get_layer("head").set_weights([np.stack([head, -head], axis=1)])
    if case.function == "batchnorm":
        two = np.ones(2, np.float32)
        model.get_layer("norm").set_weights([2 * two, two, 0 * two, two])
    return model

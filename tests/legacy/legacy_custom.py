"""The code that some of the genuine files need: written anew, as a user would."""

from __future__ import annotations

from typing import Any

import keras


class Scale(keras.layers.Layer):
    """`y = x * gain * factor + shift`."""

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x: Any) -> Any:
        return x * self.gain * self.factor + self.shift


def swish(x: Any) -> Any:
    return x * keras.ops.sigmoid(x)


OBJECTS = {"Scale": Scale, "swish": swish, "my_act": swish}
LAMBDAS = {
    "k122_tf_lambda_h5": {"norm": lambda x: x * 2 - 1},
    "tf260_lambda_h5": {"norm": lambda x: (x - 0.5) / 0.25},
    "k36_lambda_keras": {"norm": lambda x: (x - 0.5) / 0.25},
}

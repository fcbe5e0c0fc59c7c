"""The twins in Keras: `k` is the package, `keras` or `tf_keras`, whose models are built.

Layers bear the names of their PyTorch twins; padding is explicit wherever "same" would put it
on other sides than PyTorch does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = [
    "channels_first",
    "conv1d",
    "conv3d",
    "fused",
    "inception",
    "nested_shared",
    "plain",
    "residual",
    "separable",
    "two_by_two",
    "vit",
]

EPSILON = 1e-3


def _relu(k: Any, x: Any) -> Any:
    """Apply a rectifier that is a function where Keras has functions."""
    return k.ops.relu(x) if hasattr(k, "ops") else k.layers.Activation("relu")(x)


def plain(k: Any) -> Any:
    layers = k.layers
    pool = layers.MaxPooling2D(2, name="pool")
    image = x = layers.Input((32, 32, 3), name="image")
    x = pool(_relu(k, layers.Conv2D(8, 3, padding="same", name="conv1")(x)))
    x = pool(_relu(k, layers.Conv2D(12, 3, padding="same", name="conv2")(x)))
    x = pool(_relu(k, layers.Conv2D(16, 3, padding="same", name="conv3")(x)))
    x = layers.Flatten(name="flatten")(x)
    x = _relu(k, layers.Dense(32, name="dense1")(x))
    return k.Model(image, layers.Dense(10, name="dense2")(x), name="plain")


def _residual_block(k: Any, shape: tuple[int, ...], channels: int, stride: int, name: str) -> Any:
    layers = k.layers
    relu = layers.ReLU(name="relu")
    entry = layers.Input(shape)
    x = layers.ZeroPadding2D(1, name="pad1")(entry)
    x = layers.Conv2D(channels, 3, stride, use_bias=False, name="conv1")(x)
    x = relu(layers.BatchNormalization(epsilon=EPSILON, name="norm1")(x))
    x = layers.ZeroPadding2D(1, name="pad2")(x)
    x = layers.Conv2D(channels, 3, use_bias=False, name="conv2")(x)
    x = layers.BatchNormalization(epsilon=EPSILON, name="norm2")(x)
    shortcut = entry
    if stride != 1:
        shortcut = layers.Conv2D(channels, 1, stride, use_bias=False, name="shortcut")(entry)
        shortcut = layers.BatchNormalization(epsilon=EPSILON, name="shortcut_norm")(shortcut)
    return k.Model(entry, relu(layers.Add(name="add")([x, shortcut])), name=name)


def residual(k: Any) -> Any:
    layers = k.layers
    entry = x = layers.Input((16, 16, 8))
    x = _residual_block(k, (16, 16, 8), 12, stride=2, name="block1")(x)
    x = _residual_block(k, (8, 8, 12), 12, stride=1, name="block2")(x)
    stage = k.Model(entry, x, name="stage")

    image = layers.Input((32, 32, 3), name="image")
    x = layers.ZeroPadding2D(1, name="pad")(image)
    x = layers.Conv2D(8, 3, 2, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(epsilon=EPSILON, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = stage(_residual_block(k, (16, 16, 8), 8, stride=1, name="block1")(x))
    x = layers.GlobalAveragePooling2D(keepdims=True, name="gap")(x)
    x = layers.Dense(10, name="dense")(layers.Flatten(name="flatten")(x))
    return k.Model(image, layers.Softmax(name="softmax")(x), name="residual")


def inception(k: Any) -> Any:
    layers = k.layers

    def conv(x: Any, channels: int, size: Any, name: str) -> Any:
        return layers.Conv2D(channels, size, padding="same", name=name)(x)

    image = layers.Input((32, 32, 3), name="image")
    x = _relu(k, layers.Conv2D(8, 4, 2, name="stem")(image))
    branch1 = _relu(k, conv(x, 6, 1, "branch1"))
    branch2 = conv(_relu(k, conv(x, 4, 1, "branch2_reduce")), 5, (1, 7), "branch2_row")
    branch2 = conv(branch2, 6, (7, 1), "branch2_column")
    branch2 = _relu(k, layers.BatchNormalization(epsilon=EPSILON, name="branch2_norm")(branch2))
    # "same" leaves the border out of the average, explicit padding counts it in.
    branch3 = layers.AveragePooling2D(3, 1, padding="same", name="branch3_pool")(x)
    branch3 = _relu(k, conv(branch3, 4, 1, "branch3"))
    branch4 = layers.MaxPooling2D(3, 1, padding="same", name="branch4_pool")(x)
    branch4 = _relu(k, conv(branch4, 4, 1, "branch4"))
    x = layers.Concatenate(name="concat")([branch1, branch2, branch3, branch4])
    x = layers.AveragePooling2D(3, 2, name="pool")(layers.ZeroPadding2D(1, name="pad")(x))
    x = layers.Conv2D(16, 3, name="conv")(x)
    x = _relu(k, layers.BatchNormalization(epsilon=EPSILON, name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Dense(10, activation="softmax", name="dense")(x)
    return k.Model(image, x, name="inception")


def separable(k: Any) -> Any:
    layers = k.layers

    def normalised(x: Any, prefix: str) -> Any:
        x = layers.BatchNormalization(epsilon=EPSILON, name=f"{prefix}norm")(x)
        return layers.ReLU(max_value=6.0, name=f"{prefix}relu")(x)

    image = layers.Input((32, 32, 3), name="image")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(image)
    x = normalised(layers.Conv2D(8, 3, 2, use_bias=False, name="conv")(x), "")
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise1")(x)
    x = normalised(x, "depthwise1_")
    x = layers.Conv2D(12, 1, use_bias=False, name="pointwise1")(x)
    x = normalised(x, "pointwise1_")
    x = layers.ZeroPadding2D(1, name="depthwise2_pad")(x)
    x = layers.DepthwiseConv2D(3, 2, use_bias=False, name="depthwise2")(x)
    x = normalised(x, "depthwise2_")
    x = layers.Conv2D(16, 1, use_bias=False, name="pointwise2")(x)
    x = normalised(x, "pointwise2_")
    x = layers.SeparableConv2D(16, 3, padding="same", name="separable")(x)
    x = layers.ReLU(max_value=6.0, name="separable_relu")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return k.Model(image, layers.Dense(10, name="dense")(x), name="separable")


def fused(k: Any) -> Any:
    layers = k.layers
    image = layers.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1")(image)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(12, 5, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(24, activation="relu", name="dense1")(x)
    return k.Model(image, layers.Dense(10, activation="softmax", name="dense2")(x), name="fused")


def channels_first(k: Any) -> Any:
    layers, first = k.layers, {"data_format": "channels_first"}
    image = layers.Input((3, 32, 32), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="conv1", **first)(image)
    x = layers.BatchNormalization(axis=1, epsilon=EPSILON, name="norm")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.MaxPooling2D(2, name="pool1", **first)(x)
    x = layers.Conv2D(12, 3, name="conv2", **first)(x)
    x = layers.Activation("relu", name="relu2")(x)
    x = layers.AveragePooling2D(2, name="pool2", **first)(x)
    # With `data_format` Flatten would put the channels last.
    x = layers.Dense(10, name="dense")(layers.Flatten(name="flatten")(x))
    return k.Model(image, layers.Softmax(name="softmax")(x), name="channels_first")


def two_by_two(k: Any) -> Any:
    layers = k.layers
    image = layers.Input((32, 32, 3), name="image")
    depth = layers.Input((16, 16, 1), name="depth")
    x = layers.Conv2D(8, 3, padding="same", name="image_conv")(image)
    x = layers.MaxPooling2D(2, name="pool")(layers.ReLU(name="image_relu")(x))
    y = layers.Conv2D(4, 3, padding="same", name="depth_conv")(depth)
    y = layers.ReLU(name="depth_relu")(y)
    x = layers.Concatenate(name="concat")([x, y])
    x = layers.Conv2D(12, 3, padding="same", name="conv")(x)
    x = layers.ReLU(name="relu")(x)
    classes = layers.GlobalAveragePooling2D(keepdims=True, name="gap")(x)
    classes = layers.Dense(5, name="dense")(layers.Flatten(name="flatten")(classes))
    classes = layers.Activation("softmax", name="classes")(classes)
    fine = layers.UpSampling2D(2, name="upsample")(x)
    fine = layers.Conv2D(2, 3, padding="same", name="map")(fine)
    return k.Model([image, depth], [classes, fine], name="two_by_two")


@cache
def _tokens_layer(k: Any) -> Any:
    """Define the custom layer that puts the class token first and adds the positions."""
    if hasattr(k, "ops"):
        concatenate, repeat, shape = k.ops.concatenate, k.ops.repeat, k.ops.shape
    else:
        import tensorflow as tf

        concatenate, repeat, shape = tf.concat, tf.repeat, tf.shape

    @k.saving.register_keras_serializable("pellucid_twins")
    class Tokens(k.layers.Layer):
        def build(self, input_shape: Any) -> None:
            _, count, width = input_shape
            self.class_token = self.add_weight(name="class_token", shape=(1, 1, width))
            self.positions = self.add_weight(name="positions", shape=(1, count + 1, width))
            self.built = True

        def call(self, x: Any) -> Any:
            token = repeat(self.class_token, shape(x)[0], axis=0)
            return concatenate([token, x], axis=1) + self.positions

        def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
            batch, count, width = input_shape
            return (batch, count + 1, width)

    return Tokens


def _encoder(k: Any, name: str) -> Any:
    layers = k.layers
    entry = layers.Input((17, 24))
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm1")(entry)
    x = layers.MultiHeadAttention(4, 6, name="attention")(x, x)
    middle = layers.Add(name="add1")([entry, x])
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm2")(middle)
    x = layers.Activation("gelu", name="gelu")(layers.Dense(48, name="dense1")(x))
    x = layers.Dense(24, name="dense2")(x)
    return k.Model(entry, layers.Add(name="add2")([middle, x]), name=name)


def vit(k: Any) -> Any:
    layers = k.layers
    image = layers.Input((32, 32, 3), name="image")
    x = layers.Conv2D(24, 8, 8, name="patches")(image)
    x = _tokens_layer(k)(name="tokens")(layers.Reshape((16, 24), name="reshape")(x))
    x = _encoder(k, "block2")(_encoder(k, "block1")(x))
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    return k.Model(image, layers.Dense(10, name="head")(x[:, 0]), name="vit")


def conv1d(k: Any) -> Any:
    layers = k.layers
    signal = layers.Input((64, 4), name="signal")
    x = layers.Conv1D(8, 5, padding="same", name="conv1")(signal)
    x = layers.BatchNormalization(epsilon=EPSILON, name="norm")(x)
    x = layers.MaxPooling1D(2, name="pool1")(layers.ReLU(name="relu1")(x))
    x = layers.Conv1D(12, 3, padding="same", name="conv2")(x)
    x = layers.AveragePooling1D(2, name="pool2")(layers.ReLU(name="relu2")(x))
    x = layers.Dense(4, name="dense")(layers.Flatten(name="flatten")(x))
    return k.Model(signal, layers.Activation("sigmoid", name="sigmoid")(x), name="conv1d")


def conv3d(k: Any) -> Any:
    layers = k.layers
    volume = layers.Input((8, 12, 12, 2), name="volume")
    x = layers.Conv3D(6, 3, padding="same", name="conv1")(volume)
    x = layers.BatchNormalization(epsilon=EPSILON, name="norm")(x)
    x = layers.MaxPooling3D(2, name="pool1")(layers.ReLU(name="relu1")(x))
    x = layers.Conv3D(8, 3, padding="same", name="conv2")(x)
    x = layers.AveragePooling3D(2, name="pool2")(layers.ReLU(name="relu2")(x))
    x = layers.Dense(16, name="dense1")(layers.Flatten(name="flatten")(x))
    x = layers.Dense(6, name="dense2")(layers.ReLU(name="relu3")(x))
    return k.Model(volume, layers.Softmax(name="softmax")(x), name="conv3d")


def nested_shared(k: Any) -> Any:
    layers = k.layers
    entry = layers.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1, name="pad")(entry)
    x = layers.Conv2D(8, 3, 2, name="conv")(x)
    x = layers.MaxPooling2D(2, name="pool")(layers.ReLU(name="relu")(x))
    x = layers.Dense(16, name="dense")(layers.Flatten(name="flatten")(x))
    tower = k.Model(entry, x, name="tower")

    left = layers.Input((32, 32, 3), name="left")
    right = layers.Input((32, 32, 3), name="right")
    x = layers.Subtract(name="subtract")([tower(left), tower(right)])
    x = layers.Dense(4, name="dense")(layers.ReLU(name="relu")(x))
    return k.Model([left, right], layers.Softmax(name="softmax")(x), name="nested_shared")

"""Transformers written plainly: what they differ in is where the tokens of the image are.

No layer has a bias, so a patch of zeros is a token of zeros in all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.twins.torch_networks import Encoder

WIDTH, HEADS = 16, 2


class FusedBlock(nn.Module):
    """A block whose queries, keys and values come from one product, as timm writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-3)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, 1e-3)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width, bias=False), nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )  # fmt: skip
        self.heads = heads

    def mixed(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        # (N, T, 3 C) -> (3, N, heads, T, C / heads)
        parts = self.qkv(x).reshape(n, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.project(y.transpose(1, 2).reshape(n, count, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixed(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer.

    Parameters
    ----------
    front, back : tokens that are no patch, before and behind those of the image.
    mean : whether the patches' mean goes into the head, not the first token.
    fused : how attention is written.
    """

    def __init__(
        self, front: int = 1, back: int = 0, mean: bool = False, fused: bool = False,
        grid: tuple[int, int] = (3, 5),
    ) -> None:  # fmt: skip
        super().__init__()
        block: Any = FusedBlock if fused else Encoder
        count = grid[0] * grid[1]
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8, bias=False)
        self.tokens = ExtraTokens(front, back, count)
        self.block1 = block(WIDTH, HEADS)
        self.block2 = block(WIDTH, HEADS)
        self.norm = nn.LayerNorm(WIDTH, 1e-3)
        self.head = nn.Linear(WIDTH, 5, bias=False)
        if front == 2:
            self.distilled = nn.Linear(WIDTH, 5, bias=False)
        self.front, self.count, self.mean = front, count, mean

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.patches(x).flatten(2).transpose(1, 2))
        x = self.norm(self.block2(self.block1(x)))
        if self.mean:
            return self.head(x[:, self.front : self.front + self.count].mean(1))
        if self.front == 2:
            return (self.head(x[:, 0]) + self.distilled(x[:, 1])) / 2
        return self.head(x[:, 0])


class ExtraTokens(nn.Module):
    """Class, distillation and register tokens."""

    def __init__(self, front: int, back: int, count: int) -> None:
        super().__init__()
        self.front = nn.Parameter(torch.zeros(1, front, WIDTH))
        self.back = nn.Parameter(torch.zeros(1, back, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, count, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = [p.expand(x.shape[0], -1, -1) for p in (self.front, self.back)]
        return torch.cat([parts[0], x + self.positions, parts[1]], dim=1)


class SwinBlock(FusedBlock):
    """Attention within windows, which the second of two blocks shifts."""

    def __init__(self, width: int, window: int, shift: int, flat: bool) -> None:
        super().__init__(width, HEADS)
        self.window, self.shift, self.flat = window, shift, flat

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        (h, w), s, width = grid, self.window, x.shape[-1]
        y = self.norm1(x).view(-1, h, w, width)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        # (N, h, w, C) -> (N * windows, s * s, C)
        y = y.view(-1, h // s, s, w // s, s, width).permute(0, 1, 3, 2, 4, 5)
        y = self.mixed(y.reshape(-1, s * s, width))
        y = y.view(-1, h // s, w // s, s, s, width).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, h, w, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + (y.flatten(1, 2) if self.flat else y)
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int, flat: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)
        self.flat = flat

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x.view(-1, *grid, x.shape[-1])
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
        x = self.reduce(self.norm(x))
        return x.flatten(1, 2) if self.flat else x


class Swin(nn.Module):
    """Windows and merged patches; tokens are `(N, h * w, C)` if flat, else `(N, h, w, C)`."""

    GRID = (8, 16)  # 4 x 8 after the merging

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4, bias=False)
        self.block1 = SwinBlock(WIDTH, 4, 0, flat)
        self.block2 = SwinBlock(WIDTH, 4, 2, flat)
        self.merging = Merging(WIDTH, flat)
        self.block3 = SwinBlock(2 * WIDTH, 4, 0, flat)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, 5, bias=False)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        if self.flat:
            x = x.flatten(1, 2)
        x = self.block2(self.block1(x, self.GRID), self.GRID)
        x = self.merging(x, self.GRID)
        x = self.norm(self.block3(x, (4, 8)))
        return self.head(x.mean(1) if self.flat else x.mean((1, 2)))


NETWORKS: dict[str, tuple[Any, tuple[int, int], int]] = {
    # name: how it is built, its grid where the choice looks, and the pixels of a cell
    "class token": (lambda: ViT(), (3, 5), 8),
    "class and distillation": (lambda: ViT(front=2), (3, 5), 8),
    "registers at the start": (lambda: ViT(front=5, fused=True), (3, 5), 8),
    "registers at the end": (lambda: ViT(front=1, back=4, fused=True), (3, 5), 8),
    "no class token": (lambda: ViT(front=0, mean=True, fused=True), (3, 5), 8),
    "mean beside a class token": (lambda: ViT(front=1, mean=True), (3, 5), 8),
    "windows": (lambda: Swin(flat=True), (4, 8), 8),
    "windows, channels last": (lambda: Swin(flat=False), (4, 8), 8),
}


def filled(name: str) -> nn.Module:
    """Build a network with drawn weights, in which tokens mix only behind the chosen layer.

    So a token there is that of its patch alone, and zero if the patch is.
    """
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    mixing = "block2." if getattr(network, "mean", True) is False else "none"
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            still = "project" in key and not key.startswith(mixing)
            if still or key.endswith(("bias", "positions")):
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(0, max(parameter[0].numel(), 1) ** -0.5)
    return network.eval()


def image_size(name: str) -> tuple[int, int]:
    """Size of the network's input in pixels."""
    _, (h, w), cell = NETWORKS[name]
    return h * cell, w * cell


def keras_vit(network: ViT) -> Any:
    """Build the same network in Keras, with the weights of the plain one in PyTorch."""
    import keras

    from tests.twins.weights import fill_keras

    layers, (h, w) = keras.layers, (3, 5)
    front, back = network.tokens.front.shape[1], network.tokens.back.shape[1]

    class ExtraTokens(layers.Layer):
        def build(self, _shape: Any) -> None:
            self.front = self.add_weight(name="front", shape=(1, front, WIDTH))
            self.back = self.add_weight(name="back", shape=(1, back, WIDTH))
            self.positions = self.add_weight(name="positions", shape=(1, h * w, WIDTH))

        def call(self, x: Any) -> Any:
            count = keras.ops.shape(x)[0]
            ends = [keras.ops.repeat(p, count, axis=0) for p in (self.front, self.back)]
            return keras.ops.concatenate([ends[0], x + self.positions, ends[1]], axis=1)

    def block(name: str) -> Any:
        entry = layers.Input((front + h * w + back, WIDTH))
        x = layers.LayerNormalization(epsilon=1e-3, name="norm1")(entry)
        x = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="attention")(x, x)
        middle = layers.Add(name="add1")([entry, x])
        x = layers.LayerNormalization(epsilon=1e-3, name="norm2")(middle)
        x = layers.Activation("gelu", name="gelu")(layers.Dense(2 * WIDTH, name="dense1")(x))
        x = layers.Add(name="add2")([middle, layers.Dense(WIDTH, name="dense2")(x)])
        return keras.Model(entry, x, name=name)

    image = layers.Input((h * 8, w * 8, 3))
    x = layers.Conv2D(WIDTH, 8, 8, use_bias=False, name="patches")(image)
    x = layers.Reshape((h * w, WIDTH), name="reshape")(x)
    x = block("block2")(block("block1")(ExtraTokens(name="tokens")(x)))
    x = layers.LayerNormalization(epsilon=1e-3, name="norm")(x)[:, 0]
    model = keras.Model(image, layers.Dense(5, use_bias=False, name="head")(x))
    state = dict(network.state_dict())
    tokens = [state.pop(f"tokens.{part}").numpy() for part in ("front", "back", "positions")]
    model.get_layer("tokens").set_weights(tokens)
    with_tokens = model.get_layer("tokens")
    plain = [layer for layer in model.layers if layer is not with_tokens]
    fill_keras(_Layers(plain), state, {})
    return model


class _Layers:
    """What `fill_keras` takes of a model."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

"""The twins in PyTorch: the reference for layer names and weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-3  # Keras's default for every normalisation


class Plain(nn.Module):
    """Functional rectifiers, and one pooling module used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.dense1 = nn.Linear(256, 32)
        self.dense2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.pool(F.relu(self.conv3(x)))
        x = F.relu(self.dense1(torch.flatten(x, 1)))
        return self.dense2(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; one in-place rectifier, used twice."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, EPSILON)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, EPSILON)
        self.projects = stride != 1
        if self.projects:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Stage(nn.Module):
    """Blocks one level deeper, the first of which halves the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = ResidualBlock(8, 12, stride=2)
        self.block2 = ResidualBlock(12, 12, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(x))


class Residual(nn.Module):
    """A ResNet of nested blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8, EPSILON)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = ResidualBlock(8, 8, stride=1)
        self.stage = Stage()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dense = nn.Linear(12, 10)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.stage(self.block1(x))
        return self.softmax(self.dense(self.flatten(self.gap(x))))


class Inception(nn.Module):
    """Parallel branches, asymmetric kernels, and both ways to average at the border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=2)
        self.branch1 = nn.Conv2d(8, 6, 1)
        self.branch2_reduce = nn.Conv2d(8, 4, 1)
        self.branch2_row = nn.Conv2d(4, 5, (1, 7), padding=(0, 3))
        self.branch2_column = nn.Conv2d(5, 6, (7, 1), padding=(3, 0))
        self.branch2_norm = nn.BatchNorm2d(6, EPSILON)
        self.branch3_pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.branch3 = nn.Conv2d(8, 4, 1)
        self.branch4_pool = nn.MaxPool2d(3, 1, padding=1)
        self.branch4 = nn.Conv2d(8, 4, 1)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.conv = nn.Conv2d(20, 16, 3)
        self.norm = nn.BatchNorm2d(16, EPSILON)
        self.dense = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        branch1 = F.relu(self.branch1(x))
        branch2 = self.branch2_row(F.relu(self.branch2_reduce(x)))
        branch2 = F.relu(self.branch2_norm(self.branch2_column(branch2)))
        branch3 = F.relu(self.branch3(self.branch3_pool(x)))
        branch4 = F.relu(self.branch4(self.branch4_pool(x)))
        x = self.pool(torch.cat([branch1, branch2, branch3, branch4], dim=1))
        x = F.relu(self.norm(self.conv(x)))
        return torch.softmax(self.dense(x.mean((2, 3))), dim=1)


class SeparableConv(nn.Module):
    """What Keras holds in one layer."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False
        )
        self.pointwise = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Separable(nn.Module):
    """A MobileNet: depthwise and pointwise convolutions, ReLU6, asymmetric padding."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(8, EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.depthwise1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise1_norm = nn.BatchNorm2d(8, EPSILON)
        self.depthwise1_relu = nn.ReLU6()
        self.pointwise1 = nn.Conv2d(8, 12, 1, bias=False)
        self.pointwise1_norm = nn.BatchNorm2d(12, EPSILON)
        self.pointwise1_relu = nn.ReLU6()
        self.depthwise2 = nn.Conv2d(12, 12, 3, 2, padding=1, groups=12, bias=False)
        self.depthwise2_norm = nn.BatchNorm2d(12, EPSILON)
        self.depthwise2_relu = nn.ReLU6()
        self.pointwise2 = nn.Conv2d(12, 16, 1, bias=False)
        self.pointwise2_norm = nn.BatchNorm2d(16, EPSILON)
        self.pointwise2_relu = nn.ReLU6()
        self.separable = SeparableConv(16, 16)
        self.separable_relu = nn.ReLU6()
        self.dense = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.pad(x))))
        x = self.depthwise1_relu(self.depthwise1_norm(self.depthwise1(x)))
        x = self.pointwise1_relu(self.pointwise1_norm(self.pointwise1(x)))
        x = self.depthwise2_relu(self.depthwise2_norm(self.depthwise2(x)))
        x = self.pointwise2_relu(self.pointwise2_norm(self.pointwise2(x)))
        x = self.separable_relu(self.separable(x))
        return self.dense(x.mean((2, 3)))


class Fused(nn.Module):
    """Activations that Keras fuses into the layers before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 12, 5, padding=2)
        self.pool2 = nn.MaxPool2d(2)
        self.dense1 = nn.Linear(768, 24)
        self.dense2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(torch.relu(self.conv1(x)))
        x = self.pool2(F.relu(self.conv2(x), inplace=True))
        x = self.dense1(torch.flatten(x, 1)).relu()
        return F.softmax(self.dense2(x), dim=-1)


class ChannelsFirst(nn.Module):
    """The network whose Keras twin has its channels first too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, EPSILON)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.dense = nn.Linear(588, 10)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.norm(self.conv1(x))))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.softmax(self.dense(self.flatten(x)))


class TwoByTwo(nn.Module):
    """An image and a depth map go in, classes and a map on the image's grid come out."""

    def __init__(self) -> None:
        super().__init__()
        self.image_conv = nn.Conv2d(3, 8, 3, padding=1)
        self.image_relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.depth_conv = nn.Conv2d(1, 4, 3, padding=1)
        self.depth_relu = nn.ReLU()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.relu = nn.ReLU()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dense = nn.Linear(12, 5)
        self.upsample = nn.Upsample(scale_factor=2)
        self.map = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.image_relu(self.image_conv(image)))
        y = self.depth_relu(self.depth_conv(depth))
        x = self.relu(self.conv(torch.cat([x, y], dim=1)))
        classes = torch.softmax(self.dense(self.flatten(self.gap(x))), dim=1)
        return classes, self.map(self.upsample(x))


class Tokens(nn.Module):
    """Puts the class token first and adds the positions."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, count + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        token = self.class_token.expand(x.shape[0], -1, -1)
        return torch.cat([token, x], dim=1) + self.positions


class Attention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        # (N, T, C) -> (N, heads, T, C / heads)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mixed = scores.softmax(dim=-1) @ value
        return self.project(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.dense1 = nn.Linear(width, 2 * width)
        self.gelu = nn.GELU()
        self.dense2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dense2(self.gelu(self.dense1(self.norm2(x))))


class Vit(nn.Module):
    """A vision transformer with a class token: 16 patches of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, stride=8)
        self.tokens = Tokens(16, 24)
        self.block1 = Encoder(24, heads=4)
        self.block2 = Encoder(24, heads=4)
        self.norm = nn.LayerNorm(24, EPSILON)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.patches(x).flatten(2).transpose(1, 2))
        x = self.norm(self.block2(self.block1(x)))
        return self.head(x[:, 0])


class Conv1D(nn.Module):
    """A network over sequences, with independent sigmoid outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 8, 5, padding=2)
        self.norm = nn.BatchNorm1d(8, EPSILON)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool1d(2)
        self.conv2 = nn.Conv1d(8, 12, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool1d(2)
        self.dense = nn.Linear(192, 4)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.norm(self.conv1(x))))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.sigmoid(self.dense(torch.flatten(x, 1)))


class Conv3D(nn.Module):
    """A network over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6, EPSILON)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool3d(2)
        self.conv2 = nn.Conv3d(6, 8, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool3d(2)
        self.dense1 = nn.Linear(144, 16)
        self.relu3 = nn.ReLU()
        self.dense2 = nn.Linear(16, 6)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.norm(self.conv1(x))))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.dense1(torch.flatten(x, 1)))
        return self.softmax(self.dense2(x))


class Tower(nn.Module):
    """What both images of the siamese network go through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(512, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(x)))
        return self.dense(torch.flatten(x, 1))


class NestedShared(nn.Module):
    """A siamese network: one nested model, called on each of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.relu = nn.ReLU()
        self.dense = nn.Linear(16, 4)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x = self.relu(self.tower(left) - self.tower(right))
        return self.softmax(self.dense(x))

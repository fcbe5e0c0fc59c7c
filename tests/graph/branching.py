"""Well-known networks that branch, written plainly, as their publications have them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Unit(nn.Sequential):
    """Convolution, normalisation, activation."""

    def __init__(self, entry: int, width: int, kernel, stride: int = 1, padding=0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(entry, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)


def chain(entry: int, *units: tuple) -> nn.Module:
    """Units one after another, each given as (width, kernel, stride, padding)."""
    widths = [entry, *(unit[0] for unit in units)]
    made = [Unit(a, b, *unit[1:]) for (a, b), unit in zip(pairwise(widths), units, strict=True)]
    return made[0] if len(made) == 1 else nn.Sequential(*made)


class Branches(nn.Module):
    """What several branches make of the same input, one beside the other."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            setattr(self, name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class Fork(nn.Module):
    """A unit of which two others read."""

    def __init__(self, entry: nn.Module, width: int) -> None:
        super().__init__()
        self.entry = entry
        self.across = Unit(width, 384, (1, 3), 1, (0, 1))
        self.down = Unit(width, 384, (3, 1), 1, (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return torch.cat([self.across(x), self.down(x)], 1)


def mixed_a(entry: int, pooled: int) -> nn.Module:
    return Branches(
        one=Unit(entry, 64, 1),
        five=chain(entry, (48, 1), (64, 5, 1, 2)),
        three=chain(entry, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)),
        pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), Unit(entry, pooled, 1)),
    )


def mixed_b(entry: int) -> nn.Module:
    return Branches(
        three=Unit(entry, 384, 3, 2),
        deep=chain(entry, (64, 1), (96, 3, 1, 1), (96, 3, 2)),
        pool=nn.MaxPool2d(3, 2),
    )


def mixed_c(c: int) -> nn.Module:
    across, down = (1, (0, 3)), (1, (3, 0))
    return Branches(
        one=Unit(768, 192, 1),
        seven=chain(768, (c, 1), (c, (1, 7), *across), (192, (7, 1), *down)),
        deep=chain(
            768, (c, 1), (c, (7, 1), *down), (c, (1, 7), *across), (c, (7, 1), *down),
            (192, (1, 7), *across),
        ),
        pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), Unit(768, 192, 1)),
    )  # fmt: skip


def mixed_d() -> nn.Module:
    return Branches(
        three=chain(768, (192, 1), (320, 3, 2)),
        seven=chain(768, (192, 1), (192, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0)),
                    (192, 3, 2)),
        pool=nn.MaxPool2d(3, 2),
    )  # fmt: skip


def mixed_e(entry: int) -> nn.Module:
    return Branches(
        one=Unit(entry, 320, 1),
        three=Fork(Unit(entry, 384, 1), 384),
        deep=Fork(chain(entry, (448, 1), (384, 3, 1, 1)), 384),
        pool=nn.Sequential(nn.AvgPool2d(3, 1, 1), Unit(entry, 192, 1)),
    )


class InceptionV3(nn.Module):
    """Szegedy et al. 2015, arXiv:1512.00567; `aux` is the classifier that helps in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Unit(3, 32, 3, 2), Unit(32, 32, 3), Unit(32, 64, 3, 1, 1), nn.MaxPool2d(3, 2),
            Unit(64, 80, 1), Unit(80, 192, 3), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.mixed = nn.Sequential(
            mixed_a(192, 32), mixed_a(256, 64), mixed_a(288, 64), mixed_b(288),
            mixed_c(128), mixed_c(160), mixed_c(160), mixed_c(192),
        )  # fmt: skip
        self.aux = nn.Sequential(
            nn.AvgPool2d(5, 3), Unit(768, 128, 1), Unit(128, 768, 5), nn.Flatten(),
            nn.Linear(768, 1000),
        )  # fmt: skip
        self.last = nn.Sequential(mixed_d(), mixed_e(1280), mixed_e(2048))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.mixed(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class DenseLayer(nn.Module):
    def __init__(self, entry: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(entry)
        self.conv1 = nn.Conv2d(entry, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, earlier: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(earlier, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    """Layers of which each reads all earlier ones."""

    def __init__(self, entry: int, count: int, growth: int = 32) -> None:
        super().__init__()
        layers = [DenseLayer(entry + i * growth, growth) for i in range(count)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(found))
        return torch.cat(found, 1)


class DenseNet121(nn.Module):
    """Huang et al. 2016, arXiv:1608.06993."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        width = 64
        for index, count in enumerate((6, 12, 24, 16), 1):
            setattr(self, f"dense{index}", DenseBlock(width, count))
            width += 32 * count
            if index < 4:
                transition = nn.Sequential(
                    nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                )  # fmt: skip
                setattr(self, f"transition{index}", transition)
                width //= 2
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.dense1(self.stem(x)))
        x = self.transition3(self.dense3(self.transition2(self.dense2(x))))
        x = F.relu(self.norm(self.dense4(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def two(entry: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(entry, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, padded so that sizes fit."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(two(a, b) for a, b in pairwise((1, *widths)))
        self.pool = nn.MaxPool2d(2)
        back = list(pairwise(widths[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in back)
        self.join = nn.ModuleList(two(a, b) for a, b in back)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(self.pool(x) if kept else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2020, arXiv:2010.11929: ViT-S/16."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.encoder = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])

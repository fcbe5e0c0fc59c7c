"""ResNet-50 with random weights, in PyTorch and in Keras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["keras_resnet50", "torch_resnet50"]


def keras_resnet50() -> Any:
    """Build Keras's own ResNet-50; its last block ends in `conv5_block3_out`."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.applications.ResNet50(weights=None)


def torch_resnet50() -> nn.Module:
    """Build the ResNet-50 that torchvision has, in eval mode; its last block is `layer4.2`."""
    import torch
    from torch import Tensor, nn

    class Bottleneck(nn.Module):
        def __init__(self, channels_in: int, width: int, stride: int) -> None:
            super().__init__()
            channels = 4 * width
            self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = nn.Sequential()
            if stride != 1 or channels_in != channels:
                self.downsample.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
                self.downsample.append(nn.BatchNorm2d(channels))

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            y += self.downsample(x)
            return self.relu(y)

    class ResNet50(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            channels = 64
            for index, depth in enumerate((3, 4, 6, 3)):
                width, stage = 64 << index, nn.Sequential()
                for block in range(depth):
                    stride = 2 if index and not block else 1
                    stage.append(Bottleneck(channels, width, stride))
                    channels = 4 * width
                self.add_module(f"layer{index + 1}", stage)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, 1000)

        def forward(self, x: Tensor) -> Tensor:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(self.avgpool(x).flatten(1))

    torch.manual_seed(0)
    network = ResNet50()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network.eval()

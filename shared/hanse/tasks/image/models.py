"""Models for images, without batch statistics and without in-place layers.

Each begins with :class:`Normalize`, so that images travel and rest as bytes, a quarter of the
memory of floats. All take (B, C, H, W) and give logits (B, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hanse.tasks.image.gradients import Grid, OrientedGradients
from hanse.tasks.perceptron import Activation, activation, perceptron

Shape = tuple[int, int, int]


class Normalize(nn.Module):
    """Bytes to floats: ``(x / 255 - mean) / std`` for each channel, with declared constants."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Constants of the job, known to both ends: not persistent, so that they never travel.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) of 0 to 255 -> the same shape in the parameters' float type."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def mlp(shape: Shape, hidden: Sequence[int], classes: int, name: Activation) -> nn.Sequential:
    """A perceptron over all pixels."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(), *perceptron((channels * height * width, *hidden, classes), name)
    )


def cnn(
    shape: Shape, channels: Sequence[int], hidden: Sequence[int], classes: int, name: Activation
) -> nn.Sequential:
    """3x3 convolutions, each halved by max-pooling, then a perceptron."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((shape[0], *channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), activation(name), nn.MaxPool2d(2)]
    features = channels[-1] * (shape[1] >> len(channels)) * (shape[2] >> len(channels))
    return nn.Sequential(*layers, nn.Flatten(), *perceptron((features, *hidden, classes), name))


def gradients(
    shape: Shape, grid: Grid, hidden: Sequence[int], classes: int, name: Activation
) -> nn.Sequential:
    """A linear model, or a perceptron, on histograms of oriented gradients."""
    rows, columns = (1 + (size - grid.cell) // grid.stride for size in shape[1:])
    features = shape[0] * grid.orientations * rows * columns
    return nn.Sequential(OrientedGradients(grid), *perceptron((features, *hidden, classes), name))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut (He et al. 2016; Wu and He 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        output: Tensor = self.activation(self.body(features) + self.shortcut(features))
        return output


def resnet(shape: Shape, width: int, blocks: Sequence[int], classes: int) -> nn.Sequential:
    """ResNet for small images: a 3x3 stem, then stages of ``blocks``, doubling the width.

    ``width = 64`` and ``blocks = (2, 2, 2, 2)`` is ResNet-18 with GroupNorm in place of
    BatchNorm, whose statistics would mix records.
    """
    groups = width // 2
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
    ]
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(inputs, outputs, stride, groups))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

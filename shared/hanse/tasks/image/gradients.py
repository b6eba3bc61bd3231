"""Histograms of oriented gradients (Dalal and Triggs 2005): features that nothing is learnt for.

With few records and much noise, a linear model on good fixed features beats a network that has
to find its own (Tramèr and Boneh 2021).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hanse.config import Settings

_BLUR = 0.7  # standard deviation in pixels
_SHARPNESS = 8  # how steeply a direction's response falls off beside it, as a power of the cosine


class Grid(Settings):
    """Where gradients are gathered, and in which directions.

    Attributes:
        orientations: directions around the circle.
        cell: side of a cell in pixels.
        stride: distance of neighbouring cells in pixels; below ``cell`` they overlap.
    """

    orientations: Annotated[int, Field(ge=3, le=360)] = 12
    cell: Annotated[int, Field(ge=1, le=65_536)] = 7
    stride: Annotated[int, Field(ge=1, le=65_536)] = 3


class OrientedGradients(nn.Module):
    """For each cell of a grid, how much of the image changes in each direction.

    The features of each record are centred and scaled by that record's own mean and deviation.
    """

    blur: Tensor
    difference: Tensor
    directions: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        blur = torch.exp(-torch.arange(-2.0, 3.0).square() / (2 * _BLUR**2))
        angles = torch.arange(grid.orientations) * (2 * math.pi / grid.orientations)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        # Constants, known to both ends: not persistent, so that they never travel.
        self.register_buffer("blur", (blur / blur.sum()).view(1, 1, 1, 5), persistent=False)
        self.register_buffer(
            "difference", torch.tensor([-0.5, 0.0, 0.5]).view(1, 1, 1, 3), persistent=False
        )
        self.register_buffer("directions", directions[:, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * orientations * rows * columns)."""
        count, channels, height, width = images.shape
        planes = images.reshape(count * channels, 1, height, width)
        # The border is repeated, so that the edge of the image is not taken for a contour.
        planes = F.pad(planes, (3, 3, 3, 3), mode="replicate")
        blurred = F.conv2d(F.conv2d(planes, self.blur), self.blur.transpose(2, 3))
        across = F.conv2d(blurred[:, :, 1:-1], self.difference)
        along = F.conv2d(blurred[..., 1:-1], self.difference.transpose(2, 3))
        slope = torch.cat([across, along], dim=1)
        strength = slope.norm(dim=1, keepdim=True)
        response = F.conv2d(slope, self.directions).relu()
        sharpened = response * (response / (strength + 1e-6)) ** (_SHARPNESS - 1)
        cells = F.avg_pool2d(sharpened, self.grid.cell, self.grid.stride)
        features = cells.reshape(count, channels * math.prod(cells.shape[1:]))
        return F.layer_norm(features, features.shape[1:])

"""Random augmentation of images: each record moves on its own."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from hanse.config import Settings


class Augmentation(Settings):
    """``[task.options.augment]``: how far an image may move, drawn uniformly for each record.

    Attributes:
        shift: pixels in each direction.
        rotate: degrees in each direction.
        scale: 0.1 for 0.9 to 1.1 times the size.
        flip: whether half of the images are mirrored left to right.
    """

    shift: NonNegativeFloat = 0.0
    rotate: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    flip: bool = False


def augment(images: Tensor, wanted: Augmentation, generator: torch.Generator) -> Tensor:
    """Move each image by its own draw, (B, C, H, W) -> the same shape, dtype and device.

    What comes in from outside repeats the border. All draws of a batch are made at once, from
    ``generator``, in an order that does not depend on the images.
    """
    count, _, height, width = images.shape
    draws = torch.rand(5, count, generator=generator, device=generator.device).to(images.device)
    angle, scale, down, right = 2 * draws[:4] - 1
    angle = angle * math.radians(wanted.rotate)
    inverse = 1 / (1 + scale * wanted.scale)
    mirror = 1 - 2 * (draws[4] < 0.5).float() if wanted.flip else torch.ones_like(inverse)
    aspect = height / width
    # The affine map from output to input coordinates, both of which span [-1, 1], row by row.
    entries = (
        mirror * inverse * angle.cos(),
        -mirror * inverse * angle.sin() * aspect,
        2 * right * wanted.shift / width,
        inverse * angle.sin() / aspect,
        inverse * angle.cos(),
        2 * down * wanted.shift / height,
    )
    theta = torch.stack(entries, dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return moved.to(images.dtype) if images.is_floating_point() else moved.round().to(images.dtype)

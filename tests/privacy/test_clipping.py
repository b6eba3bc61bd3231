"""The clip holds to the last bit."""

from __future__ import annotations

import pytest
import torch
from hanse_client.privacy.clipping import Clipping


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_no_rounding_brings_a_clipped_gradient_above_the_norm(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    clipping = Clipping(0.7)
    for scale in (0.5, 1.0, 30.0, 1e6):
        gradients = scale * torch.randn(2000, size, generator=generator)
        factors = clipping.factors(gradients.norm(dim=1))
        left = (gradients * factors[:, None]).double().norm(dim=1)
        assert float(left.max()) <= 0.7

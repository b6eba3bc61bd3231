"""Float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """On ``device``, no TF32 or bfloat16 in products of float32, whatever the process asks for.

    On a GPU torch convolves in TF32 by default. Then the sum of gradients is made from numbers of
    11 bits where their norms may not have been, and exceeds the clipping norm by up to 0.1 %.
    Backends make norms and sums within this; what comes before both may be as imprecise as it is.
    """
    backends: Any = torch.backends
    on_gpu = device.type == "cuda"
    matmul = backends.cuda.matmul if on_gpu else backends.mkldnn.matmul
    conv = backends.cudnn.conv if on_gpu else backends.mkldnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before

"""Float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 inside products of float32, whatever the process has asked for.

    On a GPU torch convolves in TF32 by default. Then the sum of gradients is made from numbers of
    11 bits where their norms may not have been, and exceeds the clipping norm by up to 0.1 %.
    """
    backends: Any = torch.backends
    places = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    with ExitStack() as restore:
        for place in places:
            restore.callback(setattr, place, "fp32_precision", place.fp32_precision)
            place.fp32_precision = "ieee"
        yield

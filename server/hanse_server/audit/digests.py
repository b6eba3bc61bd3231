"""What the trail says of models and metrics in place of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def model_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model: of each tensor, by name, its name, dtype, shape and bytes.

    It does not depend on the file that the model lies in.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def metrics_digest(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of what a message's records of metrics hold, as both sides' trails have them."""
    return hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()

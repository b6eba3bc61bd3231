"""What the trail says of models and metrics in place of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3
from flwr.app import Array, ArrayRecord
from hanse.arrays import TensorArray, read_tensor, to_array
from hanse.digests import digests_of


def model_digest(arrays: ArrayRecord) -> str:
    """BLAKE3 of a model: of each array, by name, its name, dtype, shape, and BLAKE3 of its bytes.

    It depends neither on the file that the model lies in, nor on how a strategy wrote its arrays.
    """
    named = {name: _as_tensor(arrays[name]) for name in sorted(arrays)}
    whole, own = blake3(), digests_of(list(named.values()))
    for (name, array), digest in zip(named.items(), own, strict=True):
        whole.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0".encode() + digest)
    return whole.hexdigest()


def _as_tensor(array: Array) -> Array:
    return array if isinstance(array, TensorArray) else to_array(read_tensor(array), adopt=True)


def metrics_digest(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of what a message's records of metrics hold, as both sides' trails have them."""
    return hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()

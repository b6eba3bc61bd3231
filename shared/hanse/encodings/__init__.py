"""How an update's floats travel in fewer bytes: pure functions of a tensor, and back.

An encoded array keeps the name, dtype and shape of its tensor; its ``stype`` tells the encoding,
and its data are what :mod:`floats <hanse.encodings.floats>`, :mod:`blocks
<hanse.encodings.blocks>` and :mod:`sparse <hanse.encodings.sparse>` lay out, little-endian. Who
knows an encoding says so in its Hello (:data:`CAPABILITIES`). A job's encoding is asked for beside
the job and not in it: a site that does not know it sends plain arrays, and the server takes both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from flwr.app import Array
from torch import Tensor

from hanse.aggregation import PLAIN, Encoding
from hanse.encodings import blocks, floats, sparse

ENCODING = "hanse.encoding"
"""Config key of an instruction to train: the name of the encoding that the update is wanted in."""

KEPT = "hanse.encoding.kept"
"""Config key: :attr:`hanse.aggregation.Encoding.kept`."""

TRAINABLE_ONLY = "hanse.encoding.trainable-only"
"""Config key: :attr:`hanse.aggregation.Encoding.trainable_only`."""

_STYPE = "hanse.encoding."
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Codec:
    """One encoding: flat float32 numbers to bytes, and ``size`` bytes back to so many of them."""

    pack: Callable[[Tensor, Encoding, torch.Generator], bytes]
    unpack: Callable[[bytes, int], Tensor]


CODECS = {
    "float16": Codec(
        lambda flat, asked, draws: floats.pack(flat, torch.float16),
        partial(floats.unpack, dtype=torch.float16),
    ),
    "bfloat16": Codec(
        lambda flat, asked, draws: floats.pack(flat, torch.bfloat16),
        partial(floats.unpack, dtype=torch.bfloat16),
    ),
    "int8": Codec(lambda flat, asked, draws: blocks.pack8(flat, draws), blocks.unpack8),
    "int4": Codec(lambda flat, asked, draws: blocks.pack4(flat, draws), blocks.unpack4),
    "topk": Codec(lambda flat, asked, draws: sparse.pack(flat, asked.kept, draws), sparse.unpack),
}

CAPABILITIES = tuple(f"encoding:{name}" for name in (*CODECS, "trainable-only"))
"""What a site of this version says that it can be asked for."""


def capabilities_for(encoding: Encoding) -> frozenset[str]:
    """What a site must say to send an update as ``encoding`` asks; nothing for a plain one."""
    names: list[str] = [] if encoding.name == PLAIN else [encoding.name]
    names += ["trainable-only"] if encoding.trainable_only else []
    return frozenset(f"encoding:{name}" for name in names)


def asked_for(encoding: Encoding) -> dict[str, str | float | bool]:
    """What an instruction to train says of ``encoding``; nothing of a plain one."""
    asked: dict[str, str | float | bool] = {}
    if encoding.name != PLAIN:
        asked |= {ENCODING: encoding.name, KEPT: encoding.kept}
    if encoding.trainable_only:
        asked[TRAINABLE_ONLY] = True
    return asked


def encoding_of(array: Array) -> str:
    """The name of an array's encoding; ``plain`` where it is in none, or in an unknown one."""
    name = array.stype.removeprefix(_STYPE)
    return name if array.stype.startswith(_STYPE) and name in CODECS else PLAIN


def encode(tensor: Tensor, encoding: Encoding, randomness: torch.Generator) -> Array | None:
    """An array of the tensor's dtype and shape that holds it encoded.

    Args:
        randomness: of stochastic rounding. What is encoded is what leaves the site anyway, noise
            included, so it need not be secret.

    Returns:
        None for a tensor that is better sent as it is: of integers, or no smaller encoded. That
        is a function of its dtype and shape.
    """
    if tensor.dtype not in _DTYPES or encoding.name == PLAIN:
        return None
    flat = tensor.detach().cpu().reshape(-1).to(torch.float32)
    data = CODECS[encoding.name].pack(flat, encoding, randomness)
    if len(data) >= tensor.numel() * tensor.element_size():
        return None
    return Array(_name(tensor.dtype), tuple(tensor.shape), _STYPE + encoding.name, data)


def decode(array: Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that an encoded array holds, if it is of ``dtype`` and ``shape``.

    Both come from who decodes, so that no array makes it take more memory than it expects to.

    Raises:
        ValueError: if it is of another dtype or shape, or its bytes are not of its encoding. The
            numbers of the tensor may still be too large for ``dtype``, that is infinite.
    """
    if array.dtype != _name(dtype) or tuple(array.shape) != shape:
        raise ValueError(
            f"declared {array.dtype}{tuple(array.shape)}, where {_name(dtype)}{shape} is expected"
        )
    if dtype not in _DTYPES or encoding_of(array) == PLAIN:
        raise ValueError(f"{array.stype!r} is no encoding of {_name(dtype)}")
    flat = CODECS[encoding_of(array)].unpack(array.data, math.prod(shape))
    return flat.to(dtype).reshape(shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

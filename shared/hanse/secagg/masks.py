"""Masks: key streams that are added to an update and cancel in the sum, modulo 2^32."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from hanse.errors import SecureAggregationError

Words = NDArray[np.uint32]
"""Integers modulo 2^32."""

KEY_BYTES = 32

_BLOCK = 1 << 16  # words: what is drawn at once stays in the processor's cache
_ZEROS = bytes(4 * _BLOCK)


def transcript(purpose: str, *parts: bytes) -> bytes:
    """``parts`` as bytes that no other parts give: what is signed, or keys are bound to."""
    whole = (f"hanse secure aggregation 1 {purpose}".encode(), *parts)
    return b"".join(len(part).to_bytes(4, "big") + part for part in whole)


def agreed_key(own: X25519PrivateKey, peer: bytes, context: bytes) -> bytes:
    """The 32 bytes that both ends of a key agreement derive, and nobody else.

    Args:
        peer: the raw public key of the other end.
        context: what the key is for, the same at both ends.

    Raises:
        SecureAggregationError: if ``peer`` is no key, or one with which nothing is agreed.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as unusable:
        raise SecureAggregationError(f"a peer's X25519 key is unusable: {unusable}") from unusable
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=context).derive(secret)


def add_mask(vector: Words, key: bytes, *, negative: bool = False) -> None:
    """Add the key stream of AES-256-CTR under ``key`` to ``vector``, or take it away, in place.

    A key is used for one mask only, so the counter starts from 0.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    drawn = bytearray(len(_ZEROS) + 15)  # update_into asks for room of one AES block, less a byte
    words = np.frombuffer(drawn, dtype="<u4", count=_BLOCK)
    combine = np.subtract if negative else np.add
    zeros = memoryview(_ZEROS)
    for start in range(0, len(vector), _BLOCK):
        part = vector[start : start + _BLOCK]
        stream.update_into(zeros[: part.nbytes], drawn)
        combine(part, words[: len(part)], out=part)


def is_negative(name: str, peer: str) -> bool:
    """Whether ``name`` takes away the mask that it shares with ``peer``, who then adds it."""
    return name > peer

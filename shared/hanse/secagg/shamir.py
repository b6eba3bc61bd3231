"""Secrets of 32 bytes, split so that any ``threshold`` of the shares give them back.

Shamir 1979, "How to share a secret", over the prime field of 2^256 + 297, the smallest that holds
every secret. Of the packages that are kept up, PyCryptodome alone has the scheme, for 16 bytes and
beside a second library of ciphers; so it is written here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, *, holders: int, threshold: int) -> list[bytes]:
    """Shares of ``secret`` for holders 1, 2, ...; fewer than ``threshold`` tell nothing of it.

    Raises:
        ValueError: if the secret is not of 32 bytes, or ``threshold`` not in 1 to ``holders``.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"the secret has {len(secret)} bytes, expected {SECRET_BYTES}")
    if not 1 <= threshold <= holders:
        raise ValueError(f"threshold = {threshold} is not in 1 to {holders}")
    tail = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = [int.from_bytes(secret, "big"), *tail]
    return [_value(coefficients, at).to_bytes(SHARE_BYTES, "big") for at in range(1, holders + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are shares, by holder; the caller has seen that they are enough.

    Raises:
        ValueError: if a share is malformed, or they are not of one secret (which need not show).
    """
    holders = tuple(sorted(shares))
    values = [int.from_bytes(shares[holder], "big") for holder in holders]
    if any(len(share) != SHARE_BYTES for share in shares.values()) or max(values) >= PRIME:
        raise ValueError("a share is not an element of the field")
    terms = zip(_at_zero(holders), values, strict=True)
    secret = sum(factor * value for factor, value in terms) % PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise ValueError("the shares are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], at: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % PRIME
    return value


@lru_cache(maxsize=1024)
def _at_zero(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's factors for the value at 0."""
    factors = []
    for holder in holders:
        numerator = denominator = 1
        for other in holders:
            if other != holder:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - holder) % PRIME
        factors.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(factors)

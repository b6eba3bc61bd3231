"""What stands for the bytes of arrays: a SHA-256 over the SHA-256 of each, in their order.

So an array that goes into several messages, trails or files is hashed once (:func:`sha256_of`
remembers it), and one that arrives is hashed as it comes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence

from flwr.app import Array

from hanse.arrays import Data, sha256_of, size_of
from hanse.threads import threads

MANY_BYTES = 8 << 20
"""Bytes from which on arrays are hashed by several threads."""


def arrays_digest(arrays: Iterable[Array]) -> bytes:
    """Of arrays as they are sent."""
    return hashlib.sha256(b"".join(sha256_of_each(list(arrays)))).digest()


def sha256_of_each(arrays: Sequence[Array]) -> Iterable[bytes]:
    """SHA-256 of the bytes of each array, in their order; of many, by several threads."""
    if len(arrays) > 1 and sum(map(size_of, arrays)) >= MANY_BYTES:
        return threads("hash", os.cpu_count() or 1).map(sha256_of, arrays)
    return map(sha256_of, arrays)


class BodyHash:
    """The same of arrays whose bytes come piece by piece, one array behind the other.

    Args:
        sizes: bytes of each array. What comes beyond them counts as one array more.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sizes = iter(sizes)
        self._all = hashlib.sha256()
        self._room = 0  # bytes that the array under way lacks
        self._begin()

    def update(self, data: Data) -> None:
        """Take the next bytes."""
        rest = memoryview(data)
        while rest:
            piece, rest = rest[: self._room], rest[self._room :]
            self._one.update(piece)
            self._begun = True
            self._room -= len(piece)
            if not self._room:
                self._all.update(self._one.digest())
                self._begin()

    def digest(self) -> bytes:
        """Of what came so far; an array that is not there whole counts as what of it is."""
        found = self._all.copy()
        if self._begun:
            found.update(self._one.digest())
        return found.digest()

    def _begin(self) -> None:
        """Go on to the next array that has any bytes."""
        self._one = hashlib.sha256()
        self._begun = False
        while (size := next(self._sizes, sys.maxsize)) == 0:
            self._all.update(self._one.digest())
        self._room = size

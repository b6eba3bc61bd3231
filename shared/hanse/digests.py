"""What stands for the bytes of arrays: a SHA-256 over the SHA-256 of each, in their order.

So an array that goes into several messages, trails or files is hashed once (:func:`sha256_of`
remembers it), and one that arrives is hashed as it comes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

from flwr.app import Array

from hanse.arrays import Data, sha256_of


def arrays_digest(arrays: Iterable[Array]) -> bytes:
    """Of arrays as they are sent."""
    return hashlib.sha256(b"".join(map(sha256_of, arrays))).digest()


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

"""What stands for the bytes of arrays: a BLAKE3 over the BLAKE3 of each, in their order.

So an array that goes into several messages, trails or files is hashed once (:func:`digest_of`
remembers it), and one that arrives is hashed as it comes.

BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020), as updates are hashed at each station of
their way: it is made to resist collisions as SHA-256 does, and took a third of its time on the
machine of the figures in tests/benchmarks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from blake3 import blake3
from flwr.app import Array

from hanse.arrays import digest_of, size_of
from hanse.parts import Data
from hanse.threads import of_each


def arrays_digest(arrays: Iterable[Array]) -> bytes:
    """Of arrays as they are sent."""
    return blake3(b"".join(digests_of(list(arrays)))).digest()


def digests_of(arrays: Sequence[Array]) -> Iterable[bytes]:
    """BLAKE3 of the bytes of each array, in their order."""
    return of_each(digest_of, arrays, sum(map(size_of, arrays)))


class BodyHash:
    """The same of arrays whose bytes come piece by piece, one array behind the other.

    Args:
        sizes: bytes of each array. What comes beyond them counts as one array more.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sizes = iter(sizes)
        self._all = blake3()
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
        self._one = blake3()
        self._begun = False
        while (size := next(self._sizes, sys.maxsize)) == 0:
            self._all.update(self._one.digest())
        self._room = size

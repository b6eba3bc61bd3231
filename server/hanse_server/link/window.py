"""What is on its way to all sites together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import ClassVar

from hanse.wire.message import CHUNK_BYTES

ON_THE_WAY = 128 << 20
"""Bytes of small pieces, and of replies in their headers: of all sites together."""

WINDOW = 64 << 20
"""Bytes of large pieces. With twice as many a thousand sites were no faster."""

LEAST = 64 << 10

TURN_SECONDS = 1.0
"""How long a large piece waits for its turn at most."""


def least_piece(sites: int) -> int:
    """Bytes that each of so many sites may be sent at a time, whatever the others do.

    Those of all of them are 128 MiB together, or 64 KiB a site beyond 2,048 of them.
    """
    return max(LEAST, min(CHUNK_BYTES, ON_THE_WAY // max(1, sites)))


class SendWindow:
    """Bytes of instructions that gRPC has been given, and has not sent: so many for all sites.

    A message costs its time, however small it is, so pieces are large, and those of a thousand
    sites wait for each other. But sites that take nothing must not keep the others waiting: who has
    waited for :data:`TURN_SECONDS` goes on with a small piece, outside of the window: it is the
    least that each gets, however slow the others are. What gRPC has been given it holds twice, as
    it is and enciphered.

    Args:
        most: bytes of the window.

    Attributes:
        largest: bytes of the largest piece, and of the largest body in a header.
    """

    largest: ClassVar = CHUNK_BYTES

    def __init__(self, most: int = WINDOW) -> None:
        self._left = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, asked: int, least: int) -> AsyncIterator[int]:
        """Wait until a piece may be sent, which is on its way in the context.

        Args:
            asked: bytes that there are to be sent.
            least: those that may be sent without a turn.

        Yields:
            How many may be sent.
        """
        size = min(asked, self.largest)
        if size > least and not await self._granted(size):
            size = least
        within = size > least
        try:
            yield size
        finally:
            if within:
                self._give_back(size)

    async def _granted(self, size: int) -> bool:
        """Whether there was room in time."""
        if not self._waiting and size <= self._left:
            self._left -= size
            return True
        turn = asyncio.get_running_loop().create_future()
        waiting = size, turn
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn
        except TimeoutError:
            if _has_come(turn):  # at the same moment
                return True
            self._give_up(waiting)
            return False
        except asyncio.CancelledError:
            if _has_come(turn):
                self._give_back(size)
            else:
                self._give_up(waiting)
            raise
        return True

    def _give_up(self, waiting: tuple[int, asyncio.Future[None]]) -> None:
        with suppress(ValueError):  # it was passed over already
            self._waiting.remove(waiting)
        self._give_back(0)  # there may be room for those behind it

    def _give_back(self, size: int) -> None:
        self._left += size
        while self._waiting and self._waiting[0][0] <= self._left:
            asked, turn = self._waiting.popleft()
            if not turn.done():  # else who waited has given up
                self._left -= asked
                turn.set_result(None)


def _has_come(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()

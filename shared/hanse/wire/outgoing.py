"""What one stream has still to send."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

F = TypeVar("F")


class Outgoing(Generic[F]):
    """Frames in the order in which they are to be sent: single ones first, between the chunks
    of transfers, and one transfer after the other. Putting never blocks, so that a reader can
    answer while a transfer waits for the network.
    """

    def __init__(self) -> None:
        self._frames: deque[F] = deque()
        self._transfers: deque[AsyncIterator[F]] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, frame: F) -> None:
        """Send a frame as soon as can be."""
        self._frames.append(frame)
        self._changed.set()

    def transfer(self, frames: AsyncIterator[F]) -> None:
        """Send these, each made only when it is its turn."""
        self._transfers.append(frames)
        self._changed.set()

    def close(self) -> None:
        """End after the frames that were put; transfers are cut off."""
        self._closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[F]:
        while True:
            if self._frames:
                yield self._frames.popleft()
            elif self._closed:
                return
            elif self._transfers:
                frame = await anext(self._transfers[0], None)
                if frame is None:
                    self._transfers.popleft()
                else:
                    yield frame
            else:
                self._changed.clear()
                await self._changed.wait()

"""One end of a stream: what both ends do alike."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc

from hanse.wire.protocol import MISSED_HEARTBEATS

LINGER_SECONDS = 2.0

F = TypeVar("F")


class Outgoing(Generic[F]):
    """Frames in the order in which they are to be sent: single ones first, between the chunks
    of transfers, and one transfer after the other.

    Putting never blocks, so that a reader can answer while a transfer waits for the network.
    """

    def __init__(self) -> None:
        self._frames: deque[F] = deque()
        self._transfers: deque[AsyncGenerator[F, None]] = deque()
        self._changed = asyncio.Event()
        self.closed = False

    def put(self, frame: F) -> None:
        """Send a frame as soon as can be; after the end it is dropped."""
        if not self.closed:
            self._frames.append(frame)
            self._changed.set()

    def transfer(self, frames: AsyncGenerator[F, None]) -> None:
        """Send these, each made only when it is its turn."""
        self._transfers.append(frames)
        self._changed.set()

    def close(self) -> None:
        """End after the frames that were put; transfers are cut off."""
        self.closed = True
        self._changed.set()

    async def discard(self) -> None:
        """Close the transfers that were cut off, here and not whenever they are collected."""
        self.closed = True
        while self._transfers:
            await self._transfers.popleft().aclose()

    async def __aiter__(self) -> AsyncGenerator[F, None]:
        while True:
            if self._frames:
                yield self._frames.popleft()
            elif self.closed:
                return
            elif self._transfers:
                frame = await anext(self._transfers[0], None)
                if frame is None:
                    self._transfers.popleft()
                else:
                    yield frame
                    del frame
            else:
                self._changed.clear()
                await self._changed.wait()


class Duplex(Generic[F]):
    """Sends what is put, hands on what comes, and gives up a peer that falls silent.

    No frame outlives its turn: a thousand streams that wait would hold a thousand of the largest.

    Args:
        heartbeat: the frame that says nothing but that this end is there.
    """

    def __init__(self, heartbeat: F) -> None:
        self.outgoing: Outgoing[F] = Outgoing()
        self._heartbeat = heartbeat
        self._heard_at = time.monotonic()
        self._farewell = asyncio.Event()
        self._stays = False

    def close(self, last: F, *, stay: bool = False) -> None:
        """Send what was put and ``last``, then end the stream; what comes in is dropped.

        Args:
            stay: leave it to the peer to end the stream once it has read the last word, for a
                moment: an end that overtakes the peer's own frames takes the word with it.
        """
        self._stays = stay
        self.outgoing.put(last)
        self.outgoing.close()
        self._farewell.set()

    async def run(
        self,
        stream: Any,
        on_frame: Callable[[Any], Awaitable[None]],
        *,
        heartbeat_seconds: float,
    ) -> str:
        """Serve ``stream``, gRPC's end of it, until one side ends it or the peer falls silent.

        Returns:
            Why it ended.
        """
        work = (
            self._send(stream),
            self._receive(stream, on_frame),
            self._beat(heartbeat_seconds),
            self._linger(),
        )
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reasons = [task.result() for task in done]  # an error comes before any reason
            return reasons[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.outgoing.discard()

    async def _send(self, stream: Any) -> str:
        async with aclosing(aiter(self.outgoing)) as frames:
            async for frame in frames:
                await stream.write(frame)
                del frame
        if self._stays:
            await asyncio.sleep(LINGER_SECONDS)
        return "this side ended the stream"

    async def _receive(self, stream: Any, on_frame: Callable[[Any], Awaitable[None]]) -> str:
        while (frame := await stream.read()) is not grpc.aio.EOF:
            self._heard_at = time.monotonic()
            if not self._farewell.is_set():
                await on_frame(frame)
            del frame
        return "the other side ended the stream"

    async def _beat(self, seconds: float) -> str:
        while (silence := time.monotonic() - self._heard_at) < MISSED_HEARTBEATS * seconds:
            self.outgoing.put(self._heartbeat)
            await asyncio.sleep(seconds)
        return f"the other side was silent for {silence:.0f} s"

    async def _linger(self) -> str:
        """After the farewell, leave the peer a moment to read it."""
        await self._farewell.wait()
        await asyncio.sleep(LINGER_SECONDS)
        return "this side ended the stream"

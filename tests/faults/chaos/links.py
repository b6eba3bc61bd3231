"""The links of a federation: a TCP proxy before the server for each site, with faults."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

PIECE = 16 * 1024
Way = Literal["up", "down"]


class Link:
    """One site's way to the server; faults are set from any thread.

    Attributes:
        port: where the site connects to.
        target: port of the server, on loopback.
        passed: bytes that went each way so far.
        silent: the ways on which nothing goes on, and nothing is closed.
        delay: seconds that each piece waits, up to.
        piece: bytes that are passed on at once, at most.
        cut_at: once so many bytes have passed a way, the link is cut, once.
        corrupt_at: once so many bytes have passed a way, one bit is turned over.
        cuts: how often it was cut.
        connections: how many the site has opened.
    """

    def __init__(self, target: int, loop: asyncio.AbstractEventLoop) -> None:
        self.port = 0
        self.target = target
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        self.silent: frozenset[Way] = frozenset()
        self.delay = 0.0
        self.piece = PIECE
        self.cut_at: dict[Way, int] = {}
        self.corrupt_at: dict[Way, int] = {}
        self.cuts = 0
        self.connections = 0
        self._loop = loop
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._cut)

    def mend(self) -> None:
        """Let everything through."""
        self.silent, self.delay, self.piece = frozenset(), 0.0, PIECE
        self.cut_at.clear()
        self.corrupt_at.clear()

    async def listen(self, host: str) -> None:
        """Let the site in."""
        self._server = await asyncio.start_server(self._accept, host, 0, limit=4 * PIECE)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Let nobody in any more."""
        self._server.close()
        self._cut()

    def _cut(self) -> None:
        self.cuts += 1
        for each in self._open:
            each.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target, limit=4 * PIECE)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._open |= both
        ways = self._pump("up", reader, back), self._pump("down", there, writer)
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._open -= both
        for each in both:
            each.close()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(self.piece):
                if self.delay:
                    await asyncio.sleep(random.uniform(0, self.delay))
                while way in self.silent:
                    await asyncio.sleep(0.01)
                to.write(self._spoilt(way, data))
                await to.drain()
                self.passed[way] += len(data)
                if self._due(self.cut_at, way):
                    self._cut()
        except OSError:
            return

    def _due(self, at: dict[Way, int], way: Way) -> bool:
        if way not in at or self.passed[way] < at[way]:
            return False
        del at[way]
        return True

    def _spoilt(self, way: Way, data: bytes) -> bytes:
        if not self._due(self.corrupt_at, way):
            return data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Links:
    """The links of all sites, served by one thread.

    Args:
        target: port of the server.
        host: the address to listen on.
    """

    def __init__(self, sites: Sequence[str], target: int, host: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._host = host
        self.of = {site: Link(target, self._loop) for site in sites}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for link in self.of.values():
            asyncio.run_coroutine_threadsafe(link.listen(self._host), self._loop).result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def point_to(self, target: int) -> None:
        """The server has moved to another port."""
        for link in self.of.values():
            link.target = target
            link.cut()

    async def _close(self) -> None:
        for link in self.of.values():
            link.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

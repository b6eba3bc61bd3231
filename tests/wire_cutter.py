"""A TCP proxy on loopback that cuts a connection off, or lets it fall silent."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self

_PIECE = 16 * 1024


class WireCutter:
    """Forwards connections to ``port`` until told otherwise.

    Attributes:
        port: where the proxy listens.
        up, down: bytes forwarded to and from the server so far.
        cut_up_at, cut_down_at: once as many bytes went that way, every connection is cut off,
            and the limit is lifted.
        cuts: how often that was done.
        silent: while set, nothing is forwarded and nothing is closed.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up = self.down = 0
        self.cut_up_at: int | None = None
        self.cut_down_at: int | None = None
        self.cuts = 0
        self.silent = threading.Event()
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._open: dict[socket.socket, socket.socket] = {}
        self._uplinks: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._cut()
        self._selector.close()
        self._listener.close()

    def cut(self) -> None:
        """Close every connection; returns when that is done."""
        before = self.cuts
        self._wanted.set()
        while self.cuts == before:
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._wanted.is_set():
                self._wanted.clear()
                self._cut()
            for key, _ in self._selector.select(timeout=0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif self.silent.is_set():
                    self._ended.wait(0.01)
                elif key.fileobj in self._open:
                    self._forward(key.fileobj)

    def _cut(self) -> None:
        for end in list(self._open):
            self._selector.unregister(end)
            end.close()
        self._open.clear()
        self._uplinks.clear()
        self.cuts += 1

    def _accept(self) -> None:
        site, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except ConnectionError:
            site.close()
            return
        self._open |= {site: server, server: site}
        self._uplinks.add(site)
        for end in (site, server):
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: object) -> None:
        assert isinstance(end, socket.socket)
        try:
            data = end.recv(_PIECE)
            self._open[end].sendall(data)
        except ConnectionError:
            data = b""
        if not data:
            self._close_pair(end)
        elif end in self._uplinks:
            self.up += len(data)
            if self.cut_up_at is not None and self.up >= self.cut_up_at:
                self.cut_up_at = None
                self._cut()
        else:
            self.down += len(data)
            if self.cut_down_at is not None and self.down >= self.cut_down_at:
                self.cut_down_at = None
                self._cut()

    def _close_pair(self, end: socket.socket) -> None:
        for each in (end, self._open[end]):
            self._selector.unregister(each)
            self._open.pop(each)
            self._uplinks.discard(each)
            each.close()

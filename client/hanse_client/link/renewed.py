"""When a stream is changed for one under the renewed certificate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hanse.expiry import Expiry
from hanse.tls import Identity, IdentitySource

from hanse_client.link.stream import Stream
from hanse_client.metrics import ClientMetrics

LOOK_SECONDS = 1.0


class Renewed:
    """Notices that this site's certificate is another than its stream was opened with.

    The server asks the sites that are connected when a round begins. So the stream is changed
    while an instruction is with the worker and nothing is being transferred: the round waits for
    this site then. Where no such moment comes, it is changed after ``seconds``.
    """

    def __init__(self, source: IdentitySource, metrics: ClientMetrics, *, seconds: float) -> None:
        self._source = source
        self._expiry = Expiry(metrics.certificate_expiry)
        self._seconds = seconds
        self._used = ""  # the fingerprint that the last stream was opened with
        self._due_since: float | None = None

    def begin(self) -> None:
        """A stream is about to be opened, under the identity as it is now."""
        self._used = self._source.current().fingerprint
        self._due_since = None

    def is_due(self) -> bool:
        """Whether another certificate is there than the last stream was opened with."""
        return self._is_another(self._source.current())

    def _is_another(self, identity: Identity) -> bool:
        due = identity.fingerprint != self._used
        self._due_since = (self._due_since or time.monotonic()) if due else None
        return due

    def change(self, stream: Stream) -> None:
        """End the stream, if a change is due and this is a good moment, or the last one."""
        if self._due_since is None:
            return
        if stream.at_work or time.monotonic() - self._due_since > self._seconds:
            self._due_since = None
            stream.leave("the site renews its certificate")

    async def watch(self, stream: Callable[[], Stream | None]) -> None:
        """Look at the files again and again, and show when what they hold ends."""
        while True:
            identity = self._source.current()
            self._expiry.show("site", identity.not_after, "this site")
            self._expiry.show("authority", identity.authority_not_after, "this site's authority")
            opened = stream()
            if opened is not None and self._is_another(identity):
                self.change(opened)
            await asyncio.sleep(LOOK_SECONDS)

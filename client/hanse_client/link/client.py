"""Connect, serve, reconnect: for ever, or until the coordinator's last word or a stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import grpc
from flwr.app import Message
from hanse.errors import CertificateError, HanseError, NameTakenError, WireError
from hanse.flower import error_reply
from hanse.plain import plain
from hanse.wire import hanse_pb2 as pb
from hanse.wire.duplex import LINGER_SECONDS
from hanse.wire.message import Encoded
from hanse.wire.protocol import LONGEST_ID, heartbeat_of

from hanse_client.link.coordinator import Coordinator, RefusedError, shake_hands
from hanse_client.link.desk import Desk
from hanse_client.link.patience import Patience
from hanse_client.link.renewed import Renewed
from hanse_client.link.stream import Stream
from hanse_client.link.worker import Refuse, Worker
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox

log = logging.getLogger("hanse.client")

STOP_SECONDS = 10.0
NAME_TAKEN_SECONDS = 60.0
RENEWAL_SECONDS = 600.0


class LinkClient:
    """Carries instructions from the coordinator to ``execute``, and the replies back.

    Args:
        execute: carries out one instruction; it is called in one thread, one at a time. What
            it raises becomes an error reply: a HanseError with its reason, anything else with
            the name of its type.
        outbox: where replies are kept until the server has settled them.
        stop_seconds: how long :meth:`stop` waits for an instruction that is under way.
        name_taken_seconds: how long to try when another client of this name is connected: a
            site that was restarted may meet its own stream of before.
        renewal_seconds: how long a stream may go on under a certificate that was renewed, until
            there is a good moment to change.
        refuse: makes the reply to an instruction that cannot be taken in, without its content.
        on_breach: is told of each rule of the stream that the server broke, which ended it.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        execute: Callable[[Message], Message],
        outbox: Outbox,
        metrics: ClientMetrics,
        stop_seconds: float = STOP_SECONDS,
        name_taken_seconds: float = NAME_TAKEN_SECONDS,
        renewal_seconds: float = RENEWAL_SECONDS,
        refuse: Refuse = lambda asked, error: error_reply(error, asked),
        on_breach: Callable[[HanseError], None] = lambda breach: None,
    ) -> None:
        self._coordinator = coordinator
        self._execute = execute
        self._refuse = refuse
        self._on_breach = on_breach
        self._outbox = outbox
        self._metrics = metrics
        self._stop_seconds = stop_seconds
        self._name_taken_seconds = name_taken_seconds
        self._loop: asyncio.AbstractEventLoop  # while it runs
        self._stopping = asyncio.Event()
        self._stopped = False
        self._desk: Desk  # while it runs
        self._stream: Stream | None = None
        self._patience = Patience()
        self._renewed = Renewed(coordinator.identity, metrics, seconds=renewal_seconds)
        self._streams = 0

    def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            HanseError: of the kind for which the coordinator will not have this site, or for
                which this site cannot go on.
        """
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End :meth:`run` soon; may be called from any thread, and from a signal handler."""
        self._stopped = True
        with suppress(AttributeError, RuntimeError):  # it has not begun, or has just ended
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def serve(self) -> None:
        """The same within a loop that is there already, beside others."""
        self._loop = asyncio.get_running_loop()
        if self._stopped:
            return
        worker = Worker(self._execute, self._outbox, self._on_done, self._refuse)
        self._desk = Desk(
            outbox=self._outbox,
            worker=worker,
            metrics=self._metrics,
            limits=self._coordinator.limits,
            held=set(self._outbox.instructions()),
        )
        self._metrics.outbox.set(len(self._desk.held))
        serving = asyncio.create_task(self._serve())
        watching = asyncio.create_task(self._renewed.watch(lambda: self._stream))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await asyncio.to_thread(worker.stop, self._stop_seconds)
                await self._leave(serving)
        finally:
            worker.stop(0)
            for task in (stopping, watching, serving):
                task.cancel()
            await asyncio.gather(stopping, watching, return_exceptions=True)
            with suppress(asyncio.CancelledError):
                await serving

    async def _leave(self, serving: asyncio.Task[None]) -> None:
        """End the stream in good order, within a moment."""
        if self._stream is not None:
            self._stream.leave()
            await asyncio.wait((serving,), timeout=LINGER_SECONDS)

    # --- stream after stream --------------------------------------------------------------------

    async def _serve(self) -> None:
        waiting_since = self._metrics.waiting_since.labels("server")
        waiting_since.set(self._patience.since)
        while True:
            why = await self._one_stream()
            if self._stopping.is_set():
                return
            if self._renewed.is_due():
                log.info("%s; connecting with the renewed certificate", why)
                continue
            self._patience.ended()
            waiting_since.set(self._patience.since)
            pause = self._patience.pause()
            log.warning(
                "%s; waiting for %s since %s, trying again in %.1f s",
                why,
                self._coordinator.address,
                datetime.fromtimestamp(self._patience.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                pause,
            )
            await asyncio.sleep(pause)

    async def _one_stream(self) -> str:
        """Serve one stream; why there is none any more, or never was."""
        self._renewed.begin()
        try:
            async with self._coordinator.stream() as call:
                return await self._converse(call)
        except RefusedError as refused:
            self._heed(refused)
            return str(refused)
        except grpc.aio.AioRpcError as error:
            return str(self._judge(await self._coordinator.explain(error)))
        except TimeoutError:
            return "the coordinator does not say a word"
        except WireError as breach:
            self._on_breach(breach)
            return str(breach)
        except asyncio.InvalidStateError as broken:
            return str(broken)

    async def _converse(self, call: Any) -> str:
        # Before the Hello: what the worker finishes from now on is announced on this stream.
        stream = self._stream = Stream(self._desk)
        try:
            welcome = await shake_hands(call, self._desk.hello())
            heartbeat_seconds = heartbeat_of(welcome)
            self._opened(welcome)
            return await stream.duplex.run(
                call,
                lambda frame: self._on_frame(stream, frame),
                heartbeat_seconds=heartbeat_seconds,
            )
        finally:
            self._stream = None
            self._metrics.connected.set(0)

    async def _on_frame(self, stream: Stream, frame: pb.ServerFrame) -> None:
        await stream.on_frame(frame)
        self._renewed.change(stream)

    def _opened(self, welcome: pb.Welcome) -> None:
        self._patience.opened()
        self._metrics.connected.set(1)
        self._metrics.waiting_since.labels("server").set(0)
        if not self._desk.busy:
            self._metrics.waiting_since.labels("instruction").set_to_current_time()
        if self._streams:
            self._metrics.reconnects.inc()
        self._streams += 1
        log.info(
            "connected to %s (hanse %s, job %s)",
            self._coordinator.address,
            plain(welcome.versions.get("hanse", "?"), LONGEST_ID),
            plain(welcome.job or "unnamed", LONGEST_ID),
        )

    def _heed(self, refused: RefusedError) -> None:
        """Go on after a refusal that may pass; end at one that will not."""
        if self._renewed.is_due():
            return  # it was of the certificate before
        if not refused.retry:
            raise refused.error from refused
        if not isinstance(refused.error, NameTakenError):
            return
        if self._patience.refused_for() > self._name_taken_seconds:
            raise refused.error from refused

    def _judge(self, error: HanseError) -> HanseError:
        """A certificate that was never right ends the client; of one that changed it may hope
        that it changes back.
        """
        if isinstance(error, CertificateError) and not self._streams:
            raise error
        return error

    def _on_done(self, instruction: str, header: pb.Header, encoded: Encoded, kept: bool) -> None:
        with suppress(RuntimeError):  # the client has ended while this was under way
            self._loop.call_soon_threadsafe(self._answered, instruction, header, encoded, kept)

    def _answered(self, instruction: str, header: pb.Header, encoded: Encoded, kept: bool) -> None:
        refused = pb.Content.FromString(header.content).WhichOneof("kind") == "error"
        self._desk.answered(instruction, kept=kept, refused=refused)
        if self._stream is not None:
            self._stream.answer(instruction, header, encoded)

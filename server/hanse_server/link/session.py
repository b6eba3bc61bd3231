"""One open stream of a site that was let in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from hanse.errors import CertificateExpiredError, HanseError, WireError
from hanse.flower import Envelope
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.allowance import Allowance
from hanse.wire.duplex import Duplex
from hanse.wire.frames import Chunk, Opening
from hanse.wire.message import Encoded, make_header
from hanse.wire.protocol import STOPPING, goodbye

from hanse_server.link.window import SendWindow

STRAYS_AT_ONCE, STRAYS_PER_SECOND = 200, 20.0
"""Frames without use that a site may send: signs of life, what crossed with a word of the server,
kinds of a later version. A heartbeat is due each few seconds."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A certificate that a peer has shown, and TLS has verified.

    Attributes:
        fingerprint: SHA-256 of its DER form, as 64 hex digits.
    """

    fingerprint: str
    expires: datetime

    def check_date(self, site: str) -> None:
        """Refuse a certificate whose time is over by now.

        Raises:
            CertificateExpiredError: naming site and date.
        """
        if self.expires < datetime.now(UTC):
            raise CertificateExpiredError(
                f"the certificate of site {site!r} expired on {self.expires:%Y-%m-%d %H:%M} UTC"
            )


class Session:
    """What is known of a site while its stream is open, and what is to be sent to it.

    Attributes:
        certificate: what the site has shown at the handshake.
        held: instructions whose reply lies in the site's outbox.
        busy: instructions that the site has got, or is getting, and not yet answered.

    Args:
        window: of all sessions.
        count_sent: is told the site and the size of each piece of payload that goes out.
    """

    def __init__(
        self,
        site: str,
        certificate: Shown,
        window: SendWindow,
        count_sent: Callable[[str, int], None],
    ) -> None:
        self.site = site
        self.node_id = node_id_of(site)
        self.certificate = certificate
        self.held: set[str] = set()
        self.busy: set[str] = set()
        self.duplex: Duplex[pb.ServerFrame | Chunk | Opening] = Duplex(
            pb.ServerFrame(heartbeat=pb.Heartbeat())
        )
        self._window = window
        self._count_sent = count_sent
        self._strays = Allowance(most=STRAYS_AT_ONCE, per_second=STRAYS_PER_SECOND)
        self._due: dict[str, int] = {}  # bytes of bodies that were asked for, by instruction

    def stray(self, what: str) -> None:
        """Put up with a frame that is of no use, as long as there are few of them.

        Raises:
            WireError: if there are too many.
        """
        if not self._strays.take():
            raise WireError(
                f"{what}, and {STRAYS_AT_ONCE} frames of no use before it within a moment: more "
                f"than {STRAYS_PER_SECOND:.0f} a second are not put up with"
            )

    def body_came(self, instruction: str, size: int) -> None:
        """Count bytes of a body; those that were never asked for are strays.

        Raises:
            WireError: if there are too many.
        """
        left = self._due.get(instruction, 0) - size
        if left > 0:
            self._due[instruction] = left
        else:
            self._due.pop(instruction, None)
        if size == 0 or left < 0:
            self.stray(f"a chunk of {size} bytes that was not asked for")

    def welcome(self, welcome: pb.Welcome) -> None:
        """Let the site in; the first frame."""
        self.duplex.outgoing.put(pb.ServerFrame(welcome=welcome))

    def instruct(
        self,
        encoded: Encoded,
        envelope: Envelope,
        *,
        start: int,
        least: int,
        inline: Callable[[], int],
        wanted: Callable[[], bool],
    ) -> None:
        """Send an instruction, its body from byte ``start`` on, if it is ``wanted`` by then.

        Args:
            least: bytes of it that may be sent at a time without a turn in the window.
            inline: gives the bytes of a body that the reply's header may hold.
        """
        self.busy.add(envelope.message_id)
        self.duplex.outgoing.transfer(
            self._instruction(encoded, envelope, start, least, inline, wanted)
        )

    def ask(self, instruction: str) -> None:
        """Have the site announce the reply that it holds."""
        self.duplex.outgoing.put(pb.ServerFrame(ask=pb.Ask(message_id=instruction)))

    def grant(self, instruction: str, received: int, size: int) -> None:
        """Have the site send the body of a reply of ``size``, from byte ``received`` on."""
        self._due[instruction] = size - received
        ack = pb.Ack(message_id=instruction, received=received)
        self.duplex.outgoing.put(pb.ServerFrame(ack=ack))

    def settle(self, instructions: Iterable[str]) -> None:
        """Tell the site which replies it need no longer keep."""
        done = list(instructions)
        self.held.difference_update(done)
        self.busy.difference_update(done)  # it drops what it has not begun
        self.duplex.outgoing.put(pb.ServerFrame(settle=pb.Settle(message_ids=done)))

    def finished(self, instruction: str) -> None:
        """The site has answered what it was asked: the reply is in its outbox."""
        self.busy.discard(instruction)
        self.held.add(instruction)

    def dismiss(self, error: HanseError, *, retry: bool) -> None:
        """End the stream and say why."""
        self.duplex.close(pb.ServerFrame(goodbye=goodbye(error, retry=retry)), stay=True)

    def farewell(self) -> None:
        """End the stream because the server stops."""
        last = pb.Goodbye(reason=STOPPING, message="the server stops", retry=True)
        self.duplex.close(pb.ServerFrame(goodbye=last))

    async def _instruction(
        self,
        encoded: Encoded,
        envelope: Envelope,
        start: int,
        least: int,
        inline: Callable[[], int],
        wanted: Callable[[], bool],
    ) -> AsyncGenerator[pb.ServerFrame | Chunk | Opening, None]:
        size = encoded.body_size
        in_header = size if start == 0 and size <= self._window.largest else 0
        async with self._window.turn(in_header, least) as most:
            if not wanted():
                self.busy.discard(envelope.message_id)
                return
            whole = start == 0 and size <= most
            header = make_header(encoded, envelope, inline=inline())
            opening = Opening(header, encoded.body if whole else ())
            self._count_sent(self.site, header.ByteSize() + opening.size)
            yield opening
            del opening
        offset = size if whole else start
        while offset < size:
            async with self._window.turn(size - offset, least) as most:
                chunk = Chunk(envelope.message_id, offset, encoded.piece(offset, most))
                offset += chunk.size
                self._count_sent(self.site, chunk.size)
                yield chunk
                del chunk

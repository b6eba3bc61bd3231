"""The one thread that carries out instructions, in their order."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace

from flwr.app import Message
from hanse.errors import HanseError, OutboxError
from hanse.flower import Envelope, answer, error_reply
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import Encoded, encode, make_header

from hanse_client.outbox import Outbox

log = logging.getLogger("hanse.client")

Execute = Callable[[Message], Message]
Refuse = Callable[[Message, HanseError], Message]


class Worker:
    """Carries out one instruction after the other, and puts each reply into the outbox.

    Args:
        done: is called on the worker's thread with an instruction's id, its reply's header and
            content, and whether the reply is in the outbox. It is, but for a full disk.
        refuse: makes the reply to an instruction that cannot be taken in, without its content.
    """

    def __init__(
        self,
        execute: Execute,
        outbox: Outbox,
        done: Callable[[str, pb.Header, Encoded, bool], None],
        refuse: Refuse = lambda asked, error: error_reply(error, asked),
    ) -> None:
        self._execute = execute
        self._refuse = refuse
        self._outbox = outbox
        self._done = done
        self._waiting: dict[str, tuple[Message, Execute]] = {}  # by id, in their order
        self._changed = threading.Condition()
        self._stopped = False
        # A daemon, so that a training that is under way cannot keep the process alive for hours.
        self._thread = threading.Thread(target=self._run, name="hanse-worker", daemon=True)
        self._thread.start()

    def submit(self, instruction: Message) -> None:
        """Carry out an instruction when its turn has come."""
        self._put(instruction, self._execute)

    def refuse(self, instruction: Message, error: HanseError) -> None:
        """Answer an instruction with an error when its turn has come."""
        self._put(instruction, lambda asked: self._refuse(asked, error))

    def withdraw(self, instructions: Iterable[str]) -> list[str]:
        """Drop what was not begun; which of ``instructions`` that was."""
        with self._changed:
            return [each for each in instructions if self._waiting.pop(each, None) is not None]

    def stop(self, seconds: float) -> None:
        """Begin nothing more; wait a while for what is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("an instruction that is under way was given up after %.0f s", seconds)

    def _put(self, instruction: Message, execute: Execute) -> None:
        with self._changed:
            self._waiting[instruction.metadata.message_id] = instruction, execute
            self._changed.notify()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._answer(*item)

    def _next(self) -> tuple[Message, Execute] | None:
        """The instruction whose turn it is, once there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            return None if self._stopped else self._waiting.pop(next(iter(self._waiting)))

    def _answer(self, instruction: Message, execute: Execute) -> None:
        header, encoded = pack_reply(instruction, execute)
        asked = instruction.metadata.message_id
        kept = True
        try:
            self._outbox.put(asked, header.SerializeToString(), encoded.body)
        except OutboxError as error:
            log.exception("a reply could not be kept, so it is not sent")
            header, encoded = _pack(instruction, error_reply(error, instruction))
            kept = False
        self._done(asked, header, encoded, kept)


def pack_reply(instruction: Message, execute: Execute) -> tuple[pb.Header, Encoded]:
    """The reply to an instruction as it travels, and as the outbox keeps it."""
    reply = answer(execute, instruction)
    try:
        return _pack(instruction, reply)
    except HanseError as error:  # the app has answered what the wire cannot carry
        log.warning("%s: no result: %s", instruction.metadata.message_type, error)
        return _pack(instruction, error_reply(error, instruction))


def _pack(instruction: Message, reply: Message) -> tuple[pb.Header, Encoded]:
    """A reply as it travels: whatever the app has put there, it answers this instruction."""
    asked = instruction.metadata
    envelope = replace(
        Envelope.of(reply, uuid.uuid4().hex),
        run_id=asked.run_id,
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to=asked.message_id,
        group_id=asked.group_id,
        message_type=asked.message_type,
    )
    encoded = encode(reply.error if reply.has_error() else reply.content)
    return make_header(encoded, envelope), encoded

"""A worker process of the simulation, and the frames that it exchanges with its engine.

The frames are those of the wire, in a pipe: a simulation serialises as a real federation does,
and pickles nothing.
"""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from flwr.app import Context, Message, RecordDict
from hanse.flower import Envelope, answer, open_envelope, quiet_flower
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded, chunks, encode, make_header, unpack

from hanse_server.simulation.grid import context_of

LIMITS = Limits(max_body_bytes=1 << 50)


class Pipe:
    """One end of the pipe between an engine and a worker.

    The content of a message that is that of the message before, as the sites of a round are sent
    one and the same, does not go through it again: the other end has it still.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sent: Callable[[], object] = _nothing
        self._received = RecordDict()

    def send(self, message: Message, site: str = "") -> None:
        """Write one message, and the name of the site that it is for."""
        envelope = Envelope.of(message, message.metadata.message_id)
        content = message.error if message.has_error() else message.content
        again = self._sent() is content
        self._sent = _nothing if message.has_error() else weakref.ref(message.content)
        self.connection.send_bytes(site.encode())
        if again:
            self.connection.send_bytes(make_header(NOTHING, envelope).SerializeToString())
            return
        encoded = encode(content)
        self.connection.send_bytes(make_header(encoded, envelope).SerializeToString())
        for _, data in chunks(encoded):
            self.connection.send_bytes(data)

    def receive(self) -> tuple[Message, str]:
        """Read one message, and the name of the site that it is for.

        Raises:
            EOFError: if the other end is gone.
        """
        site = self.connection.recv_bytes().decode()
        header = pb.Header.FromString(self.connection.recv_bytes())
        if not header.content:
            return open_envelope(unpack(header.envelope), self._received), site
        assembler = Assembler(header, LIMITS)
        offset = 0
        while not assembler.complete:
            data = self.connection.recv_bytes()
            assembler.add(offset, data)
            offset += len(data)
        message = assembler.message()
        if not message.has_error():
            self._received = message.content
        return message, site


NOTHING = Encoded(content=b"", body=(), digest=b"")
"""In place of a content that the other end has."""


def _nothing() -> None:
    """Nothing was sent before, or it is gone."""


def serve(
    connection: Connection, client_app: str, described: str, threads: int, gpu: str | None
) -> None:
    """A worker's life: make the ClientApp once, then answer until the engine hangs up.

    Args:
        gpu: the only one that it is to see, as CUDA names it; None for whatever there is.
    """
    if gpu is not None:  # before CUDA is first asked for anything
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    quiet_flower()
    torch.set_num_threads(threads)
    module, _, factory = client_app.partition(":")
    app = getattr(importlib.import_module(module), factory)(described)
    contexts: dict[int, Context] = {}
    pipe = Pipe(connection)
    while True:
        try:
            message, site = pipe.receive()
        except (EOFError, ConnectionResetError):
            return
        context = contexts.setdefault(message.metadata.dst_node_id, context_of(message, site))
        pipe.send(answer(lambda each, at=context: app(each, at), message))  # type: ignore[misc]

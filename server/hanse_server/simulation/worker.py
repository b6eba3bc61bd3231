"""A worker process of the simulation, and the frames that it exchanges with its engine.

The frames are those of the wire, in a pipe: a simulation serialises as a real federation does,
and pickles nothing.
"""

from __future__ import annotations

import importlib
from multiprocessing.connection import Connection

import torch
from flwr.app import Context, Message
from hanse.flower import Envelope, answer, quiet_flower
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header

from hanse_server.simulation.grid import context_of

LIMITS = Limits(max_body_bytes=1 << 50)


def send(connection: Connection, message: Message, site: str = "") -> None:
    """Write one message, and the name of the site that it is for."""
    encoded = encode(message.error if message.has_error() else message.content)
    envelope = Envelope.of(message, message.metadata.message_id)
    connection.send_bytes(site.encode())
    connection.send_bytes(make_header(encoded, envelope).SerializeToString())
    for _, data in chunks(encoded):
        connection.send_bytes(data)


def receive(connection: Connection) -> tuple[Message, str]:
    """Read one message, and the name of the site that it is for.

    Raises:
        EOFError: if the other end is gone.
    """
    site = connection.recv_bytes().decode()
    assembler = Assembler(pb.Header.FromString(connection.recv_bytes()), LIMITS)
    offset = 0
    while not assembler.complete:
        data = connection.recv_bytes()
        assembler.add(offset, data)
        offset += len(data)
    return assembler.message(), site


def serve(connection: Connection, client_app: str, described: str, threads: int) -> None:
    """A worker's life: make the ClientApp once, then answer until the engine hangs up."""
    quiet_flower()
    torch.set_num_threads(threads)
    module, _, factory = client_app.partition(":")
    app = getattr(importlib.import_module(module), factory)(described)
    contexts: dict[int, Context] = {}
    while True:
        try:
            message, site = receive(connection)
        except (EOFError, ConnectionResetError):
            return
        context = contexts.setdefault(message.metadata.dst_node_id, context_of(message, site))
        send(connection, answer(lambda each, at=context: app(each, at), message))  # type: ignore[misc]

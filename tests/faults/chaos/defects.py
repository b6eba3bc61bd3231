"""Defects that Hanse could have, planted to see that the chaos finds each of them.

Each changes the classes of its own process, before its first line.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hanse.durable import sync_folder
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse_client import audit
from hanse_client.ledger import Ledger
from hanse_client.link.stream import Stream
from hanse_server import checkpoint
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.rounds import RoundLoop
from hanse_server.strategies.streaming import StreamingFedAvg
from hanse_server.workspace import Workspace


def _set(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def outbox_forgets_what_was_sent() -> None:
    """The outbox drops a reply when its last byte has gone, not when it is settled."""
    frames = Stream._body

    async def body(self: Stream, instruction: str, received: int) -> Any:
        async for frame in frames(self, instruction, received):
            yield frame
        await self._forget([instruction])

    _set(Stream, "_body", body)


def settled_before_kept() -> None:
    """The server lets the sites forget their replies before the checkpoint is written."""
    keep = RoundLoop._keep

    def hasty(self: RoundLoop, *arguments: Any) -> Any:
        self._grid.settle()
        return keep(self, *arguments)

    _set(RoundLoop, "_keep", hasty)


def charges_are_not_written() -> None:
    """Every other round trains without a charge: its reservation is taken back at the end."""
    release = Ledger.release

    def lenient(self: Ledger, reservation: Any) -> None:
        if reservation.row % 4 < 2:
            release(self, reservation)
        else:
            self.take_back(reservation)

    _set(Ledger, "release", lenient)


def charges_are_not_taken_up() -> None:
    """A charge is made anew whenever a message comes again."""
    _set(Ledger, "_abandoned", lambda *_: None)


def checkpoints_are_not_whole() -> None:
    """A checkpoint is written in its place, and not renamed into it."""

    @contextmanager
    def bare(path: Path) -> Iterator[Path]:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        yield path

    _set(checkpoint, "new_folder", bare)


def checkpoints_are_not_synced() -> None:
    """A checkpoint is renamed into its place before it is on the disk."""

    @contextmanager
    def unsynced(path: Path) -> Iterator[Path]:
        temporary = path.with_name(f".{path.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
        sync_folder(path.parent)

    _set(checkpoint, "new_folder", unsynced)


def trail_is_not_synced() -> None:
    """A line of the audit trail is not on the disk when what follows from it happens."""

    def append(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line)

    _set(audit, "_append", append)


def ids_are_random() -> None:
    """A server that comes back asks for the same thing under another id."""
    _set(GrpcGrid, "_message_id", lambda *_: uuid.uuid4().hex)


def strategy_is_not_restored() -> None:
    """A server that comes back has lost the momentum and the average."""
    _set(StreamingFedAvg, "restore", lambda *_: None)


def history_is_not_struck() -> None:
    """A round that ran twice stands twice in the history."""
    _set(Workspace, "truncate", lambda self, last: [])


def checkpoint_of_every_other_round() -> None:
    """A server that comes back runs a round again whose replies are settled."""
    save = checkpoint.save

    def lazy(folder: Path, made: checkpoint.Checkpoint) -> None:
        if made.progress.round % 2:
            save(folder, made)

    _set(checkpoint, "save", lazy)


def replies_are_not_announced_again() -> None:
    """A reply that was made while there was no stream is never told of."""

    async def deaf(self: Stream, instruction: str) -> None:
        await asyncio.sleep(0)

    _set(Stream, "_announce_held", deaf)


def settled_without_being_asked() -> None:
    """The site forgets the replies that it holds when it connects."""
    on_frame = Stream.on_frame

    async def forgetful(self: Stream, frame: pb.ServerFrame) -> None:
        if frame.WhichOneof("kind") == "ask":
            await self._forget([frame.ask.message_id])
        await on_frame(self, frame)

    _set(Stream, "on_frame", forgetful)


def transfers_begin_anew() -> None:
    """What was cut off is sent again from its first byte."""
    _set(Assembler, "take_up", lambda *_: False)


DEFECTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        outbox_forgets_what_was_sent,
        settled_before_kept,
        charges_are_not_written,
        charges_are_not_taken_up,
        checkpoints_are_not_whole,
        checkpoints_are_not_synced,
        trail_is_not_synced,
        ids_are_random,
        strategy_is_not_restored,
        history_is_not_struck,
        checkpoint_of_every_other_round,
        replies_are_not_announced_again,
        settled_without_being_asked,
        transfers_begin_anew,
    )
}


def plant(name: str) -> None:
    """Give this process a defect."""
    DEFECTS[name]()

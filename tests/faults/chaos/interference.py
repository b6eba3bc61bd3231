"""What is done to a process of the chaos from within, before its first line.

Its waits are short, so that a run of seconds holds many of them; a witness tells what really
happens; its clock can be wrong; it can be killed at any durable operation, with or without what
was not fsynced by then. Nothing else differs from the command ``hanse``.
"""

from __future__ import annotations

import datetime as dates
import importlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.faults.chaos.zygote import Life

MODULES = (
    "hanse.cli",
    "hanse_client.books",
    "hanse_client.cli",
    "hanse_client.serve",
    "hanse_server.audit.view",
    "hanse_server.cli",
    "hanse_server.serve",
    "hanse_server.views",
    "tests.faults.chaos.defects",
    "tests.faults.chaos.power",
    "tests.faults.chaos.task",
    "tests.faults.chaos.witness",
)

LONGEST_PAUSE_SECONDS = 1.0
GREETING_SECONDS = 4.0

_real_time = time.time
_offset = 0.0


def _wrong_time() -> float:
    return _real_time() + _offset


class WrongDate(dates.datetime):
    """A date that goes by the wrong clock."""

    @classmethod
    def now(cls, tz: dates.tzinfo | None = None) -> Any:
        return dates.datetime.fromtimestamp(_wrong_time(), tz)


def import_everything() -> None:
    """Import both sides, with a clock that can be set."""
    time.time = _wrong_time
    for name in MODULES:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("hanse") and getattr(module, "datetime", None) is dates.datetime:
            module.datetime = WrongDate  # type: ignore[attr-defined]


def command() -> None:
    """The command ``hanse``."""
    sys.modules["hanse.cli"].main()


def prepare(life: Life) -> None:
    """Make this process what a life asks for."""
    global _offset
    from tests.faults.chaos import defects, witness

    _offset = life.clock

    def jump(*_: object) -> None:
        global _offset
        _offset = life.jump

    signal.signal(signal.SIGUSR1, jump)
    random.seed(life.seed)
    _shorten_waits(life.heartbeat)
    if life.witness:
        witness.install(life.witness)
    if life.defect:
        defects.plant(life.defect)
    if life.dies_at:
        _die_at(life)


def _shorten_waits(heartbeat: float) -> None:
    from hanse_client.link import coordinator, patience
    from hanse_server import serve
    from hanse_server.link import LinkServer, reception

    patience.LONGEST_PAUSE_SECONDS = LONGEST_PAUSE_SECONDS
    coordinator.WELCOME_SECONDS = reception.HELLO_SECONDS = GREETING_SECONDS
    quick = partial(LinkServer, heartbeat_seconds=heartbeat)
    setattr(serve, LinkServer.__name__, quick)


def _die_at(life: Life) -> None:
    """Count what must outlive a crash, and die at one of it: before it is done, or after."""
    from tests.faults.chaos.power import Power

    power = Power(life.folder, life.seed) if life.power else None
    before = random.Random(life.seed).random() < 0.5
    count = 0

    def die() -> None:
        if power is not None:
            power.cut()
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            fatal = count == life.dies_at
            if fatal and before:
                die()
            result = function(*arguments, **named)
            if function is real_fsync and power is not None:
                power.synced(arguments[0])
            if fatal:
                die()
            return result

        return call

    real_fsync = os.fsync
    for name in ("fsync", "rename", "replace", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))

    class Connection(sqlite3.Connection):
        """Commits count too."""

        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            plain = super().execute
            act = counted(plain) if statement == "COMMIT" else plain
            cursor: sqlite3.Cursor = act(statement, *parameters)
            return cursor

    connect: Any = partial(sqlite3.connect, factory=Connection)
    sqlite3.connect = connect

"""A site that is killed at the N-th line of its path from an instruction to the reply.

The path is the real one: policy, ledger, training, egress, outbox, ledger and audit trail on
disk. No fault point is in it: a trace function counts the executed lines of ``hanse_client``
(but for the checks on made-up records, which write nothing) and of the trail that it shares with
the server, and kills the process, with SIGKILL, at the one asked for. What really
happened is witnessed from outside (:mod:`tests.faults.lives`).
Run as a module, it prints as JSON what it found::

    python -m tests.faults.killing --every 50 --offset 7
    python -m tests.faults.killing --plant
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import hanse.trail
import hanse_client
import torch
from hanse.errors import LedgerError
from hanse.privacy.accounting import epsilon
from hanse.task import NoOptions
from hanse_client.books import audit_path, ledger_path
from hanse_client.ledger import Entry, Ledger, read_ledger
from hanse_client.ledger.verify import verify_ledger
from hanse_client.outbox import Outbox
from hanse_client.plan import plan_round

from tests.faults.lives import FIRST, SECOND, serve, the_job, the_site, witnessed
from tests.faults.planted import FAULTS
from tests.harbour import RECORDS, Line

PATH = Path(hanse_client.__file__).parent
TRACED = (str(PATH), hanse.trail.__file__)
CHECKS = str(PATH / "privacy" / "checks.py")
NEVER = 2**62
MOST_POINTS = 60
FOUND = (AssertionError, RuntimeError, LedgerError)


def trace(fatal: int) -> Callable[[], int]:
    """Count the lines of the client that this process executes, and die at one of them."""
    count = 0

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count >= fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        return line if file.startswith(TRACED) and file != CHECKS else None

    threading.settrace(call)
    sys.settrace(call)
    return lambda: count


def in_child(act: Callable[[], None]) -> int:
    """Do something in a process of its own; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_at(fatal: int, *names: str) -> bool:
    """Serve, and be killed at a line; False if the client ended before it."""

    def life() -> None:
        if fatal != NEVER:
            trace(fatal)
        serve(*names)

    code = in_child(life)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the client that was to die at line {fatal} ended with {code}")
    return code != 0


@dataclass(frozen=True, kw_only=True)
class Life:
    """The lines of a client from its start to its end, with one instruction.

    Attributes:
        released: the line at which its charge begins to be released.
        kept: the line at which its reply is in the outbox.
    """

    lines: int
    released: int
    kept: int


def undisturbed() -> Life:
    """The life of a client that nobody kills."""

    def life() -> None:
        count = trace(NEVER)
        told: dict[str, int] = {}
        release, put = Ledger.release, Outbox.put

        def releasing(*arguments: Any) -> None:
            told["released"] = count()
            release(*arguments)

        def putting(*arguments: Any) -> None:
            put(*arguments)
            told["kept"] = count()

        with patch.object(Ledger, "release", releasing), patch.object(Outbox, "put", putting):
            serve(FIRST)
        Path("told").write_text(json.dumps(told | {"lines": count()}))

    with folder():
        if in_child(life) != 0:
            raise RuntimeError("the undisturbed client failed")
        return Life(**json.loads(Path("told").read_text()))


class folder:  # noqa: N801 - a context manager
    """A fresh current folder, in memory where there is such a disk."""

    def __enter__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108
        self._path = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
        os.chdir(self._path)

    def __exit__(self, *_: object) -> None:
        os.chdir("/")
        shutil.rmtree(self._path)


# --- what must hold -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Books:
    """What ledger and witness say at one moment.

    Attributes:
        charges: of the first message, that count.
        replies: of the first message, different ones, that left.
        trainings: clients that drew batches for it.
    """

    charges: list[Entry]
    replies: set[str]
    trainings: int


def check_books() -> Books:
    """Hold the ledger against the truth; both are whole, whatever has just been killed."""
    told = [line.split() for line in witnessed()]
    replies = {(line[1], line[2]) for line in told if line[0] == "left"}
    trainings = {(line[1], line[2]) for line in told if line[0] == "drew"}
    path, site_file = ledger_path(the_site()), the_site()
    try:
        entries = read_ledger(path).entries()
    except LedgerError as not_begun:
        if "unable to open" not in str(not_begun) and "nothing was written" not in str(not_begun):
            raise
        entries = []
    else:
        verify_ledger(path, audit_path(site_file), site_file.budget.delta)  # with a recount
    counted = [entry for entry in entries if entry.state != "taken back"]
    charge = plan_round(the_job(), 1, RECORDS, site="harbour").charge
    if charge is None:
        raise RuntimeError("the job is not private")
    delta = site_file.budget.delta
    answered = {name for name, _ in replies}
    under_way = {name for name, _ in trainings} - answered  # something of it may leave yet
    true = epsilon([charge] * (len(replies) + len(under_way)), delta)
    if epsilon([entry.charge for entry in counted], delta) < true:
        raise AssertionError(f"{len(counted)} charges, {replies} left, {trainings} trained")
    released = {entry.instruction.message_id for entry in counted if entry.state == "released"}
    if not answered <= released:
        raise AssertionError("a reply left before its charge was released")
    return Books(
        charges=[entry for entry in counted if entry.instruction.message_id == FIRST],
        replies={digest for name, digest in replies if name == FIRST},
        trainings=sum(name == FIRST for name, _ in trainings),
    )


def one_death_after_another(first: int, second: int) -> int:
    """Kill a client, kill the next one, start a third; how many of the two were killed."""
    with folder():
        deaths = 0
        before = Books(charges=[], replies=set(), trainings=0)
        for fatal in (first, second):
            deaths += dies_at(fatal, FIRST)
            books = check_books()
            check_replay(before, books)
            before = books
        if dies_at(NEVER, FIRST, SECOND, FIRST):
            raise AssertionError("the client cannot come back")
        books = check_books()
        check_replay(before, books)
        if len(books.replies) != 1:
            raise AssertionError(f"{len(books.replies)} different replies left")
        if len(books.charges) > 1 + deaths:
            raise AssertionError(f"{len(books.charges)} charges after {deaths} deaths")
        return deaths


def check_replay(before: Books, after: Books) -> None:
    """What a further client may have made of the same message."""
    trained = after.trainings - before.trainings
    fresh = len(after.charges) - len(before.charges)
    reserved = sum(entry.state == "reserved" for entry in before.charges)
    if trained > fresh + reserved:
        raise AssertionError("trained under a charge that had been released")
    if fresh and reserved:
        raise AssertionError("charged anew though nothing had been released")
    if trained and before.replies:
        raise AssertionError("trained again though the reply was in the outbox")


def sweep(every: int, offset: int) -> dict[str, Any]:
    """Kill a client at one line in ``every``, and the next one anywhere."""
    started, total = time.monotonic(), undisturbed().lines
    anywhere = random.Random(offset)
    found: dict[str, Any] = {"lines": total, "points": 0, "deaths": 0, "failures": []}
    for fatal in range(1 + offset % every, total + 1, every):
        found["points"] += 1
        again = anywhere.randint(1, total)
        try:
            found["deaths"] += one_death_after_another(fatal, again)
        except FOUND as failure:
            found["failures"].append(f"killed at {fatal}, then {again}: {failure}")
    return found | {"seconds": round(time.monotonic() - started, 1)}


def plant() -> dict[str, str | None]:
    """What first gave each planted fault away; None for nothing.

    Every other client dies between a charge's release and the keeping of its reply: few of the
    lines lie there, and much that may go wrong.
    """
    anywhere, life = random.Random(0), undisturbed()
    found: dict[str, str | None] = {}
    for fault in FAULTS:
        found[fault.__name__] = None
        with fault():
            for point in range(MOST_POINTS):
                between = (life.released, life.kept) if point % 2 else (1, life.lines)
                fatal, again = anywhere.randint(*between), anywhere.randint(1, life.lines)
                try:
                    one_death_after_another(fatal, again)
                except FOUND as failure:
                    found[fault.__name__] = str(failure)
                    break
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--every", type=int, default=1)
    arguments.add_argument("--offset", type=int, default=0)
    arguments.add_argument("--plant", action="store_true")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    torch.optim.SGD(Line(NoOptions()).model().parameters())  # torch imports more, once
    found = plant() if asked.plant else sweep(asked.every, asked.offset)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

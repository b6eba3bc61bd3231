"""Real processes that start at once: each is forked from one that has imported everything.

Importing torch takes seconds; a hundred runs of many short lives would be spent in it. What is
forked has its own process id, sockets, files and threads, runs the command ``hanse`` from its
first line to the interpreter's own end, and is killed as any other.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.hospitals import environment

ROOT = Path(__file__).parents[3]
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a process is to be.

    Attributes:
        arguments: of the command ``hanse``.
        log: where it prints to.
        folder: whose files a power cut is about to damage; the site's or the server's.
        witness: the file in which it tells what really happens; see :mod:`.witness`.
        namespace: the network namespace that it lives in; empty for the one of all.
        heartbeat: seconds between two signs of life of its streams.
        clock: seconds by which its clock is wrong from the start.
        jump: seconds by which its clock jumps when it gets SIGUSR1.
        dies_at: the durable operation at which it kills itself, counted from 1; 0 for none.
        power: whether it then takes with it what was not fsynced.
        fresh: whether it is a new interpreter and no fork: it takes seconds to start, and all
            its memory is its own.
        seed: of what is left to chance in it.
        defect: name of a planted one; empty for none.
    """

    arguments: tuple[str, ...]
    log: str
    folder: str
    witness: str = ""
    namespace: str = ""
    heartbeat: float = 1.0
    clock: float = 0.0
    jump: float = 0.0
    dies_at: int = 0
    power: bool = False
    fresh: bool = False
    seed: int = 0
    defect: str = ""


class Zygote:
    """The process that the others are forked from, and their parent."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.chaos.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def start(self, life: Life) -> int:
        """Start a process; its id."""
        return int(self._ask({"start": asdict(life)}))

    def poll(self, pid: int) -> int | None:
        """The exit code of a process, negative for a signal; None while it lives."""
        told: int | None = self._ask({"poll": pid})
        return told

    def run(self, life: Life, seconds: float = 60.0) -> int:
        """Run a process to its end; its exit code.

        Raises:
            TimeoutError: if it does not end in time; it is killed then.
        """
        pid, deadline = self.start(life), time.monotonic() + seconds
        while (code := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"{' '.join(life.arguments)} took more than {seconds:.0f} s")
            time.sleep(0.01)
        return code

    def _ask(self, request: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())


def lives() -> Iterator[Life]:
    """In the zygote, serve the harness until it ends; in each fork, the one life to lead."""
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            children.discard(pid)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                yield Life(**request["start"])
                return
            children.add(answer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def settle_in(life: Life) -> None:
    """Give a fork its own output, its own network, and an end with its parent's."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for descriptor, path in ((0, os.devnull), (1, life.log), (2, life.log)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    if life.namespace:
        with Path("/run/netns", life.namespace).open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"no network namespace {life.namespace}")


def main() -> None:
    """Import what both sides need, then wait for the harness, or lead the life that is told."""
    from tests.faults.chaos import interference

    interference.import_everything()
    if len(sys.argv) > 1:  # a fresh interpreter of one life
        lead(Life(**json.loads(sys.argv[1])))
        return
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    if len(threads) > 1:
        raise RuntimeError(f"{len(threads)} threads run before the first fork")
    gc.collect()
    gc.freeze()
    for life in lives():
        settle_in(life)
        if life.fresh:
            told = json.dumps(asdict(life) | {"fresh": False})
            command = [sys.executable, "-m", "tests.faults.chaos.zygote", told]
            os.execv(sys.executable, command)  # noqa: S606 - the fork's own arguments
        lead(life)


def lead(life: Life) -> None:
    """Be the command ``hanse``."""
    from tests.faults.chaos import interference

    interference.prepare(life)
    sys.argv = ["hanse", *life.arguments]
    interference.command()


if __name__ == "__main__":
    main()

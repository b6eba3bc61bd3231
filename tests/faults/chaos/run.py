"""One run: a federation of processes from its first round to its last, whatever befalls it."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanse_server.demo.federation import free_ports
from hanse_server.history import read_history

from tests.faults.chaos.grounds import Federation, Setting, SmallDisk
from tests.faults.chaos.links import Link, Links
from tests.faults.chaos.netns import ADDRESS, Space
from tests.faults.chaos.process import SERVER, STOPPED, FailedRunError, Process
from tests.faults.chaos.zygote import Life, Zygote

BUDGET = 1000.0
AGAIN_SECONDS = 0.5


class Run:
    """A server, its sites and their links, as files, processes and sockets.

    Args:
        folder: made for it.
        spaces: a namespace for each site; none to let all live in the one.
        small: names of those whose files are on a small disk of their own.
        fresh: names of those that are no forks; see :class:`Life`.
        defect: planted in all processes.
    """

    def __init__(
        self,
        setting: Setting,
        federation: Federation,
        zygote: Zygote,
        folder: Path,
        *,
        seed: int = 0,
        spaces: Sequence[Space] = (),
        small: Sequence[str] = (),
        fresh: Sequence[str] = (),
        defect: str = "",
    ) -> None:
        self.setting = setting
        self.folder = folder
        self.workspace = folder / "run"
        self.sites = {name: folder / name for name in setting.names}
        self.spaces = dict(zip(setting.names, spaces, strict=False))
        self.processes: dict[str, Process] = defaultdict(Process)
        self.disks: dict[str, SmallDisk] = {}
        self.chance = random.Random(seed)
        self.jump = self.chance.choice((-1, 1)) * self.chance.uniform(3600.0, 10 * 3600.0)
        self._zygote = zygote
        self._federation = federation
        self._small = small
        self._fresh = fresh
        self._defect = defect
        self._moves = 0
        self._opened = ExitStack()
        self._links: Links

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        (self.folder / "job.toml").write_text(self.setting.job)
        [self.port] = free_ports(1)
        host = "0.0.0.0" if self.spaces else "127.0.0.1"  # noqa: S104
        self._links = self._opened.enter_context(Links(self.setting.names, self.port, host))
        self._opened.callback(self._end)
        for number, (name, folder) in enumerate(self.sites.items()):
            self._federation.outfit(name, folder)
            (folder / "train.txt").write_text(str(number))
            address = ADDRESS if self.spaces else "127.0.0.1"
            told = self.setting.site(name, f"{address}:{self.link(name).port}", BUDGET)
            (folder / "site.toml").write_text(told)
        for name in self._small:
            megabytes = 8 if self.setting.width < 1000 else 64
            where = self.workspace if name == SERVER else self.sites[name] / "state"
            self.disks[name] = SmallDisk(where, megabytes)
            self._opened.callback(self.disks[name].remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    # --- what it is like now --------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Of all processes."""
        return (SERVER, *self.sites)

    def link(self, site: str) -> Link:
        """A site's way to the server."""
        return self._links.of[site]

    def place(self, name: str) -> Path:
        """The folder of a process that must outlive it."""
        return self.workspace if name == SERVER else self.sites[name]

    def log(self, name: str) -> Path:
        """What a process prints, all its lives."""
        return self.folder / f"{name}.log"

    def witness(self, site: str) -> Path:
        """Where a site's processes tell what happens."""
        return self.folder / f"{site}.witness"

    def round(self) -> int:
        """The round under way, as the server shows it; 0 before the first."""
        with suppress(OSError, ValueError):
            return int(json.loads((self.workspace / "status.json").read_text())["round"])
        return 0

    def status(self) -> str:
        """What the server shows."""
        with suppress(OSError):
            return (self.workspace / "status.json").read_text()
        return "no status.json"

    def ended_rounds(self) -> int:
        """How many rounds are in the history."""
        return len(read_history(self.workspace))

    @property
    def may_refuse(self) -> bool:
        """Whether a site may answer a round with a refusal: its disk may be full."""
        return any(name != SERVER for name in self.disks)

    # --- processes ------------------------------------------------------------------------------

    def start(self, name: str, **life: Any) -> None:
        """Start a process, if it does not run."""
        process = self.processes[name]
        if process.pid is not None:
            return
        space = self.spaces.get(name)
        settings: dict[str, Any] = {
            "arguments": self._arguments(name),
            "log": str(self.log(name)),
            "folder": str(self.place(name) if name == SERVER else self.place(name) / "state"),
            "witness": "" if name == SERVER else str(self.witness(name)),
            "namespace": space.name if space else "",
            "clock": process.clock,
            "jump": self.jump,
            "fresh": name in self._fresh,
            "seed": self.chance.getrandbits(32),
            "defect": self._defect,
        }
        process.pid = self._zygote.start(Life(**settings | life))
        process.lives += 1

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes[name]
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            self.await_end(name)
            process.deaths += 1

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal, if the process runs."""
        pid = self.processes[name].pid
        if pid is not None:
            os.kill(pid, number)

    def await_end(self, name: str, seconds: float = 30.0) -> int:
        """Wait until a process has ended; its exit code."""
        process, deadline = self.processes[name], time.monotonic() + seconds
        while process.pid is not None:
            code = self._zygote.poll(process.pid)
            if code is not None:
                process.pid = None
                return code
            if time.monotonic() > deadline:
                raise FailedRunError(f"{name} did not end within {seconds:.0f} s")
            time.sleep(0.005)
        return 0

    def stop(self, *names: str) -> None:
        """SIGTERM, to all at once; each exit code has to be that of an end in good order."""
        for name in names:
            self.send(name, signal.SIGCONT)
            self.send(name, signal.SIGTERM)
        for name in names:
            code = self.await_end(name)
            # Before the first line of the command there is nobody to end it in order.
            good = {0, STOPPED if name == SERVER else 0, -signal.SIGTERM}
            if code not in good | self.processes[name].expected:
                raise FailedRunError(f"{name} ended with {code} when it was told to stop")

    def ended(self, name: str) -> int | None:
        """The exit code of a process that has ended by itself since it was last asked for."""
        process = self.processes[name]
        if process.pid is None:
            return None
        code = self._zygote.poll(process.pid)
        if code is not None:
            process.pid = None
            process.ended.append(code)
        return code

    def hanse(self, *arguments: str) -> dict[str, Any]:
        """What a subcommand of ``hanse`` says, as JSON."""
        log = self.folder / "command.json"
        log.unlink(missing_ok=True)
        life = Life(arguments=(*arguments, "--json"), log=str(log), folder=str(self.folder))
        code = self._zygote.run(life)
        if code != 0:
            raise FailedRunError(
                f"hanse {' '.join(arguments)} ended with {code}: {log.read_text()}"
            )
        told: dict[str, Any] = json.loads(log.read_text())
        return told

    def revive(self) -> None:
        """See who has ended by itself; start again, soon, who may have.

        Raises:
            FailedRunError: if the exit code is not one that this process may have now.
        """
        for name in self.names:
            process, code = self.processes[name], self.ended(name)
            if code is not None and (name, code) != (SERVER, 0):
                if code not in process.expected:
                    raise FailedRunError(f"{name} ended by itself with {code}")
                if code != -signal.SIGKILL:  # who kills it starts it again
                    process.again_at = time.monotonic() + AGAIN_SECONDS
            if process.pid is None and time.monotonic() > process.again_at:
                process.again_at = math.inf
                self.start(name)

    @property
    def done(self) -> bool:
        """Whether the server has ended well."""
        return self.processes[SERVER].ended[-1:] == [0]

    def mend(self) -> None:
        """Undo whatever is still broken."""
        for link in self._links.of.values():
            link.mend()
        for space in self.spaces.values():
            space.join()
            space.mend()
        for disk in self.disks.values():
            disk.free()

    # --- moves ----------------------------------------------------------------------------------

    def move(self, name: str) -> None:
        """Copy the folder of a process that does not run to another place; it goes on there."""
        self._moves += 1
        old = self.place(name)
        new = self.folder / f"{name}-moved-{self._moves}"
        shutil.copytree(old, new, ignore=shutil.ignore_patterns(".lock", "*.lock"))
        old.rename(self.folder / f"{name}-left-{self._moves}")
        if name == SERVER:
            self.workspace = new
            [self.port] = free_ports(1)
            self._links.point_to(self.port)
        else:
            self.sites[name] = new

    def _arguments(self, name: str) -> tuple[str, ...]:
        if name != SERVER:
            return "client", "run", str(self.sites[name] / "site.toml")
        return (
            *("server", "run", str(self.folder / "job.toml")),
            *("--workspace", str(self.workspace)),
            *("--federation", str(self._federation.folder)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--metrics-port", "0"),
        )

    def _end(self) -> None:
        for process in self.processes.values():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                while self._zygote.poll(process.pid) is None:
                    time.sleep(0.005)
                process.pid = None

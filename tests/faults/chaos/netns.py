"""Network namespaces: a site on a machine of its own, as far as the network goes.

Where the kernel has ``netem``, it loses, delays and reorders. Where it has not, a packet filter
on the link loses packets by chance, ``tbf`` makes the link slow, and delay is left to the proxy
(:mod:`.links`). A partition is the link taken down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

_SHOT, _PASS = 2, 0xFFFFFFFF
_RANDOM = 0xFFFFF038  # SKF_AD_OFF + SKF_AD_RANDOM: a random number in place of a packet's bytes
HERE = f"10.{64 + os.getpid() % 64}"


@dataclass(frozen=True)
class Abilities:
    """What of it this machine can do.

    Attributes:
        spaces: namespaces, and links between them.
        netem: loss, delay and reordering by ``netem``.
        filters: loss by a filter, slowness by ``tbf``.
        why_not: what the first thing was that failed; empty if nothing did.
    """

    spaces: bool
    netem: bool
    filters: bool
    why_not: str = ""


ADDRESS = f"{HERE}.0.1"
"""The server's, in all namespaces."""


class Space:
    """A namespace with one link to that of all."""

    def __init__(self, number: int) -> None:
        self.name = f"hanse-{os.getpid()}-{number}"
        self._outer, self._inner = f"ho{os.getpid() % 100000}-{number}", f"hi{number}"
        self._net = f"{HERE}.{number}"

    def make(self) -> None:
        """Make it.

        Raises:
            subprocess.CalledProcessError: if this machine does not allow it.
        """
        inside = ("ip", "-n", self.name)
        _do("ip", "netns", "add", self.name)
        _do("ip", "link", "add", self._outer, "type", "veth", "peer", "name", self._inner)
        _do("ip", "link", "set", self._inner, "netns", self.name)
        _do("ip", "addr", "add", f"{self._net}.1/24", "dev", self._outer)
        _do("ip", "link", "set", self._outer, "up")
        _do(*inside, "addr", "add", f"{self._net}.2/24", "dev", self._inner)
        _do(*inside, "link", "set", self._inner, "up")
        _do(*inside, "link", "set", "lo", "up")
        _do(*inside, "route", "add", "default", "via", f"{self._net}.1")

    def remove(self) -> None:
        """Take it away, and the link with it."""
        for command in (("link", "del", self._outer), ("netns", "del", self.name)):
            subprocess.run(["ip", *command], capture_output=True, check=False)

    def part(self) -> None:
        """Take the link down."""
        _do("ip", "link", "set", self._outer, "down")

    def join(self) -> None:
        """Take it up again."""
        _do("ip", "link", "set", self._outer, "up")

    def lose(self, percent: float, abilities: Abilities) -> None:
        """Lose packets by chance, both ways; with netem, delay and reorder them too."""
        for tc, device in self._ends():
            if abilities.netem:
                how = f"loss {percent}% delay 20ms 20ms reorder 25% 50%".split()
                _do(*tc, "qdisc", "replace", "dev", device, "root", "netem", *how)
            else:
                _do(*tc, "qdisc", "replace", "dev", device, "clsact")
                kept = round(0xFFFFFFFF * (1 - percent / 100))
                code = f"4,32 0 0 {_RANDOM},37 0 1 {kept},6 0 0 {_SHOT},6 0 0 {_PASS}"
                program = ("egress", "bpf", "da", "bytecode", code)
                _do(*tc, "filter", "add", "dev", device, *program)

    def slow_down(self, kilobits: int) -> None:
        """Let no more through in a second; what queues up is dropped."""
        for tc, device in self._ends():
            how = ("rate", f"{kilobits}kbit", "burst", "4kb", "limit", "16kb")
            _do(*tc, "qdisc", "replace", "dev", device, "root", "tbf", *how)

    def mend(self) -> None:
        """Undo all of it."""
        for tc, device in self._ends():
            for what in ("root", "clsact"):
                command = [*tc, "qdisc", "del", "dev", device, what]
                subprocess.run(command, capture_output=True, check=False)

    def _ends(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (("tc",), self._outer), (("tc", "-n", self.name), self._inner)


class Spaces:
    """Namespaces for sites, as many as are asked for; none where the machine allows none.

    Args:
        first: number of the first.
    """

    def __init__(self, *, first: int = 1) -> None:
        self._first = first
        self._made: list[Space] = []

    def __enter__(self) -> Self:
        if abilities().spaces:
            _sweep()
            _do("ip", "addr", "replace", f"{ADDRESS}/32", "dev", "lo")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for space in self._made:
            space.remove()
        if abilities().spaces:  # it may be gone with those of another series
            address = ("ip", "addr", "del", f"{ADDRESS}/32", "dev", "lo")
            subprocess.run(address, capture_output=True, check=False)

    def get(self, count: int) -> list[Space]:
        """So many, whole."""
        while len(self._made) < count:
            space = Space(self._first + len(self._made))
            self._made.append(space)
            space.make()
        for space in self._made:
            space.join()
            space.mend()
        return self._made[:count]


@cache
def abilities() -> Abilities:
    """Try it out."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return Abilities(False, False, False, "ip and tc are not installed")
    space = Space(200)
    try:
        space.make()
        space.part()
        space.join()
        netem = _can(lambda: space.lose(1.0, Abilities(True, True, False)))
        space.mend()
        filters = _can(lambda: space.lose(1.0, Abilities(True, False, True)))
        filters = filters and _can(lambda: space.slow_down(1000))
    except subprocess.CalledProcessError as refused:
        return Abilities(False, False, False, _words(refused))
    finally:
        space.remove()
    return Abilities(True, netem, filters, "" if netem else "the kernel has no netem")


def _sweep() -> None:
    """Take away what a harness left that was killed."""
    for path in Path("/run/netns").glob("hanse-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


def _can(act: Callable[[], None]) -> bool:
    try:
        act()
    except subprocess.CalledProcessError:
        return False
    return True


def _do(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)


def _words(refused: subprocess.CalledProcessError) -> str:
    told = refused.stderr.decode(errors="replace").strip() if refused.stderr else ""
    return f"{Path(refused.cmd[0]).name}: {told or refused.returncode}"

"""A process of a run, dead or alive."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SERVER = "server"
STOPPED = 130


class FailedRunError(Exception):
    """What must hold does not."""


@dataclass
class Process:
    """A process of the run, dead or alive.

    Attributes:
        pid: None while it does not run.
        expected: exit codes with which it may end now.
        clock: seconds by which its machine's clock is wrong.
        lives: how often it was started.
        deaths: how often it was killed, or killed itself.
        ended: exit codes that it ended with by itself.
        again_at: when it is started again after it has ended by itself.
    """

    pid: int | None = None
    expected: set[int] = field(default_factory=set)
    clock: float = 0.0
    lives: int = 0
    deaths: int = 0
    ended: list[int] = field(default_factory=list)
    again_at: float = math.inf

"""What really happens at a site, told by the process itself where no kill -9 undoes it.

The ledger is held against this: for which message a process drew records, and which replies
left. It knows nothing of ledger and audit trail.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message
from hanse.parts import Data
from hanse.task import Examples
from hanse.wire import hanse_pb2 as pb
from hanse_client.outbox import Outbox
from hanse_client.runtime import Order, SiteRuntime
from torch import Tensor


@dataclass
class Truth:
    """What a witness told of one message.

    Attributes:
        drew: the processes that drew records for it.
        left: digests of the different results of it that left, or will.
    """

    drew: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)


def install(path: str) -> None:
    """Have this process tell the witness at ``path``."""
    file = Path(path).open("a")  # noqa: SIM115 - as long as the process lives
    told: set[str] = set()
    now = ""
    accept, take, put = SiteRuntime.accept, Examples.take, Outbox.put

    def tell(*words: str) -> None:
        line = " ".join(words)
        if line not in told:
            told.add(line)
            file.write(line + "\n")
            file.flush()

    def accepted(self: SiteRuntime, message: Message) -> Order:
        nonlocal now
        now = ""  # what is checked on made-up records is no drawing
        order = accept(self, message)
        told.clear()
        now = message.metadata.message_id
        return order

    def drawn(self: Examples, indices: Tensor) -> Examples:
        if now:
            tell("drew", now, str(os.getpid()))
        return take(self, indices)

    def kept(self: Outbox, instruction: str, header: bytes, body: Sequence[Data]) -> None:
        put(self, instruction, header, body)
        content = pb.Content.FromString(pb.Header.FromString(header).content)
        if content.WhichOneof("kind") == "records":  # from here on it leaves, sooner or later
            tell("left", instruction, hashlib.sha256(header).hexdigest())

    SiteRuntime.accept = accepted  # type: ignore[method-assign]
    Examples.take = drawn  # type: ignore[method-assign]
    Outbox.put = kept  # type: ignore[method-assign]


def told(path: Path) -> dict[str, Truth]:
    """What was told at ``path``, by message."""
    truth: dict[str, Truth] = defaultdict(Truth)
    for line in path.read_text().splitlines() if path.exists() else ():
        what, message, whom = line.split()
        (truth[message].drew if what == "drew" else truth[message].left).add(whom)
    return truth

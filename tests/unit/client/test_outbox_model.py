"""The outbox against a dict that does the same, through restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from hanse_client import outbox as outboxes
from hanse_client.outbox import Outbox
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

ids = st.sampled_from([f"{number:032x}" for number in range(4)])
bodies = st.lists(st.binary(min_size=1, max_size=20), max_size=4)


class OutboxMachine(RuleBasedStateMachine):
    """Replies that are put, put again, forgotten and read, in any order, with restarts between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "outbox.sqlite"
        self.smaller = patch.object(outboxes, "SMALL_BYTES", 20)  # so that some lie in files
        self.smaller.start()
        self.outbox = Outbox(self.path)
        self.kept: dict[str, tuple[bytes, bytes]] = {}

    @rule(name=ids, header=st.binary(max_size=20), pieces=bodies)
    def put(self, name: str, header: bytes, pieces: list[bytes]) -> None:
        self.outbox.put(name, header, pieces)
        self.kept.pop(name, None)  # the newest comes last
        self.kept[name] = header, b"".join(pieces)

    @rule(names=st.sets(ids))
    def forget(self, names: set[str]) -> None:
        self.outbox.forget(names)
        for name in names:
            self.kept.pop(name, None)

    @rule(name=ids, start=st.integers(0, 80))
    def read_from_anywhere(self, name: str, start: int) -> None:
        _, body = self.kept.get(name, (b"", b""))
        start = min(start, len(body))
        read = b""
        while piece := self.outbox.piece(name, start + len(read)):
            read += piece
        assert read == body[start:]

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.path)

    @invariant()
    def agrees(self) -> None:
        assert self.outbox.instructions() == list(self.kept)
        for name in self.kept:
            assert self.outbox.header(name) == self.kept[name][0]

    def teardown(self) -> None:
        self.outbox.close()
        self.smaller.stop()
        self.folder.cleanup()


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

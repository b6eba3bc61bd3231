"""Ledger and audit trail after any sequence of charges, releases, crashes and restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hanse.errors import LedgerBrokenError
from hanse_client.audit import AuditTrail, last_digest, read_chained
from hanse_client.ledger import Ledger, Reservation, read_ledger
from hanse_client.ledger.verify import verify_ledger
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.charges import BUDGET, DATA, SMALL, instruction, reserve

names = st.sampled_from(["m1", "m2", "m3"])
values = st.one_of(st.integers(), st.text(), st.lists(st.text()), st.floats(allow_nan=False))


class LedgerMachine(RuleBasedStateMachine):
    """A restart forgets what is in hand, as a crash does; nothing that was charged is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.trail = Path(self.folder.name) / "audit.jsonl"
        self.in_hand: list[Reservation] = []
        self.charged: set[int] = set()
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.path)
        self.ledger.anchor(AuditTrail(self.trail))

    @rule(name=names)
    def charge(self, name: str) -> None:
        made = reserve(self.ledger, name, charge=SMALL)
        assert made.resumed == (made.row in self.charged)
        self.charged.add(made.row)
        self.in_hand.append(made)

    @precondition(lambda self: self.in_hand)
    @rule()
    def release(self) -> None:
        self.ledger.release(self.in_hand.pop())

    @precondition(lambda self: self.in_hand)
    @rule()
    def take_back(self) -> None:
        given_back = self.in_hand.pop()
        self.ledger.take_back(given_back)
        if not given_back.resumed:
            self.charged.discard(given_back.row)

    @rule(name=names)
    def train_without_privacy(self, name: str) -> None:
        self.ledger.note_unprotected((DATA,), instruction(name))

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.in_hand.clear()
        self.open()

    @invariant()
    def counts_what_was_charged(self) -> None:
        counted = {e.row for e in read_ledger(self.path).entries() if e.state != "taken back"}
        assert counted == self.charged

    def teardown(self) -> None:
        self.ledger.close()
        found = verify_ledger(self.path, self.trail, BUDGET.delta)
        assert found.told == found.rows
        self.folder.cleanup()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


@settings(deadline=None, max_examples=50)
@given(told=st.lists(st.dictionaries(st.sampled_from("abc"), values), min_size=1, max_size=5))
def test_what_a_trail_is_told_it_tells_through_restarts(told: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        for details in told:
            AuditTrail(path).write("asked", **details)
        lines = read_chained(path)
        assert [{key: line[key] for key in line.keys() & set("abc")} for line in lines] == told


@settings(deadline=None, max_examples=50)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_bit_that_is_changed_in_a_trail_shows(at: int, bit: int) -> None:
    """In the last line only by the digest that was noted elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        trail = AuditTrail(path)
        for number in range(3):
            trail.write("asked", round=number)
        noted, data = last_digest(path), bytearray(path.read_bytes())
        at %= len(data)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        try:
            read_chained(path)
        except LedgerBrokenError:
            return
        assert last_digest(path) != noted

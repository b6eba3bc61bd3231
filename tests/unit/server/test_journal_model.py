"""The journal against a dict that does the same, through restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hanse_server.journal import Entry, Journal, State
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

ids = st.sampled_from([f"{number:032x}" for number in range(6)])
several = st.sets(ids, max_size=4)
sites = st.sampled_from(["north", "east"])
unsettled = st.sampled_from([State.RECEIVED, State.ABANDONED, State.SETTLED])


class JournalMachine(RuleBasedStateMachine):
    """What is owed, marked and settled, in any order, with restarts between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.sqlite"
        self.journal = Journal(self.path)
        self.known: dict[str, tuple[str, State]] = {}

    @rule(names=several, site=sites)
    def owe(self, names: set[str], site: str) -> None:
        self.journal.owe(
            Entry(instruction=each, run_id=2**64 - 1, site=site, message_type="train", group_id="1")
            for each in names
        )
        self.known |= dict.fromkeys(names, (site, State.OWED))

    @rule(names=several, state=unsettled)
    def mark(self, names: set[str], state: State) -> None:
        self.journal.mark(names, state)
        self.known |= {each: (self.known[each][0], state) for each in names & self.known.keys()}

    @rule(keep=several)
    def settle(self, keep: set[str]) -> None:
        told = {entry.instruction for entry in self.journal.settle(keep=keep)}
        open_ones = {name for name, (_, state) in self.known.items() if state != State.SETTLED}
        assert told == open_ones - keep
        self.known |= {each: (self.known[each][0], State.SETTLED) for each in told}

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path)

    @invariant()
    def agrees(self) -> None:
        found = {each.instruction: (each.site, each.state) for each in self.journal.unsettled()}
        assert found == {n: each for n, each in self.known.items() if each[1] != State.SETTLED}
        for name in (*self.known, "unknown"):
            assert self.journal.state(name) == self.known.get(name, ("", State.SETTLED))[1]

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

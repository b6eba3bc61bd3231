"""The order in which a run's rounds of training come."""

from __future__ import annotations

from collections import OrderedDict

from flwr.app import MessageType
from hanse.errors import PolicyError

from hanse_client.ledger import Ledger

MOST_RUNS = 256
"""Runs of which the last round is remembered."""


class Turns:
    """Refuses to train a round of a run after a later one: a server that goes on never goes back.

    Args:
        ledger: tells of the rounds that were charged before this client was started.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._last: OrderedDict[int, int] = OrderedDict()
        for entry in ledger.entries():
            if entry.instruction.kind == MessageType.TRAIN:
                self.took(entry.instruction.run_id, entry.instruction.server_round)

    def check(self, run_id: int, server_round: int) -> None:
        """Let a round pass that is not before the last.

        Raises:
            PolicyError: if it is.
        """
        last = self._last.get(run_id, 0)
        if server_round < last:
            raise PolicyError(
                f"round {server_round} came after round {last} of the same run",
                remedy="Go on from the run's last checkpoint, or begin a new run.",
            )

    def took(self, run_id: int, server_round: int) -> None:
        """A round was let in."""
        self._last[run_id] = max(server_round, self._last.pop(run_id, 0))
        while len(self._last) > MOST_RUNS:
            self._last.popitem(last=False)

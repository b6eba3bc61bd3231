"""Faults that a ledger could have, planted to see that killing its client finds each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.privacy.accounting import Charge
from hanse_client import gates
from hanse_client.gates.ledger import reserve
from hanse_client.ledger import Entry, Instruction, Ledger, Reservation
from hanse_client.ledger.book import Account
from hanse_client.runtime import Resolve


@contextmanager
def charged_after_training() -> Iterator[None]:
    """The charge is written when the reply is there."""

    def gate(resolve: Resolve) -> Mod:
        def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            reply = call_next(message, context)
            reservation = reserve(resolve(context))
            assert reservation is not None
            resolve(context).ledger.release(reservation)
            return reply

        return mod

    with patch.object(gates, "ledger", gate):
        yield


@contextmanager
def never_released() -> Iterator[None]:
    """A reply leaves while its charge is only reserved."""
    with patch.object(Ledger, "release", lambda *_: None):
        yield


@contextmanager
def reservations_count_for_nothing() -> Iterator[None]:
    """A charge counts once it is released."""
    count = Account._count

    def late(self: Account, entry: Entry, sign: int) -> None:
        if entry.state == "released":
            count(self, entry, sign)

    with patch.object(Account, "_count", late):
        yield


@contextmanager
def released_charges_taken_up() -> Iterator[None]:
    """A message that comes again trains under its old charge, released or not."""

    def find(
        self: Ledger, account: Account, instruction: Instruction, charge: Charge
    ) -> int | None:
        for entry in self.entries():
            if entry.instruction.message_id == instruction.message_id:
                return entry.row
        return None

    def release(self: Ledger, reservation: Reservation) -> None:
        if reservation.row in {row for a in self._book.accounts() for row in a.reserved}:
            settle(self, reservation)

    settle = Ledger.release
    with patch.object(Ledger, "_abandoned", find), patch.object(Ledger, "release", release):
        yield


@contextmanager
def untold() -> Iterator[None]:
    """The audit trail hears nothing of the ledger."""
    with patch.object(Ledger, "_tell", lambda self: None):
        yield


FAULTS: tuple[Callable[[], AbstractContextManager[None]], ...] = (
    charged_after_training,
    never_released,
    reservations_count_for_nothing,
    released_charges_taken_up,
    untold,
)

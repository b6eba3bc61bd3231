"""Ledgers that forget, count too late, or open a fresh budget."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.errors import LedgerError
from hanse.privacy.accounting import Charges
from hanse_client import gates
from hanse_client.gates.ledger import reserve
from hanse_client.ledger import Instruction, Ledger, Reservation, events
from hanse_client.ledger.book import Account
from hanse_client.ledger.chain import Chain, Row
from hanse_client.runtime import Resolve

from tests.faults import test_ledger_faults
from tests.privacy import test_charged_first as charged
from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_ledger, test_ledger_chain, test_ledger_data

OPEN = Ledger.__init__


def in_memory(ground: Ground) -> None:
    ground.patch.setattr(Ledger, "__init__", lambda self, path: OPEN(self, None))


def charged_afterwards(ground: Ground) -> None:
    """The gate lets the work be done, and then charges it."""

    def late(resolve: Resolve) -> Mod:
        def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            reply = call_next(message, context)
            runtime = resolve(context)
            reservation = reserve(runtime)
            if reservation is not None:
                runtime.ledger.release(reservation)
            return reply

        return mod

    ground.patch.setattr(gates, "ledger", late)


def nothing_is_released(ground: Ground) -> None:
    ground.patch.setattr(Ledger, "release", lambda self, reservation: None)


def released_without_a_charge(ground: Ground) -> None:
    def settle(self: Ledger, reservation: Reservation, event: Any) -> None:
        if reservation.row in self._in_hand:
            self._record(event, settles={reservation.row})

    ground.patch.setattr(Ledger, "_settle", settle)


def a_replay_is_never_charged(ground: Ground) -> None:
    """Whatever was charged for a message before stands for it now."""
    charge, first = Ledger.reserve, dict[str, int]()

    def remembering(
        self: Ledger, fingerprints: Sequence[str], instruction: Instruction, **terms: Any
    ) -> Reservation:
        reservation = charge(self, fingerprints, instruction, **terms)
        first.setdefault(instruction.message_id, reservation.row)
        return reservation

    def abandoned(
        self: Ledger, account: Account, instruction: Instruction, charge: Any
    ) -> int | None:
        return first.get(instruction.message_id)

    ground.patch.setattr(Ledger, "reserve", remembering)
    ground.patch.setattr(Ledger, "_abandoned", abandoned)


def taken_back_in_any_case(ground: Ground) -> None:
    def take_back(self: Ledger, reservation: Reservation) -> None:
        self._settle(reservation, events.ChargeTakenBack(charge=reservation.row))

    ground.patch.setattr(Ledger, "take_back", take_back)


def the_last_round_alone(ground: Ground) -> None:
    """A fresh accountant for each round."""

    def charges(self: Account) -> Charges:
        entries = list(self.entries.values())
        return (entries[-1].charge,) if entries else ()

    ground.patch.setattr(Account, "charges", property(charges))


def unknown_data_is_new(ground: Ground) -> None:
    identify = Ledger.identify

    def identified(self: Ledger, fingerprints: Sequence[str]) -> Account:
        if all(self._book.known(each) is None for each in fingerprints):
            self.adopt(fingerprints, None)
        return identify(self, fingerprints)

    ground.patch.setattr(Ledger, "identify", identified)


def open_to_all(ground: Ground) -> None:
    ground.patch.setattr(fcntl, "flock", lambda *_: None)


def full_disks_ignored(ground: Ground) -> None:
    """What cannot be written is passed over."""
    append = Chain.append

    def appended(self: Chain, content: str) -> Row:
        with suppress(LedgerError):
            return append(self, content)
        return Row(number=self.count() + 1, content=content, digest="")

    ground.patch.setattr(Chain, "append", appended)


def digests_not_compared(ground: Ground) -> None:
    """Rows are taken as they are."""

    def rows(self: Chain) -> list[Row]:
        query = "SELECT row, content, digest FROM events ORDER BY row"
        found = self._database.execute(query).fetchall()
        taken = [Row(number=row, content=content, digest=digest) for row, content, digest in found]
        self._last = taken[-1] if taken else self._last
        return taken

    ground.patch.setattr(Chain, "rows", rows)


def path(ground: Ground) -> Path:
    return ground.folder / "state" / "ledger.sqlite"


def with_path(guard: Callable[[Path], None]) -> Callable[[Ground], None]:
    return lambda ground: guard(path(ground))


def with_ledger(guard: Callable[..., None]) -> Callable[[Ground], None]:
    def run(ground: Ground) -> None:
        with Ledger(path(ground)) as ledger:
            guard(ledger)

    return run


def charged_first(ground: Ground) -> None:
    charged.test_the_charge_is_on_the_disk_before_the_work_begins(
        MessageType.TRAIN, "train", ground.folder, ground.patch
    )


def tampered(ground: Ground) -> None:
    files = ground.folder / "ledger.sqlite", ground.folder / "audit.jsonl"
    test_ledger_chain.test_a_row_that_was_changed_breaks_the_chain(
        files, test_ledger_chain.FEWER_STEPS, 4
    )


BUGS = [
    Bug(
        name="the ledger is in memory",
        plant=in_memory,
        guard=with_path(test_ledger.test_it_composes_over_runs_jobs_and_restarts),
    ),
    Bug(
        name="of the rounds the last alone is counted",
        plant=the_last_round_alone,
        guard=with_ledger(test_ledger.test_rounds_compose_to_exactly_the_epsilon_of_one_run),
    ),
    Bug(
        name="a round is charged after its training", plant=charged_afterwards, guard=charged_first
    ),
    Bug(
        name="nothing is marked as released",
        plant=nothing_is_released,
        guard=with_path(test_ledger.test_a_replay_of_what_was_released_is_charged_anew),
    ),
    Bug(
        name="a reply leaves whose charge is not marked as released",
        plant=nothing_is_released,
        guard=charged_first,
    ),
    Bug(
        name="what was not charged can be released",
        plant=released_without_a_charge,
        guard=lambda ground: with_ledger(
            lambda ledger: test_ledger.test_a_charge_is_settled_once(ledger, path(ground))
        )(ground),
    ),
    Bug(
        name="a replay is charged for by the first, though that was released",
        plant=a_replay_is_never_charged,
        guard=with_path(test_ledger.test_a_replay_of_what_was_released_is_charged_anew),
    ),
    Bug(
        name="two replays share one charge",
        plant=a_replay_is_never_charged,
        guard=with_path(test_ledger.test_two_replays_after_a_crash_do_not_share_a_reservation),
    ),
    Bug(
        name="a charge of before a crash is taken back",
        plant=taken_back_in_any_case,
        guard=with_path(test_ledger.test_a_reservation_of_before_a_crash_is_never_taken_back),
    ),
    Bug(
        name="data that changed has a fresh budget",
        plant=unknown_data_is_new,
        guard=with_ledger(test_ledger_data.test_changed_data_is_a_question_and_no_fresh_budget),
    ),
    Bug(
        name="two clients write in one ledger",
        plant=open_to_all,
        guard=with_path(test_ledger_faults.test_two_clients_cannot_hold_one_ledger),
    ),
    Bug(
        name="a full disk is passed over",
        plant=full_disks_ignored,
        guard=with_path(test_ledger_faults.test_a_full_disk_refuses_and_keeps_what_is_there),
    ),
    Bug(name="a changed row is believed", plant=digests_not_compared, guard=tampered),
]

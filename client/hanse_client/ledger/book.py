"""What the events of a ledger come to: accounts, the data that belongs to each, what was spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hanse.errors import DataChangedError, LedgerBrokenError, LedgerError
from hanse.privacy.accounting import Charge, Charges, Verdict, epsilon

from hanse_client.ledger import events
from hanse_client.ledger.events import Instruction
from hanse_client.site import Budget

State = Literal["reserved", "released", "taken back"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One charge.

    Attributes:
        row: its row in the ledger.
        fingerprints: of the data that it was made for.
        reserved_at: Unix time in seconds.
        settled_at: when it was released or taken back; None while it is neither.
    """

    row: int
    fingerprints: tuple[str, ...]
    instruction: Instruction
    charge: Charge
    reserved_at: float
    state: State = "reserved"
    settled_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What was spent of a budget.

    Attributes:
        account: number of the account; None for data that the ledger does not know.
        spent: epsilon of all charges together at the budget's delta, an upper bound.
        budget: the most epsilon there is.
        delta: the budget's.
        rounds: number of charges for training.
        evaluations: number of the other charges.
        tight: whether ``spent`` is the tightest bound known, not the fast one.
        unprotected: rounds that trained on the data without privacy; if there are any, no
            epsilon bounds what was given away, and ``spent`` is of the charges alone.
    """

    account: int | None
    spent: float
    budget: float
    delta: float
    rounds: int = 0
    evaluations: int = 0
    tight: bool
    unprotected: int = 0

    @property
    def left(self) -> float:
        """Epsilon that is left, at least 0."""
        return max(0.0, self.budget - self.spent)


@dataclass(kw_only=True)
class Account:
    """Data that has records in common, and what was spent on it.

    Attributes:
        data: since when each fingerprint belongs to it, Unix time in seconds.
        entries: by row, those that were taken back too; of a book that keeps open ones alone,
            only those that are reserved.
        reserved: the rows of those that are neither released nor taken back.
        unprotected: ids of the messages that trained on it without privacy.
    """

    number: int
    data: dict[str, float] = field(default_factory=dict)
    entries: dict[int, Entry] = field(default_factory=dict)
    reserved: set[int] = field(default_factory=set)
    unprotected: set[str] = field(default_factory=set)
    _steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    _charges: Counter[str] = field(default_factory=Counter)

    @property
    def charges(self) -> Charges:
        """All that counts, the charges of one mechanism added up."""
        return tuple(
            Charge(noise_multiplier=noise, sampling_rate=rate, steps=steps)
            for (noise, rate), steps in sorted(self._steps.items())
            if steps > 0
        )

    def statement(self, verdict: Verdict, budget: Budget) -> Statement:
        """The statement that a verdict on the charges makes."""
        rounds = self._charges["train"]
        return Statement(
            account=self.number,
            spent=verdict.epsilon,
            budget=budget.epsilon,
            delta=budget.delta,
            rounds=rounds,
            evaluations=self._charges.total() - rounds,
            tight=verdict.tight,
            unprotected=len(self.unprotected),
        )

    def take_in(self, entry: Entry) -> None:
        """Count a charge; one that is here already counts in its new state."""
        before = self.entries.get(entry.row)
        if before is not None:
            self._count(before, -1)
        self.entries[entry.row] = entry
        self._count(entry, +1)
        if entry.state == "reserved":
            self.reserved.add(entry.row)
        else:
            self.reserved.discard(entry.row)

    def merge(self, other: Account) -> None:
        """Count all that was spent on another account's data."""
        self.entries |= other.entries
        self.reserved |= other.reserved
        self.unprotected |= other.unprotected
        self._steps.update(other._steps)
        self._charges.update(other._charges)

    def _count(self, entry: Entry, sign: int) -> None:
        if entry.state == "taken back":
            return
        charge = entry.charge
        self._steps[charge.noise_multiplier, charge.sampling_rate] += sign * charge.steps
        self._charges[entry.instruction.kind] += sign


class Book:
    """The accounts of a ledger, kept up with its events.

    Args:
        only_open: keep of a charge that is settled only what it counts for, as a client does
            that runs for years.

    Attributes:
        opened: how many accounts were ever opened; their numbers are not given again.
    """

    def __init__(self, *, only_open: bool = False) -> None:
        self.opened = 0
        self._only_open = only_open
        self._accounts: dict[int, Account] = {}
        self._account_of: dict[str, int] = {}
        self._charged_to: dict[int, int] = {}  # by row

    # --- what it says ---------------------------------------------------------------------------

    def accounts(self) -> list[Account]:
        """All accounts, the first first."""
        return [self._accounts[number] for number in sorted(self._accounts)]

    def entries(self) -> list[Entry]:
        """The charges of all accounts, in their order."""
        found = [entry for account in self.accounts() for entry in account.entries.values()]
        return sorted(found, key=lambda entry: entry.row)

    def account_of(self, fingerprints: Sequence[str]) -> Account | None:
        """The account that data belongs to; None if there is no account at all.

        Args:
            fingerprints: of the training data, and of the separate held-out records if any.

        Raises:
            DataChangedError: if it is not known while other data is, or belongs to several
                accounts: whether people are the same is not for a program to say.
        """
        if not self._accounts:
            return None
        unknown = [each for each in fingerprints if each not in self._account_of]
        if unknown:
            numbers = ", ".join(map(str, sorted(self._accounts)))
            raise DataChangedError(
                f"data {short(unknown[0])} is not known to the ledger, which has spent on other "
                f"data (account {numbers})",
                remedy=_remedy(min(self._accounts)),
            )
        numbers_of = {self._account_of[each] for each in fingerprints}
        if len(numbers_of) > 1:
            told = " and ".join(map(str, sorted(numbers_of)))
            raise DataChangedError(
                f"the training and the held-out records belong to different accounts, {told}",
                remedy=f"Stop the client, and let one account have both: `hanse client ledger "
                f"SITE --adopt {min(numbers_of)}`; what was spent on either adds up.",
            )
        return self._accounts[numbers_of.pop()]

    def known(self, fingerprint: str) -> Account | None:
        """The account that data belongs to; None if it belongs to none."""
        number = self._account_of.get(fingerprint)
        return None if number is None else self._accounts[number]

    def account(self, number: int) -> Account:
        """The account of a number.

        Raises:
            LedgerError: if there is none.
        """
        if number not in self._accounts:
            there = ", ".join(map(str, sorted(self._accounts))) or "none"
            raise LedgerError(
                f"there is no account {number}", remedy=f"The accounts of this ledger: {there}."
            )
        return self._accounts[number]

    def statement(self, fingerprint: str, budget: Budget) -> Statement:
        """What was spent on data, by the tightest accountant: this may take seconds."""
        account = self.known(fingerprint)
        if account is None:
            return Statement(
                account=None, spent=0.0, budget=budget.epsilon, delta=budget.delta, tight=True
            )
        spent = epsilon(account.charges, budget.delta)
        verdict = Verdict(fits=spent <= budget.epsilon, epsilon=spent, tight=True)
        return account.statement(verdict, budget)

    # --- how it is kept -------------------------------------------------------------------------

    def apply(self, row: int, event: events.Event) -> None:
        """Take in the event of a row.

        Raises:
            LedgerBrokenError: if it cannot come after those before it.
        """
        try:
            self._take_in(row, event)
        except (KeyError, ValueError) as senseless:
            raise LedgerBrokenError(
                f"row {row} of the ledger, {event.kind}, makes no sense after those before it"
            ) from senseless

    def _take_in(self, row: int, event: events.Event) -> None:
        match event:
            case events.AccountOpened():
                self._open(event)
            case events.DataAdopted():
                self._adopt(event)
            case events.Unprotected():
                self._accounts[event.account].unprotected.add(event.id)
            case events.Charged():
                entry = Entry(
                    row=row,
                    fingerprints=event.fingerprints,
                    instruction=event.instruction,
                    charge=event.charge,
                    reserved_at=event.at,
                )
                self._accounts[event.account].take_in(entry)
                self._charged_to[row] = event.account
            case events.ChargeReleased():
                self._settle(event.charge, "released", event.at)
            case events.ChargeTakenBack():
                self._settle(event.charge, "taken back", event.at)

    def _open(self, event: events.AccountOpened) -> None:
        if event.account != self.opened + 1 or self._known_ones(event.fingerprints):
            raise ValueError("the account or its data is there already")
        self.opened += 1
        self._accounts[event.account] = Account(number=event.account)
        self._belong(event.fingerprints, event.account, event.at)

    def _adopt(self, event: events.DataAdopted) -> None:
        account = self._accounts[event.account]
        for other in self._known_ones(event.fingerprints) - {event.account}:
            merged = self._accounts.pop(other)
            account.merge(merged)
            self._charged_to |= dict.fromkeys(merged.entries, account.number)
            self._belong(merged.data, account.number, event.at)
        self._belong(event.fingerprints, account.number, event.at)

    def _belong(self, fingerprints: Iterable[str], number: int, at: float) -> None:
        for each in fingerprints:
            self._account_of[each] = number
            self._accounts[number].data.setdefault(each, at)

    def _known_ones(self, fingerprints: Sequence[str]) -> set[int]:
        return {self._account_of[each] for each in fingerprints if each in self._account_of}

    def _settle(self, row: int, state: State, at: float) -> None:
        account = self._accounts[self._charged_to[row]]
        entry = account.entries[row]
        if entry.state != "reserved":
            raise ValueError(f"the charge of row {row} is {entry.state}")
        account.take_in(replace(entry, state=state, settled_at=at))
        if self._only_open:
            del account.entries[row], self._charged_to[row]


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint, for people to compare."""
    return fingerprint[:12]


def _remedy(account: int) -> str:
    return (
        f"Stop the client and answer: `hanse client ledger SITE --adopt {account}` if any of the "
        "people are the same as before (records added or corrected, a file that is written "
        "anew): what was spent on them stays spent. `--adopt new` only if no record is in common."
    )

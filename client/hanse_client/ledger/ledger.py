"""The ledger of a running client, and the only hand that writes in it.

It holds charges (noise multiplier, sampling rate, steps), never epsilons: what they cost together
is computed anew each time, over all rounds, runs and jobs. A charge is written before the first
batch is drawn and counts from then on. It is *reserved* until :meth:`Ledger.release`, which comes
before anything that training made may leave, and *released* afterwards, for ever. So a crash can
make the ledger count a charge whose result never left, and can never make it miss one whose
result did.

When a message comes again:

- Its reply is in the outbox: it is answered from there, and does not come as far as the ledger.
- Its charge is reserved, and was made by a process that is gone: nothing that was trained under
  it can have left, so the same charge is taken up, whatever batches that process had drawn.
- Its charge is released, and its reply is not in the outbox: it was lost between the release and
  the outbox (a crash, a full disk), or the server had it and settled it. The ledger cannot tell
  these apart, so what is trained now is one more charge.
- Its charge was taken back, or is in the hands of this process: likewise one more charge.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hanse.errors import BudgetError, DataChangedError, LedgerError
from hanse.privacy.accounting import Charge, Verdict, decide, epsilon

from hanse_client.audit import AuditTrail
from hanse_client.holding import hold
from hanse_client.ledger import events
from hanse_client.ledger.anchors import line_of, rows_told
from hanse_client.ledger.book import Account, Entry, Statement, short
from hanse_client.ledger.chain import Chain, Row
from hanse_client.ledger.events import Instruction, fields_of
from hanse_client.ledger.memory import MemoryChain
from hanse_client.ledger.reader import book_of, event_of
from hanse_client.site import Budget


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A charge in the hands of who will train under it.

    Attributes:
        row: of the charge.
        resumed: whether it was made before a crash: batches may have been drawn under it.
        statement: what was spent, this charge included.
    """

    row: int
    resumed: bool
    statement: Statement


class Ledger:
    """A ledger that no other process can open meanwhile; safe to use from several threads.

    Every row is checked at the opening: a broken ledger does not open.

    Args:
        path: the ledger's file, made if there is none; None for one in memory, which is for
            simulations: it forgets everything.
        begun: what stands in the rows of a ledger in memory that goes on elsewhere.
        patience: seconds to wait for another client that holds it.

    Raises:
        LedgerError: if it cannot be written, or another client holds it.
        LedgerBrokenError: if it was changed by hand, cut off or damaged.
    """

    def __init__(
        self, path: Path | None, *, begun: Sequence[str] = (), patience: float = 0.0
    ) -> None:
        if path is not None and begun:
            raise ValueError("what stands in the rows of a file stands there already")
        self._mutex = threading.RLock()
        self._in_hand: set[int] = set()  # rows of reservations that were given out and not settled
        self._trail: AuditTrail | None = None
        self._untold: Row | None = None
        with ExitStack() as opened:
            if path is not None:
                opened.callback(
                    os.close, hold(path.with_name(path.name + ".lock"), patience=patience)
                )
            self._chain = MemoryChain() if path is None else Chain(path)
            opened.callback(self._chain.close)
            for content in begun:
                self._chain.append(content)
            self._book = book_of(self._chain.rows(), only_open=True)
            self._opened = opened.pop_all()

    def anchor(self, trail: AuditTrail) -> None:
        """Hold the ledger against the audit trail, and tell each event there from now on.

        A row that a crash kept from the trail is told now.

        Raises:
            LedgerBrokenError: if the trail tells of other rows than there are, or is broken.
            LedgerError: if it cannot be written.
        """
        if trail.path is None:
            return
        with self._mutex:
            rows = self._chain.rows()
            told = rows_told(rows, trail.read(), before=len(rows), name=self._chain.name)
            self._trail = trail
            self._untold = rows[-1] if told < len(rows) else None
            self._tell()

    def close(self) -> None:
        """Close the file, and let others open it."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what it says ---------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All charges, in their order, read from the file."""
        with self._mutex:
            return book_of(self._chain.rows()).entries()

    def contents(self) -> list[str]:
        """What stands in the rows, in their order."""
        with self._mutex:
            return [row.content for row in self._chain.rows()]

    def statement(self, fingerprint: str, budget: Budget) -> Statement:
        """What was spent on data, by the tightest accountant: this may take seconds."""
        with self._mutex:
            return self._book.statement(fingerprint, budget)

    # --- whose data it is -----------------------------------------------------------------------

    def identify(self, fingerprints: Sequence[str]) -> Account:
        """The account that data belongs to; the first data ever opens the first account.

        Args:
            fingerprints: of the training data, and of the separate held-out records if any.

        Raises:
            DataChangedError: if the administrator has to be asked (:meth:`adopt`).
            LedgerError: if it cannot be written.
        """
        with self._mutex:
            self._tell()
            return self._book.account_of(fingerprints) or self._open_account(fingerprints)

    def adopt(self, fingerprints: Sequence[str], account: int | None) -> Account:
        """The administrator's answer: whom data is of.

        Args:
            account: the account that goes on with it, and with all that was spent on other data
                that it now has in common with this; None for a fresh account.

        Raises:
            LedgerError: if there is no such account, or it cannot be written.
            DataChangedError: if a fresh account is asked for data that belongs to one.
        """
        with self._mutex:
            if account is None:
                for each in fingerprints:
                    if (of := self._book.known(each)) is not None:
                        raise DataChangedError(
                            f"data {short(each)} belongs to account {of.number}, and cannot be new",
                            remedy=f"`--adopt {of.number}` lets it go on with what is spent.",
                        )
                return self._open_account(fingerprints)
            self._tell()
            adopting = self._book.account(account)
            if any(self._book.known(each) is not adopting for each in fingerprints):
                self._record(events.DataAdopted(account=account, fingerprints=tuple(fingerprints)))
            return adopting

    def _open_account(self, fingerprints: Sequence[str]) -> Account:
        number = self._book.opened + 1
        self._record(events.AccountOpened(account=number, fingerprints=tuple(fingerprints)))
        return self._book.account(number)

    # --- charges --------------------------------------------------------------------------------

    def reserve(
        self,
        fingerprints: Sequence[str],
        instruction: Instruction,
        *,
        charge: Charge,
        budget: Budget,
    ) -> Reservation:
        """Charge an instruction, before its first batch; durable when this returns.

        Raises:
            BudgetError: if it does not fit; nothing was written.
            DataChangedError: as :meth:`identify`.
            LedgerError: if it cannot be written; nothing may be trained.
        """
        with self._mutex:
            account = self.identify(fingerprints)
            abandoned = self._abandoned(account, instruction, charge)
            charges = account.charges if abandoned else (*account.charges, charge)
            verdict = decide(charges, budget=budget.epsilon, delta=budget.delta)
            if not verdict.fits:
                raise _refusal(account, verdict, budget)
            row = abandoned or self._record(
                events.Charged(
                    account=account.number,
                    fingerprints=tuple(fingerprints),
                    **fields_of(instruction),
                    noise_multiplier=charge.noise_multiplier,
                    sampling_rate=charge.sampling_rate,
                    steps=charge.steps,
                )
            )
            self._in_hand.add(row)
            return Reservation(
                row=row,
                resumed=abandoned is not None,
                statement=account.statement(verdict, budget),
            )

    def release(self, reservation: Reservation) -> None:
        """Mark that what came of a charge may leave from now on; to be called before it does.

        Raises:
            LedgerError: if it cannot be written; nothing may leave then.
        """
        with self._mutex:
            self._settle(reservation, events.ChargeReleased(charge=reservation.row))

    def take_back(self, reservation: Reservation) -> None:
        """Count a charge no more: no batch was drawn under it, and no byte will leave.

        One that was made before a crash stays, since batches may have been drawn then; it can be
        taken up again.

        Raises:
            LedgerError: if it cannot be written; the charge stays.
        """
        with self._mutex:
            if reservation.resumed:
                self._in_hand.discard(reservation.row)
            else:
                self._settle(reservation, events.ChargeTakenBack(charge=reservation.row))

    def note_unprotected(self, fingerprints: Sequence[str], instruction: Instruction) -> None:
        """Note that an instruction is about to train without privacy, durably, once.

        Raises:
            DataChangedError: as :meth:`identify`.
            LedgerError: if it cannot be written; nothing may be trained.
        """
        with self._mutex:
            account = self.identify(fingerprints)
            if instruction.message_id not in account.unprotected:
                self._record(
                    events.Unprotected(
                        account=account.number,
                        fingerprints=tuple(fingerprints),
                        **fields_of(instruction),
                    )
                )

    def _abandoned(self, account: Account, instruction: Instruction, charge: Charge) -> int | None:
        """The row of an earlier charge for the same that nothing was released of."""
        for row in sorted(account.reserved - self._in_hand):
            entry = account.entries[row]
            same_message = entry.instruction.message_id == instruction.message_id
            if same_message and entry.charge == charge:
                return row
        return None

    def _settle(self, reservation: Reservation, event: events.Event) -> None:
        if reservation.row not in self._in_hand:
            raise LedgerError(f"{self._chain.name}: the charge of row {reservation.row} is settled")
        self._record(event, settles={reservation.row})

    # --- rows -----------------------------------------------------------------------------------

    def _record(self, event: events.Event, *, settles: Set[int] = frozenset()) -> int:
        """Write an event, then tell it; what was not told before is told first."""
        self._tell()
        row = self._chain.append(events.write(event))
        self._book.apply(row.number, event)
        self._in_hand -= settles
        self._untold = row
        self._tell()
        return row.number

    def _tell(self) -> None:
        """Tell the trail of the last row, if it was not told yet."""
        if self._untold is None or self._trail is None:
            return
        event = event_of(self._untold)
        told = event.model_dump(mode="json", exclude={"kind"})
        self._trail.write(event.kind, **told, **line_of(self._untold))
        self._untold = None


def _refusal(account: Account, verdict: Verdict, budget: Budget) -> BudgetError:
    spent = epsilon(account.charges, budget.delta)
    return BudgetError(
        f"this would bring epsilon to {verdict.epsilon:.4g} at delta={budget.delta:g}, above the "
        f"data's budget of {budget.epsilon:g} ({spent:.4g} is spent)"
    )

"""What was charged, counted again from the audit trail alone.

It shares nothing with the ledger but the accountant: an error in what the ledger makes of its
rows shows as a difference between the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanse.errors import LedgerBrokenError
from hanse.privacy.accounting import Charge, Charges, merge


@dataclass(frozen=True, kw_only=True)
class Recount:
    """What the trail says of one account.

    Attributes:
        charges: all that count, those of one mechanism added up.
        unprotected: messages that trained without privacy.
    """

    charges: Charges
    unprotected: int


@dataclass
class _Tally:
    owner: dict[str, int] = field(default_factory=dict)  # of each fingerprint
    charges: dict[int, tuple[str, Charge]] = field(default_factory=dict)  # by row
    unprotected: set[tuple[str, str]] = field(default_factory=set)


def recount(lines: Iterable[Mapping[str, Any]]) -> dict[int, Recount]:
    """The charges of each account, by its number.

    Args:
        lines: of the trail, oldest first.

    Raises:
        LedgerBrokenError: if a line lacks what it should tell.
    """
    tally = _Tally()
    for number, line in enumerate(lines, start=1):
        try:
            _count(tally, line)
        except (KeyError, IndexError, TypeError, ValueError) as senseless:
            raise LedgerBrokenError(
                f"line {number} of the audit trail, {line.get('event')}, makes no sense"
            ) from senseless
    charges: defaultdict[int, list[Charge]] = defaultdict(list)
    bare: defaultdict[int, set[str]] = defaultdict(set)
    try:
        for fingerprint, charge in tally.charges.values():
            charges[tally.owner[fingerprint]].append(charge)
        for fingerprint, message in tally.unprotected:
            bare[tally.owner[fingerprint]].add(message)
    except (KeyError, TypeError) as unknown:
        raise LedgerBrokenError("the audit trail tells of data of no account") from unknown
    return {
        account: Recount(charges=merge(charges[account]), unprotected=len(bare[account]))
        for account in sorted(set(tally.owner.values()))
    }


def _count(tally: _Tally, line: Mapping[str, Any]) -> None:
    match line["event"]:
        case "account_opened" | "data_adopted":
            _own(tally, line["account"], line["fingerprints"])
        case "charged":
            charge = Charge(
                noise_multiplier=line["noise_multiplier"],
                sampling_rate=line["sampling_rate"],
                steps=line["steps"],
            )
            tally.charges[line["row"]] = line["fingerprints"][0], charge
        case "charge_taken_back":
            del tally.charges[line["charge"]]
        case "unprotected":
            tally.unprotected.add((line["fingerprints"][0], line["id"]))


def _own(tally: _Tally, account: int, fingerprints: Iterable[str]) -> None:
    """Give data to an account, and with it all the data of the accounts that it belonged to."""
    if type(account) is not int:
        raise TypeError(f"{account!r} is no account")
    joined = {tally.owner[each] for each in fingerprints if each in tally.owner}
    for each, owner in tally.owner.items():
        if owner in joined:
            tally.owner[each] = account
    for each in fingerprints:
        tally.owner[each] = account

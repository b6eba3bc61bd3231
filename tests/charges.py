"""Charges to a ledger, as tests make them."""

from __future__ import annotations

from hanse.privacy.accounting import Charge
from hanse_client.ledger import Instruction, Ledger, Reservation
from hanse_client.site import Budget

BUDGET = Budget(epsilon=8.0, delta=1e-5)
CHARGE = Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=16)
SMALL = Charge(noise_multiplier=50.0, sampling_rate=1.0, steps=1)
DATA = "a" * 64
JOB = "b" * 64


def instruction(
    message_id: str, *, run_id: int = 2**63 + 5, server_round: int = 1, kind: str = "train"
) -> Instruction:
    """An instruction of the id given."""
    return Instruction(
        message_id=message_id,
        run_id=run_id,
        server_round=server_round,
        job_digest=JOB,
        kind=kind,
    )


def reserve(
    ledger: Ledger,
    message_id: str,
    *,
    data: tuple[str, ...] = (DATA,),
    run_id: int = 2**63 + 5,
    server_round: int = 1,
    kind: str = "train",
    charge: Charge = CHARGE,
    budget: Budget = BUDGET,
) -> Reservation:
    """Charge a message to the ledger."""
    asked = instruction(message_id, run_id=run_id, server_round=server_round, kind=kind)
    return ledger.reserve(data, asked, charge=charge, budget=budget)

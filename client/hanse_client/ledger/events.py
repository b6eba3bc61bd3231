"""The events of a ledger: what is written, once, in each of its rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

from hanse.privacy.accounting import Charge
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter

Fingerprints = Annotated[tuple[str, ...], Field(min_length=1)]
"""Of the files that records come from (:func:`hanse.records.fingerprint`)."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """For which instruction something is charged.

    Attributes:
        kind: Flower's type of the message, ``train`` or ``evaluate``.
    """

    message_id: str
    run_id: int
    server_round: int
    job_digest: str
    kind: str


class _Event(BaseModel):
    """Attributes: at: Unix time in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    at: float = Field(default_factory=time.time)


class AccountOpened(_Event):
    """An account, for data that has no record in common with that of any other account."""

    kind: Literal["account_opened"] = "account_opened"
    account: PositiveInt
    fingerprints: Fingerprints


class DataAdopted(_Event):
    """Data that belongs to an account; with it comes the account it belonged to before, if any."""

    kind: Literal["data_adopted"] = "data_adopted"
    account: PositiveInt
    fingerprints: Fingerprints


class InstructionFields(TypedDict):
    """How an instruction stands in its events."""

    id: str
    run: int
    round: int
    job: str
    type: str


class _OfInstruction(_Event):
    account: PositiveInt
    fingerprints: Fingerprints
    id: str
    run: int
    round: int
    job: str
    type: str

    @property
    def instruction(self) -> Instruction:
        """For which it was."""
        return Instruction(
            message_id=self.id,
            run_id=self.run,
            server_round=self.round,
            job_digest=self.job,
            kind=self.type,
        )


class Charged(_OfInstruction):
    """What an instruction will cost, before its first batch is drawn."""

    kind: Literal["charged"] = "charged"
    noise_multiplier: float
    sampling_rate: float
    steps: int

    @property
    def charge(self) -> Charge:
        """What is charged."""
        return Charge(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
        )


class ChargeReleased(_Event):
    """From here on, what came of a charge may leave.

    Attributes:
        charge: the row of the charge.
    """

    kind: Literal["charge_released"] = "charge_released"
    charge: PositiveInt


class ChargeTakenBack(_Event):
    """No batch was drawn under a charge: it counts no more.

    Attributes:
        charge: the row of the charge.
    """

    kind: Literal["charge_taken_back"] = "charge_taken_back"
    charge: PositiveInt


class Unprotected(_OfInstruction):
    """An instruction is about to train without privacy."""

    kind: Literal["unprotected"] = "unprotected"


Event = AccountOpened | DataAdopted | Charged | ChargeReleased | ChargeTakenBack | Unprotected

_ADAPTER: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="kind")],
    # Ids come once: pydantic would keep the last 16,384 of them.
    config=ConfigDict(cache_strings="keys"),
)


def write(event: Event) -> str:
    """An event as it stands in its row: JSON, its keys in one order."""
    return event.model_dump_json()


def read(content: str) -> Event:
    """The event that :func:`write` was given.

    Raises:
        ValueError: if ``content`` is none.
    """
    return _ADAPTER.validate_json(content)


def fields_of(instruction: Instruction) -> InstructionFields:
    """An instruction as the fields of its events."""
    return InstructionFields(
        id=instruction.message_id,
        run=instruction.run_id,
        round=instruction.server_round,
        job=instruction.job_digest,
        type=instruction.kind,
    )

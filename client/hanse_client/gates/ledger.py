"""The gate that charges what is asked for to the privacy budget, before it is done."""

from __future__ import annotations

import math

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from hanse_client.ledger import Instruction, Reservation, Statement
from hanse_client.runtime import Order, Resolve, SiteRuntime


def ledger(resolve: Resolve) -> Mod:
    """Let nothing begin on data that the ledger does not know, nor before it is charged."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type not in (MessageType.TRAIN, MessageType.EVALUATE):
            return call_next(message, context)
        runtime = resolve(context)
        reservation = reserve(runtime)
        if reservation is None:
            return call_next(message, context)
        trainer, has_reply = runtime.order.trainer, False
        trainer.saw_records = False
        try:
            reply = call_next(message, context)
            has_reply = True
        finally:
            if has_reply or trainer.saw_records:
                # From here on something may leave, be it the name of an error that a record
                # caused: if this message comes again, it is a new charge.
                runtime.ledger.release(reservation)
            else:
                runtime.ledger.take_back(reservation)
        return reply

    return mod


def reserve(runtime: SiteRuntime) -> Reservation | None:
    """Charge the order under way to the ledger; None where it costs nothing.

    Raises:
        DataChangedError: if the ledger does not know the data, and the administrator has to say.
        BudgetError: if the budget does not cover it; nothing is charged.
        LedgerError: if the ledger cannot be written.
    """
    order = runtime.order
    with runtime.metrics.phases.during("accounting"):
        fingerprints, instruction = order.records.fingerprints, _instruction(order)
        runtime.ledger.identify(fingerprints)
        if order.kind == MessageType.TRAIN and order.plan.privacy is None:
            runtime.ledger.note_unprotected(fingerprints, instruction)
            runtime.metrics.epsilon_spent.set(math.inf)
        if order.charge is None:
            return None
        reservation = runtime.ledger.reserve(
            fingerprints, instruction, charge=order.charge, budget=runtime.site.budget
        )
    _state(runtime, reservation.statement)
    return reservation


def _instruction(order: Order) -> Instruction:
    return Instruction(
        message_id=order.message_id,
        run_id=order.run_id,
        server_round=order.server_round,
        job_digest=order.job.digest,
        kind=order.kind,
    )


def _state(runtime: SiteRuntime, stated: Statement) -> None:
    """What the site's metrics show of the ledger's word, and what the server may be told of it."""
    metrics, charge = runtime.metrics, runtime.order.charge
    runtime.statement = {"delta": stated.delta}
    if runtime.order.kind == MessageType.TRAIN and charge is not None:
        # Of all that a step gives away, noised metrics beside the gradient.
        metrics.noise_multiplier.set(charge.noise_multiplier)
        runtime.statement["noise_multiplier"] = charge.noise_multiplier
        runtime.statement["sampling_rate"] = charge.sampling_rate
    if stated.unprotected:
        # No epsilon bounds what rounds without privacy gave away: none may be claimed.
        metrics.epsilon_spent.set(math.inf)
        metrics.epsilon_left.set(0)
        return
    metrics.epsilon_spent.set(stated.spent)
    metrics.epsilon_left.set(stated.left)
    runtime.statement |= {"epsilon": stated.spent, "epsilon_left": stated.left}

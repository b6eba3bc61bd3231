"""The gate that charges what is asked for to the privacy budget, before it is done."""

from __future__ import annotations

import math

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from hanse_client.ledger_reader import Statement
from hanse_client.plan import PrivateSteps
from hanse_client.runtime import Resolve, SiteRuntime


def ledger(resolve: Resolve) -> Mod:
    """Charge a round of private training before it begins."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        training = message.metadata.message_type == MessageType.TRAIN
        if not training or not reserve(runtime):
            return call_next(message, context)
        try:
            return call_next(message, context)
        finally:
            # From here on a reply may leave, be it an error that training ended in: if this
            # message comes again, it is a new charge.
            runtime.ledger.release(runtime.order.message_id)

    return mod


def reserve(runtime: SiteRuntime) -> bool:
    """Charge the order under way to the ledger; False where it trains without privacy.

    Raises:
        BudgetError: if the budget does not cover it; nothing is charged.
        LedgerError: if the ledger cannot be written.
    """
    order, budget = runtime.order, runtime.site.budget
    with runtime.metrics.phases.during("accounting"):
        if order.plan.privacy is None or order.charge is None:
            runtime.ledger.note_unprotected(
                fingerprint=order.records.fingerprint,
                message_id=order.message_id,
                run_id=order.run_id,
                server_round=order.server_round,
                job_digest=order.job.digest,
            )
            runtime.metrics.epsilon_spent.set(math.inf)
            return False
        stated = runtime.ledger.reserve(
            fingerprint=order.records.fingerprint,
            message_id=order.message_id,
            run_id=order.run_id,
            server_round=order.server_round,
            job_digest=order.job.digest,
            charge=order.charge,
            budget=budget,
        )
    _state(runtime, stated, order.plan.privacy)
    return True


def _state(runtime: SiteRuntime, stated: Statement, mechanism: PrivateSteps) -> None:
    """What the site's metrics show of the ledger's word, and what the server may be told of it."""
    metrics = runtime.metrics
    metrics.noise_multiplier.set(mechanism.noise_multiplier)
    runtime.statement = {
        "delta": stated.delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "sampling_rate": mechanism.sampling_rate,
    }
    if stated.unprotected:
        # No epsilon bounds what rounds without privacy gave away: none may be claimed.
        metrics.epsilon_spent.set(math.inf)
        metrics.epsilon_left.set(0)
        return
    metrics.epsilon_spent.set(stated.spent)
    metrics.epsilon_left.set(stated.left)
    runtime.statement |= {"epsilon": stated.spent, "epsilon_left": stated.left}

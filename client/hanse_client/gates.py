"""The gates of a site, each a Flower mod, in the order in which a message passes them.

``account`` answers every refusal by name and tells the administrator; ``policy`` asks whether
this is allowed here; ``ledger`` whether the privacy budget covers it, and reserves it; then
comes the work; and ``egress`` lets out what the policy lists, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.errors import BudgetError, HanseError, LedgerError, PolicyError
from hanse.flower import ARRAYS, METRICS, WEIGHT, error_reply

from hanse_client.ledger_reader import Statement
from hanse_client.plan import PrivateSteps
from hanse_client.policy import may_leave
from hanse_client.runtime import SiteRuntime

log = logging.getLogger("hanse.client")

Resolve = Callable[[Context], SiteRuntime]
"""Which site a context speaks for: a real client has one, a simulation many."""

_KINDS = (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY)


def gates(resolve: Resolve) -> list[Mod]:
    """The mods of a site's ClientApp, outermost first."""
    return [account(resolve), policy(resolve), ledger(resolve), egress(resolve)]


def account(resolve: Resolve) -> Mod:
    """Answer refusals by name, and let the administrator know of all that ends without a result."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        try:
            kind = _kind(message)
            reply = call_next(message, context)
        except HanseError as refusal:
            _tell_refusal(runtime, message, refusal)
            return error_reply(refusal, message)
        except Exception as failure:  # told here, and raised on: its type will leave
            _tell_failure(runtime, message, type(failure).__name__)
            raise
        runtime.metrics.instructions.labels(kind, "result").inc()
        return reply

    return mod


def policy(resolve: Resolve) -> Mod:
    """Let pass what the policy allows; it is the order under way from here on."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type != MessageType.QUERY:
            runtime = resolve(context)
            order = runtime.accept(message)
            runtime.metrics.round.set(order.server_round)
        return call_next(message, context)

    return mod


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


def egress(resolve: Resolve) -> Mod:
    """Let out what the policy lists, and write down what that was."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        reply = call_next(message, context)
        kind = message.metadata.message_type
        if kind != MessageType.QUERY:
            reply.content = _let_out(runtime, reply.content, kind)
        _tell_release(runtime, message, reply.content)
        return reply

    return mod


def _kind(message: Message) -> str:
    """What a message asks for, by the name that the gates go by.

    Raises:
        PolicyError: if it has another name. Flower takes ``train.default`` for ``train``.
    """
    kind = message.metadata.message_type
    if kind not in _KINDS:
        raise PolicyError(f"message_type = {kind!r} is not one of {', '.join(_KINDS)}")
    return kind


def reserve(runtime: SiteRuntime) -> bool:
    """Charge the order under way to the ledger; False where it trains without privacy.

    Raises:
        BudgetError: if the budget does not cover it; nothing is charged.
        LedgerError: if the ledger cannot be written.
    """
    order, budget = runtime.order, runtime.site.budget
    with runtime.metrics.phases.during("accounting"):
        if order.plan.privacy is None or order.plan.charge is None:
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
            charge=order.plan.charge,
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


def _let_out(runtime: SiteRuntime, content: RecordDict, kind: str) -> RecordDict:
    """Of a result: the update of a training round, the weight, and the metrics that may leave."""
    metrics = {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if name == WEIGHT or may_leave(runtime.site.policy, name)
    }
    released = RecordDict({METRICS: MetricRecord(metrics)})
    if kind == MessageType.TRAIN:
        update = content.array_records[ARRAYS]
        released[ARRAYS] = ArrayRecord({name: update[name] for name in runtime.order.trainer.names})
    return released


def _tell_release(runtime: SiteRuntime, message: Message, content: RecordDict) -> None:
    arrays = content.array_records.get(ARRAYS, ArrayRecord())
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.data)
    runtime.audit.write(
        "released",
        id=message.metadata.message_id,
        type=message.metadata.message_type,
        run=message.metadata.run_id,
        round=message.metadata.group_id,
        arrays=len(arrays),
        bytes=sum(len(array.data) for array in arrays.values()),
        sha256=digest.hexdigest() if arrays else None,
        metrics={name: dict(record) for name, record in content.metric_records.items()},
    )


def _tell_refusal(runtime: SiteRuntime, message: Message, refusal: HanseError) -> None:
    kind = message.metadata.message_type.partition(".")[0]  # any more would be the server's text
    runtime.metrics.instructions.labels(kind, refusal.label).inc()
    if isinstance(refusal, PolicyError | BudgetError | LedgerError):
        runtime.metrics.refusals.labels(refusal.label).inc()
    log.warning("%s refused: %s. %s", kind, refusal.message, refusal.remedy)
    runtime.audit.write(
        "refused",
        id=message.metadata.message_id,
        type=message.metadata.message_type,
        run=message.metadata.run_id,
        label=refusal.label,
        reason=refusal.message,
    )


def _tell_failure(runtime: SiteRuntime, message: Message, kind_of_failure: str) -> None:
    kind = message.metadata.message_type.partition(".")[0]
    runtime.metrics.instructions.labels(kind, "failed").inc()
    runtime.audit.write(
        "failed",
        id=message.metadata.message_id,
        type=message.metadata.message_type,
        run=message.metadata.run_id,
        label=kind_of_failure,
    )

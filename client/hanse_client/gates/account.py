"""The outermost gate: refusals are answered by name, and told to the administrator."""

from __future__ import annotations

import logging

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.errors import (
    BudgetError,
    HanseError,
    JobError,
    LedgerError,
    PeerError,
    PolicyError,
    SecureAggregationError,
    TaskError,
    WireError,
)
from hanse.flower import error_reply
from hanse.plain import plain
from hanse.secagg.messages import STAGES

from hanse_client.asking import check_addressed
from hanse_client.runtime import Resolve, SiteRuntime

log = logging.getLogger("hanse.client")

_REFUSALS = (
    BudgetError,
    JobError,
    LedgerError,
    PeerError,
    PolicyError,
    SecureAggregationError,
    TaskError,
    WireError,
)
"""What the server has asked for in vain; the rest are failures of the site's own."""

LONGEST_REASON = 1000
"""Characters of a reason in the audit trail: some of them may be the server's."""

_KINDS = (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY, *STAGES)


def account(resolve: Resolve) -> Mod:
    """Answer refusals by name, and let the administrator know of all that ends without a result."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        try:
            kind = _kind(message)
            check_addressed(message, context.node_id)
            reply = call_next(message, context)
        except HanseError as refusal:
            return refuse(runtime, message, refusal)
        except Exception as failure:  # told here, and raised on: its type will leave
            _tell_failure(runtime, message, type(failure).__name__)
            raise
        runtime.metrics.instructions.labels(kind, "result").inc()
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


def refuse(runtime: SiteRuntime, message: Message, refusal: HanseError) -> Message:
    """The reply that names a refusal, once it is counted and in the audit trail."""
    kind = message.metadata.message_type.partition(".")[0]  # any more would be the server's text
    runtime.metrics.instructions.labels(kind, refusal.label).inc()
    if isinstance(refusal, _REFUSALS):
        runtime.metrics.refusals.labels(refusal.label).inc()
    log.warning("%s refused: %s. %s", kind, refusal.message, refusal.remedy)
    runtime.audit.write(
        "refused",
        id=message.metadata.message_id,
        type=message.metadata.message_type,
        run=message.metadata.run_id,
        label=refusal.label,
        reason=plain(refusal.message, LONGEST_REASON),
    )
    return error_reply(refusal, message)


def tell_breach(runtime: SiteRuntime, breach: HanseError) -> None:
    """Let the administrator know that the server broke the rules of the stream, which ended it."""
    runtime.metrics.refusals.labels(breach.label).inc()
    runtime.audit.write(
        "stream_ended", label=breach.label, reason=plain(breach.message, LONGEST_REASON)
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

"""The innermost gate: what the policy lists may leave, nothing else, and it is written down."""

from __future__ import annotations

import hashlib

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.flower import ARRAYS, METRICS, WEIGHT

from hanse_client.policy import may_leave
from hanse_client.runtime import Resolve, SiteRuntime


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

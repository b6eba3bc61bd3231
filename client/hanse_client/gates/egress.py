"""The innermost gate: what the policy lists may leave, nothing else, and it is written down."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.aggregation import PLAIN
from hanse.digests import arrays_digest
from hanse.encodings import encoding_of
from hanse.errors import PolicyError
from hanse.flower import (
    ARRAYS,
    METRICS,
    TERMS,
    WEIGHT,
    arrays_of,
    filled,
    metrics_of,
    size_of,
    to_metrics,
)

from hanse_client.gates.encoding import travelling
from hanse_client.gates.masking import check_masked, is_secure
from hanse_client.policy import may_leave
from hanse_client.release import Kind
from hanse_client.runtime import Resolve, SiteRuntime


@dataclass(frozen=True, kw_only=True)
class Released:
    """What leaves, and the names of its metrics by the way in which they came about."""

    content: RecordDict
    kinds: dict[Kind, list[str]]


def egress(resolve: Resolve) -> Mod:
    """Let out what the policy lists, and write down what that was."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        reply = call_next(message, context)
        kind = message.metadata.message_type
        # Whoever is asked a question answers in words: no array and no metric leaves.
        if kind in (MessageType.TRAIN, MessageType.EVALUATE):
            released = let_out(runtime, reply.content, kind)
        else:
            released = Released(content=RecordDict(dict(reply.content.config_records)), kinds={})
        if runtime.audit.is_written:
            _tell_release(runtime, message, released)
        reply.content = released.content
        return reply

    return mod


def let_out(runtime: SiteRuntime, content: RecordDict, message_type: str) -> Released:
    """Of a result: the update of a training round, the weight, and the metrics that may leave.

    A metric leaves as a single number, under a name that the policy lists for the way in which
    the number came about. The weight leaves as what the policy makes of the number of records,
    whatever the app says.
    """
    metrics, kinds = {WEIGHT: _weight(runtime, message_type)}, {}
    for kind in Kind:
        passing = _passing(runtime, content, kind)
        kinds[kind] = [name for name in passing if name not in metrics]
        metrics |= {name: passing[name] for name in kinds[kind]}
    terms = _terms(runtime, kinds)
    released: dict[str, ArrayRecord | ConfigRecord | MetricRecord]
    released = {METRICS: to_metrics(metrics), TERMS: filled(ConfigRecord, terms)}
    if message_type == MessageType.TRAIN:
        update = arrays_of(content)
        if is_secure(runtime):
            check_masked(update)
        released[ARRAYS] = travelling(runtime, update)
    return Released(content=filled(RecordDict, released), kinds=kinds)


def _passing(runtime: SiteRuntime, content: RecordDict, kind: Kind) -> dict[str, float]:
    """The metrics of a kind that may leave."""
    policy, protected = runtime.site.policy, runtime.order.protected
    return {
        name: value
        for name, value in metrics_of(content, kind).items()
        if isinstance(value, int | float) and may_leave(policy, name, kind, protected=protected)
    }


def _weight(runtime: SiteRuntime, message_type: str) -> float:
    records = runtime.order.records
    examples = records.train if message_type == MessageType.TRAIN else records.held_out
    if examples is None:
        raise PolicyError("this site keeps no records back to evaluate on")
    return runtime.weight(len(examples))


def _terms(
    runtime: SiteRuntime, kinds: dict[Kind, list[str]]
) -> dict[str, str | float | list[str]]:
    """On what terms the metrics leave, so that the server can state it; functions of the policy."""
    noised = runtime.order.noised if kinds[Kind.NOISED] else None
    return {
        "count": "public" if runtime.site.policy.count == "public" else "declared",
        "noised": kinds[Kind.NOISED],
        "exact": kinds[Kind.EXACT],
        "noise_multiplier": 0.0 if noised is None else noised.noise_multiplier,
    }


def _tell_release(runtime: SiteRuntime, message: Message, released: Released) -> None:
    content = released.content
    arrays = arrays_of(content)
    runtime.audit.write(
        "released",
        id=message.metadata.message_id,
        type=message.metadata.message_type,
        run=message.metadata.run_id,
        round=message.metadata.group_id,
        arrays=len(arrays),
        bytes=sum(map(size_of, arrays.values())),
        blake3=arrays_digest(arrays.values()).hex() if arrays else None,
        masked=bool(arrays) and is_secure(runtime),
        encoding=sorted({encoding_of(array) for array in arrays.values()} - {PLAIN}),
        metrics={name: dict(record) for name, record in content.metric_records.items()},
        kinds={kind.value: names for kind, names in released.kinds.items() if names},
    )

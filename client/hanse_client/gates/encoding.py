"""The gates that encode an update as the job asks, and keep what was left out of it.

Encoding lies inside egress, which lets out and writes down what really leaves. What is left out is
kept outside of the ledger's gate, once the charge that it came about under counts for good: else a
later round could send it, and the same charge be taken up for another training.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.aggregation import PLAIN
from hanse.encodings import encoding_of
from hanse.errors import PolicyError
from hanse.flower import ARRAYS, ENCODING_ERROR, filled, only_arrays, read_tensors

from hanse_client.encoding import encode_update
from hanse_client.leftovers import Leftovers, Owner
from hanse_client.plan import rounding_seed
from hanse_client.release import Kind
from hanse_client.runtime import Order, Resolve, SiteRuntime


def encoding(resolve: Resolve) -> Mod:
    """Encode the update of a round whose instruction asks for it."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        reply = call_next(message, context)
        if message.metadata.message_type == MessageType.TRAIN and not runtime.order.encoding.plain:
            _encode(runtime, reply)
        return reply

    return mod


def keeping(resolve: Resolve) -> Mod:
    """Keep what was left out of an update that is on its way."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        reply = call_next(message, context)
        if runtime.left_out is not None:
            runtime.leftovers.keep(runtime.left_out)
            runtime.left_out = None
        return reply

    return mod


def travelling(runtime: SiteRuntime, update: ArrayRecord) -> ArrayRecord:
    """The arrays of an update that are the model's, in its order, and encoded as was asked.

    Raises:
        PolicyError: if one is missing or encoded that is not to be.
    """
    order = runtime.order
    names, frozen = tuple(order.trainer.model.state), order.trainer.model.frozen
    if order.encoding.trainable_only:
        names = tuple(name for name in names if name not in frozen)
    for name in names:
        if name not in update or encoding_of(update[name]) not in (PLAIN, order.encoding.name):
            raise PolicyError(f"array {name!r} is missing or encoded unasked: it does not leave")
    return filled(ArrayRecord, {name: update[name] for name in names})


def _encode(runtime: SiteRuntime, reply: Message) -> None:
    order, metrics = runtime.order, runtime.metrics
    update = read_tensors(only_arrays(reply.content))
    owner = _owner(order)
    before = runtime.leftovers.at(owner, order.message_id, update)
    with metrics.phases.during("encoding"):
        encoded = encode_update(
            update,
            order.encoding,
            seed=rounding_seed(order.job, order.server_round, runtime.site.name),
            left_out=before,
            frozen=order.trainer.model.frozen,
        )
    if encoded.left_out:
        runtime.left_out = Leftovers(
            owner=owner, instruction=order.message_id, before=before, after=encoded.left_out
        )
    metrics.encoding_error.set(encoded.error)
    metrics.update_bytes.labels("encoded").inc(encoded.bytes)
    metrics.update_bytes.labels("plain").inc(encoded.plain_bytes)
    reply.content[ARRAYS] = encoded.arrays
    kind = Kind.PUBLIC if order.protected else Kind.EXACT
    reply.content.metric_records[kind][ENCODING_ERROR] = encoded.error


def _owner(order: Order) -> Owner:
    asked = order.encoding.model_dump_json()
    return Owner(run_id=order.run_id, job=order.job.digest, encoding=asked)

"""The gate around training itself: in a secure round the update is masked before any other sees it.

It lies inside egress, so that an update that was not masked does not pass: egress looks.
"""

from __future__ import annotations

import numpy as np
import torch
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
from hanse.errors import SecureAggregationError
from hanse.flower import ARRAYS, config_of, only_arrays, read_tensors, to_record
from hanse.secagg.messages import SITES, read_names

from hanse_client.release import UPDATE_NORM
from hanse_client.runtime import Resolve, SiteRuntime
from hanse_client.secagg.masking import session_of
from hanse_client.secagg.session import Session


def masking(resolve: Resolve) -> Mod:
    """Mask the update of a secure round, and keep back what is a function of it alone."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        runtime = resolve(context)
        reply = call_next(message, context)
        if message.metadata.message_type == MessageType.TRAIN and is_secure(runtime):
            reply.content = _masked(_session(runtime, message), reply.content)
        return reply

    return mod


def begin_training(runtime: SiteRuntime, message: Message) -> None:
    """Let a secure round's training pass only in its session, once, before anything is charged.

    Raises:
        SecureAggregationError: if there is no such session here, or its list is not in order.
        PolicyError: if the list is shorter than this site's policy asks for.
    """
    if is_secure(runtime):
        sharers = read_names(_config(message), SITES)
        _session(runtime, message).begin_training(sharers)


def is_secure(runtime: SiteRuntime) -> bool:
    """Whether the order under way is of a job that asks for secure aggregation."""
    return runtime.order.job.secure_aggregation.enabled


def check_masked(arrays: ArrayRecord) -> None:
    """Refuse to let an update out that was not masked.

    Raises:
        SecureAggregationError: if an array is not of masked integers.
    """
    for name, array in arrays.items():
        if array.dtype != str(np.dtype(np.uint32)):
            raise SecureAggregationError(
                f"array {name} of a secure round is {array.dtype}, not masked: it does not leave"
            )


def _masked(session: Session, content: RecordDict) -> RecordDict:
    arrays = session.mask(read_tensors(only_arrays(content)))
    masked = RecordDict({ARRAYS: to_record({n: torch.from_numpy(a) for n, a in arrays.items()})})
    for key, record in content.metric_records.items():
        kept = {name: value for name, value in record.items() if name != UPDATE_NORM}
        masked[key] = MetricRecord(kept)
    return masked


def _session(runtime: SiteRuntime, message: Message) -> Session:
    order = runtime.order
    asked = session_of(order.job, order.server_round, order.run_id, _config(message))
    return runtime.masking.current(asked)


def _config(message: Message) -> ConfigRecord:
    return config_of(message.content)

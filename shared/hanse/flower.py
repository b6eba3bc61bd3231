"""The few touches of Flower's internals, and the keys that Hanse's apps use inside its messages.

Everything else in Hanse uses Flower's public API (`flwr.app`, `flwr.serverapp`,
`flwr.clientapp`). ``tests/contract/test_flower.py`` holds each touch against the installed
Flower.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app import Error as FlowerError

# What Flower's strategies raise when they cannot aggregate.
from flwr.app.exception import AppExitException as AppExitException

# A `Message` reads its sender from here and cannot be made without it; Flower sets it in the
# process of a ServerApp, and has no public way for another Grid to do the same.
from flwr.supercore.task_identity import TaskIdentity

from hanse.arrays import filled as filled
from hanse.arrays import only_arrays as only_arrays
from hanse.arrays import read_tensor as read_tensor
from hanse.arrays import read_tensors as read_tensors
from hanse.arrays import size_of as size_of
from hanse.arrays import to_array as to_array
from hanse.arrays import to_record as to_record
from hanse.arrays import to_tensor as to_tensor
from hanse.arrays import to_tensors as to_tensors
from hanse.errors import HanseError, error_types
from hanse.plain import plain

ARRAYS = "arrays"
"""Key of the ArrayRecord: the global model in an instruction, the update in a reply."""

CONFIG = "config"
"""Key of the ConfigRecord of an instruction."""

METRICS = "metrics"
"""Key of the MetricRecord of a reply."""

JOB = "hanse.job"
"""Config key of an instruction of Hanse's server app: the job as JSON."""

ROUND = "server-round"
"""Config key of the round; the name is Flower's."""

ENCODING_ERROR = "encoding_error"
"""Metric key of what an encoding changed: the L2 norm of the difference over that of what was
encoded, a site's update and what it had left out before."""

WEIGHT = "num-examples"
"""Metric key of a reply's aggregation weight; the name is Flower's."""

TERMS = "terms"
"""Key of the ConfigRecord of a reply that tells how its metrics were let out."""

PROXIMAL_MU = "proximal-mu"
"""Config key of FedProx's mu; the name is Flower's."""

SERVER_NODE_ID = 1
"""The node id under which a ServerApp sends; the number is Flower's."""

LONGEST_REASON = 2000
"""Characters of a reason that leaves: some of them may be the server's own, come back."""

APP_RAISED = 2
"""Code of a reply whose app raised an exception that Hanse does not know; Flower's number."""

APP_CRASHED = 8
"""Code of a reply whose app's process died; Flower's number."""

LOST_ON_THE_WAY = frozenset({3, 4, 5})
"""Codes with which a SuperLink says that a message or its reply never arrived; Flower's numbers."""

log = logging.getLogger("hanse")


def become_server_app(run_id: int) -> None:
    """Make messages created in this process carry ``run_id`` and the server's node id."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = 0


@dataclass(frozen=True)
class Sender:
    """Who this process is to a SuperLink; Flower's constructor of messages asks the process."""

    task_id: int
    run_id: int
    node_id: int

    @staticmethod
    def here() -> Sender:
        """As Flower has started this process."""
        return Sender(TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id)

    def message(
        self, content: RecordDict, node: int, *, message_type: str, group_id: str, ttl: float
    ) -> Message:
        """A new message, as Flower makes one in a process of this sender."""
        metadata = Metadata(
            run_id=self.run_id,
            message_id="",
            src_node_id=self.node_id,
            dst_node_id=node,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl,
            message_type=message_type,
            src_task_id=self.task_id,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The metadata of a message that travels.

    Attributes:
        message_id: 32 hex digits; a reply's own id.
        reply_to: the id of the instruction that this answers, empty for an instruction.
        group_id: Flower's group, in most strategies the round.
        message_type: Flower's type, such as ``train`` or ``query.summary``.
        created_at: Unix time in seconds.
        ttl: seconds.
    """

    message_id: str
    run_id: int
    src_node_id: int
    dst_node_id: int
    message_type: str
    group_id: str = ""
    reply_to: str = ""
    created_at: float = 0.0
    ttl: float = 0.0

    @staticmethod
    def of(message: Message, message_id: str) -> Envelope:
        """The envelope of a message that an app made, under the id that the link gives it."""
        data = message.metadata
        return Envelope(
            message_id=message_id,
            run_id=data.run_id,
            src_node_id=data.src_node_id,
            dst_node_id=data.dst_node_id,
            message_type=data.message_type,
            group_id=data.group_id,
            reply_to=data.reply_to_message_id,
            created_at=data.created_at,
            ttl=data.ttl,
        )


def open_envelope(envelope: Envelope, content: RecordDict | FlowerError) -> Message:
    """The Flower message that an envelope and its content make.

    Flower's public constructors make only new messages and replies; one that arrived needs the
    ``metadata`` argument, which Flower keeps for its own links.
    """
    metadata = Metadata(
        run_id=envelope.run_id,
        message_id=envelope.message_id,
        src_node_id=envelope.src_node_id,
        dst_node_id=envelope.dst_node_id,
        reply_to_message_id=envelope.reply_to,
        group_id=envelope.group_id,
        created_at=envelope.created_at,
        ttl=envelope.ttl,
        message_type=envelope.message_type,
    )
    if isinstance(content, RecordDict):
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]
    return Message(error=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]


def identified(message: Message, message_id: str) -> Message:
    """A message that an app made, under the id that a grid gives it; its content is shared."""
    made = copy(message)
    # Flower's own grids set the id of a message there, too: Metadata has no way to set it.
    made.__dict__["_metadata"] = metadata = copy(message.metadata)
    metadata.__dict__["_message_id"] = message_id
    return made


def error_reply(error: HanseError, instruction: Message) -> Message:
    """The reply that tells the server, by label and code, why there is no result."""
    reason = plain(error.reason(), LONGEST_REASON)
    return Message(FlowerError(error.exit_code, reason), reply_to=instruction)


def answer(call: Callable[[Message], Message], instruction: Message) -> Message:
    """The reply of an app to an instruction, whatever happens inside the app.

    An unexpected exception is answered by its type alone: its text may hold private values, and
    stays, with the traceback, in the site's log.
    """
    try:
        return call(instruction)
    except HanseError as refusal:
        log.warning("%s. %s", refusal.message, refusal.remedy)
        return error_reply(refusal, instruction)
    except Exception as failure:  # the outermost loop of a site: no message may end it
        log.exception("the app failed on %s", instruction.metadata.message_type)
        return Message(FlowerError(APP_RAISED, type(failure).__name__), reply_to=instruction)


def error_label(error: FlowerError) -> str:
    """The label of a reply's error: one of Hanse's, or ``client_app`` for a foreign app's."""
    return _LABELS.get(error.code, "client_app")


_LABELS = {kind.exit_code: kind.label for kind in error_types() if kind.exit_code >= 10}


def to_metrics(values: Mapping[str, float]) -> MetricRecord:
    """Named numbers as Flower's MetricRecord, in their order."""
    return filled(MetricRecord, dict(values))


def config_of(content: RecordDict, name: str = CONFIG) -> ConfigRecord:
    """The ConfigRecord of a message under ``name``; an empty one if there is none."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def arrays_of(content: RecordDict, name: str = ARRAYS) -> ArrayRecord:
    """The ArrayRecord of a message under ``name``; an empty one if there is none."""
    record = content.get(name)
    return record if isinstance(record, ArrayRecord) else ArrayRecord()


def metrics_of(content: RecordDict, name: str = METRICS) -> MetricRecord:
    """The MetricRecord of a message under ``name``; an empty one if there is none."""
    record = content.get(name)
    return record if isinstance(record, MetricRecord) else MetricRecord()


def quiet_flower(level: int = logging.WARNING) -> None:
    """Keep Flower's own logger from writing progress lines between those of Hanse."""
    logging.getLogger("flwr").setLevel(level)

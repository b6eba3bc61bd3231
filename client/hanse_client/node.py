"""A site behind a SuperNode of Flower's, which starts a process for each message.

So all is opened for one message, with the ledger held against every other process meanwhile, and
closed after it. The reply is kept in the outbox before it leaves; whoever asks again under the
same id gets it from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import hanse
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app import Error as FlowerError
from hanse.arrays import as_flowers
from hanse.errors import (
    OutboxError,
    PolicyError,
    SecureAggregationError,
    SiteFileError,
    WireError,
)
from hanse.flower import CONFIG, SERVER_NODE_ID, Envelope, answer, error_reply, open_envelope
from hanse.identity import node_id_of
from hanse.logs import to_stderr
from hanse.metrics import TextFile
from hanse.records import read_records
from hanse.secagg.messages import STAGES
from hanse.superlink import (
    HELD,
    HELLO,
    MOST_SETTLED,
    SITE,
    VERSION,
    Slip,
    read_slip,
    without_slip,
)
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import MEGABYTE, Limits
from prometheus_client import CollectorRegistry

from hanse_client import device
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.books import (
    audit_path,
    ledger_path,
    leftovers_path,
    metrics_path,
    outbox_path,
)
from hanse_client.gates import refuse
from hanse_client.ledger import Ledger
from hanse_client.leftovers import LeftoverStore
from hanse_client.link.desk import MOST_HELD
from hanse_client.link.worker import pack_reply
from hanse_client.metrics import OF_THE_STREAM, ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.runtime import SiteRuntime
from hanse_client.site import Site, load_site

log = logging.getLogger("hanse.client")

PATIENCE_SECONDS = 60.0
"""How long a message waits for the process of the one before it to end."""


def answer_message(message: Message, context: Context) -> Message:
    """The reply of the site that the SuperNode's configuration names; a refusal by name, too."""
    to_stderr()

    def reply(asked: Message) -> Message:
        site = load_site(_site_file(context.node_config))
        slip = read_slip(asked.content)
        if asked.metadata.message_type == HELLO:
            return Message(_greeting(site, slip), reply_to=asked)
        return _reply_of(asked, _carry_out(site, slip, asked))

    return answer(reply, message)


def _site_file(config: Mapping[str, object]) -> Path:
    file = config.get("site")
    if not isinstance(file, str):
        raise SiteFileError(
            "the SuperNode was not told which site this is",
            remedy="""Start it with --node-config 'site="/etc/hanse/site.toml"'.""",
        )
    return Path(file)


def _greeting(site: Site, slip: Slip) -> RecordDict:
    """The site's name, and what it holds; what the server has made durable it holds no longer."""
    held: list[str] = []
    if outbox_path(site).exists():
        with closing(Outbox(outbox_path(site))) as outbox:
            outbox.forget(slip.settled)
            held = outbox.instructions()[:MOST_SETTLED]
    told = ConfigRecord({SITE: site.name, VERSION: hanse.__version__, HELD: held})
    return RecordDict({CONFIG: told})


def _carry_out(site: Site, slip: Slip, message: Message) -> Message:
    """The reply to an instruction: the one in the outbox, or what comes of carrying it out."""
    with (
        Ledger(ledger_path(site), patience=PATIENCE_SECONDS) as ledger,
        closing(Outbox(outbox_path(site))) as outbox,
    ):
        outbox.forget(slip.settled)
        kept = _kept(outbox, slip.instruction, site)
        if kept is not None:
            return kept
        metrics, told = ClientMetrics(CollectorRegistry()), TextFile(metrics_path(site))
        told.restore(metrics.gauges())
        runtime = SiteRuntime(
            site,
            read=lambda task: read_records(task, site.data),
            ledger=ledger,
            audit=AuditTrail(audit_path(site)),
            metrics=metrics,
            leftovers=LeftoverStore(leftovers_path(site)),
        )
        metrics.info.info({"site": site.name, "device": device.describe(runtime.device)})
        asked = _as_hanse_asks(message, slip, site)
        reply = _done(runtime, outbox, asked)
        metrics.outbox.set(len(outbox.instructions()))
        told.write(metrics.registry, without=OF_THE_STREAM)
        return reply


def _done(runtime: SiteRuntime, outbox: Outbox, asked: Message) -> Message:
    """Carry an instruction out, unless it must not be, and keep the reply before it leaves."""
    app = make_client_app(lambda context: runtime)
    metadata, site = asked.metadata, runtime.site

    def execute(message: Message) -> Message:
        if outbox.was_settled(metadata.message_id):
            raise PolicyError(
                f"instruction {metadata.message_id} was answered and settled: it is not done twice"
            )
        if len(outbox.instructions()) >= MOST_HELD:
            raise WireError(f"{MOST_HELD} replies are not settled: no more is taken on")
        if metadata.message_type in STAGES:
            raise SecureAggregationError(
                "a SuperNode keeps no secrets from one message to the next",
                remedy="Run jobs with secure aggregation over Hanse's own link.",
            )
        return app(message, _context(metadata.run_id, site))

    def guarded(message: Message) -> Message:
        try:
            return execute(message)
        except (PolicyError, WireError, SecureAggregationError) as refusal:
            return refuse(runtime, message, refusal)

    header, encoded = pack_reply(asked, guarded)
    try:
        outbox.put(metadata.message_id, header.SerializeToString(), encoded.body)
    except OutboxError as error:
        log.exception("a reply could not be kept, so it is not sent")
        return error_reply(error, asked)
    kept = _kept(outbox, metadata.message_id, site)
    if kept is None:
        raise OutboxError("the reply that was kept is not there")
    return kept


def _kept(outbox: Outbox, instruction: str, site: Site) -> Message | None:
    """The reply in the outbox; None if there is none."""
    header = outbox.header(instruction)
    if header is None:
        return None
    limits = Limits(max_body_bytes=round(2 * site.policy.max_model_mb * MEGABYTE))
    assembler = Assembler(pb.Header.FromString(header), limits)
    while not assembler.complete:
        data = outbox.piece(instruction, assembler.received)
        if not data:
            raise OutboxError(f"the reply to {instruction} in the outbox is cut off")
        assembler.add(assembler.received, data)
    message = assembler.message()
    if message.has_content():
        message.content = as_flowers(message.content)
    return message


def _as_hanse_asks(message: Message, slip: Slip, site: Site) -> Message:
    """The instruction as it comes over Hanse's own link: under ids that Flower does not change."""
    envelope = replace(
        Envelope.of(message, slip.instruction),
        run_id=slip.run_id,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id_of(site.name),
        reply_to="",
    )
    return open_envelope(envelope, without_slip(message.content))


def _reply_of(asked: Message, reply: Message) -> Message:
    """What the site answers, as Flower's reply to Flower's message."""
    if reply.has_error():
        return Message(FlowerError(reply.error.code, reply.error.reason), reply_to=asked)
    return Message(reply.content, reply_to=asked)


def _context(run_id: int, site: Site) -> Context:
    return Context(
        run_id=run_id,
        node_id=node_id_of(site.name),
        node_config={"site": site.name},
        state=RecordDict(),
        run_config={},
    )

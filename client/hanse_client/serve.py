"""What `hanse client run` does: a client's life, from its start to its ordered end."""

from __future__ import annotations

import logging
import signal
from contextlib import closing
from functools import lru_cache, partial
from types import FrameType

from flwr.app import Context, Message, RecordDict
from hanse.identity import node_id_of
from hanse.logs import to_stderr
from hanse.metrics import endpoint, new_registry
from hanse.records import read_records
from hanse.renewal import IdentityFiles
from hanse.wire.limits import MEGABYTE, Limits

from hanse_client import device
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.books import audit_path, ledger_path, leftovers_path, outbox_path
from hanse_client.gates import refuse, tell_breach
from hanse_client.ledger import Ledger
from hanse_client.leftovers import LeftoverStore
from hanse_client.link import Coordinator, LinkClient
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.runtime import SiteRuntime
from hanse_client.site import Site, check_linked

log = logging.getLogger("hanse.client")

MOST_RUNS = 16
"""Runs whose contexts are kept: a server can name as many as it likes."""


def serve(site: Site) -> None:
    """Serve the coordinator of ``site`` until stopped, or refused for good.

    Raises:
        HanseError: as the README's table of exit codes tells.
    """
    to_stderr()
    coordinator = coordinator_of(site)
    metrics = ClientMetrics(new_registry())
    with (
        Ledger(ledger_path(site)) as ledger,
        closing(Outbox(outbox_path(site))) as outbox,
        endpoint(metrics.registry, site.metrics_host, site.metrics_port),
    ):
        runtime = SiteRuntime(
            site,
            read=lambda task: read_records(task, site.data),
            ledger=ledger,
            audit=AuditTrail(audit_path(site)),
            metrics=metrics,
            leftovers=LeftoverStore(leftovers_path(site)),
        )
        metrics.info.info({"site": site.name, "device": device.describe(runtime.device)})
        app = make_client_app(lambda context: runtime)

        @lru_cache(maxsize=MOST_RUNS)
        def context_of(run_id: int) -> Context:
            return _context(run_id, site)

        def execute(message: Message) -> Message:
            return app(message, context_of(message.metadata.run_id))

        link = LinkClient(
            coordinator=coordinator,
            execute=execute,
            outbox=outbox,
            metrics=metrics,
            refuse=partial(refuse, runtime),
            on_breach=partial(tell_breach, runtime),
        )

        def stop(number: int, frame: FrameType | None) -> None:
            link.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        link.run()
    log.info("stopped")


def coordinator_of(site: Site) -> Coordinator:
    """The coordinator that a site's file names, with the identity to meet it under.

    Raises:
        CertificateError: if certificate, key and authority do not fit together.
        SiteFileError: if it names none.
    """
    check_linked(site)
    return Coordinator(
        address=site.coordinator,
        identity=IdentityFiles(site.tls.ca, site.tls.certificate, site.tls.key),
        limits=Limits(max_body_bytes=round(site.policy.max_model_mb * MEGABYTE)),
    )


def _context(run_id: int, site: Site) -> Context:
    return Context(
        run_id=run_id,
        node_id=node_id_of(site.name),
        node_config={"site": site.name},
        state=RecordDict(),
        run_config={},
    )

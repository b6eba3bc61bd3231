"""Many sites in one process: real clients, each with its stream, its outbox and its worker.

They leave out the gates and the training, and send back what they get, or refuse it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from flwr.app import Message
from hanse.errors import PolicyError
from hanse.logs import to_stderr
from hanse.renewal import IdentityFiles
from hanse_client.link import Coordinator, LinkClient
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from prometheus_client import CollectorRegistry

from tests.benchmarks.federations.hanse_sites import sent_back
from tests.benchmarks.federations.provisioned import Provisioned


def client(federation: Provisioned, name: str, *, refuses: bool) -> LinkClient:
    """One site."""
    return LinkClient(
        coordinator=Coordinator(
            address=federation.address, identity=IdentityFiles(*federation.site_files(name))
        ),
        execute=_refused if refuses else sent_back,
        outbox=Outbox(federation.folder / name / "outbox.sqlite"),
        metrics=ClientMetrics(CollectorRegistry()),
    )


def _refused(message: Message) -> Message:
    raise PolicyError("this site only listens")


async def live(federation: Provisioned, names: list[str], *, refuses: bool) -> None:
    """All of them, until they are killed."""
    clients = [client(federation, name, refuses=refuses) for name in names]
    await asyncio.gather(*(each.serve() for each in clients))


def main() -> None:
    """The federation's folder and port, what the sites do, and their names."""
    folder, port, sites_do, *names = sys.argv[1:]
    to_stderr(40)
    federation = Provisioned(Path(folder), int(port))
    asyncio.run(live(federation, names, refuses=sites_do == "refuse"))


if __name__ == "__main__":
    main()

"""``site.toml``: what a site's administrator decides, as frozen models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from hanse.config import Settings, load_toml
from hanse.errors import SiteFileError
from hanse.identity import SITE_NAME
from hanse.records import Data
from pydantic import Field, PositiveFloat, PositiveInt

SiteName = Annotated[str, Field(pattern=SITE_NAME)]


class Tls(Settings):
    """``[tls]``: PEM files, paths taken from the folder of ``site.toml``."""

    ca: Path
    certificate: Path
    key: Path


class Budget(Settings):
    """``[budget]``: the most privacy that one record of this site may ever lose.

    ``epsilon`` and ``delta`` bound everything released from a data set: over all rounds, runs
    and jobs, add-or-remove adjacency of one record.
    """

    epsilon: PositiveFloat
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5


class AllowedTask(Settings):
    """A task that this site runs; with ``digest``, only in that very version."""

    name: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Policy(Settings):
    """``[policy]``: what this site does when asked, and what it lets out.

    ``release`` lists the metrics that may leave, as they are and outside epsilon (``accuracy``,
    ``loss``, ``train_loss``, ``epsilon``, ...). ``count`` is the aggregation weight:
    ``"public"`` sends the true number of records, a number is sent in its place.
    """

    tasks: tuple[AllowedTask, ...] = (AllowedTask(name="tabular"), AllowedTask(name="image"))
    max_steps: PositiveInt = Field(default=1000, description="local steps in one round, at most")
    max_rounds: PositiveInt = Field(default=10_000, description="rounds of one run, at most")
    min_noise_multiplier: PositiveFloat = 0.5
    max_clipping_norm: PositiveFloat = 100.0
    max_model_mb: PositiveFloat = 4096.0
    allow_training_without_privacy: bool = False
    release: tuple[str, ...] = ()
    count: Literal["public"] | PositiveFloat = 1.0


class Site(Settings):
    """A whole ``site.toml``.

    Attributes:
        coordinator: host:port of the server.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:1``.
        state: folder of the ledger, the outbox and the audit trail.
        metrics_port: port of the Prometheus endpoint; 0 for none.
        metrics_host: address it listens on.
    """

    name: SiteName
    coordinator: Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    state: Path = Path("state")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    metrics_host: str = "127.0.0.1"
    tls: Tls
    data: Data
    budget: Budget
    policy: Policy = Policy()


def load_site(path: Path) -> Site:
    """Read a site's file; paths inside it are taken from its folder.

    Raises:
        SiteFileError: if the file is missing, malformed or invalid.
    """
    site = load_toml(path, Site, SiteFileError)
    folder = path.resolve().parent
    tls = site.tls
    return site.model_copy(
        update={
            "state": folder / site.state,
            "tls": Tls(
                ca=folder / tls.ca, certificate=folder / tls.certificate, key=folder / tls.key
            ),
            "data": site.data.below(folder),
        }
    )

"""``site.toml``: what a site's administrator decides, as frozen models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from hanse.config import Settings, load_toml
from hanse.errors import SiteFileError
from hanse.identity import METRIC_NAME, SITE_NAME
from hanse.records import Data
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hanse_client.privacy.settings import EngineSettings

MetricName = Annotated[str, Field(pattern=rf"^(\*|{METRIC_NAME})$")]
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


class Noise(Settings):
    """``[policy.noise]``: how much noise metrics of private records leave with.

    Attributes:
        evaluation: noise multiplier of one evaluation: the standard deviation of the noise over
            the L2 norm of what one record adds at most.
        training: of the training metrics, in noise multipliers of the steps that they are of.
        loss_bound: the loss of a record counts up to this, and no more.
    """

    evaluation: PositiveFloat = 50.0
    training: PositiveFloat = 10.0
    loss_bound: PositiveFloat = 5.0


class SecureAggregationPolicy(Settings):
    """``[policy.secure_aggregation]``: when this site lets its update go into a sum.

    Attributes:
        required: take part in no job that shows the server single updates.
        min_sites: the fewest sites whose sum the server may learn.
        peers: SHA-256 of the public key (`hanse client identity`) of every site that may take
            part, by name; empty for whomever the federation's authority vouches for.
    """

    required: bool = False
    min_sites: Annotated[int, Field(ge=2)] = 3
    peers: dict[SiteName, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict
    )


class Policy(Settings):
    """``[policy]``: what this site does when asked, and what it lets out.

    ``release`` lists the metrics that may leave (``accuracy``, ``loss``, ``train_loss``,
    ``epsilon``, ...): those of private records with noise, under the budget.
    ``release_exact`` lists those that leave as they are, outside epsilon. ``"*"`` in a list
    stands for all metrics that the other list does not name. ``count`` is the aggregation
    weight: ``"public"`` sends the true number of records, a number is sent in its place.
    """

    tasks: tuple[AllowedTask, ...] = (AllowedTask(name="tabular"), AllowedTask(name="image"))
    max_steps: PositiveInt = Field(default=1000, description="local steps in one round, at most")
    max_rounds: PositiveInt = Field(default=10_000, description="rounds of one run, at most")
    min_noise_multiplier: PositiveFloat = 0.5
    max_clipping_norm: PositiveFloat = 100.0
    max_model_mb: PositiveFloat = 4096.0
    allow_training_without_privacy: bool = False
    release: tuple[MetricName, ...] = ()
    release_exact: tuple[MetricName, ...] = ()
    noise: Noise = Noise()
    count: Literal["public"] | PositiveFloat = 1.0
    secure_aggregation: SecureAggregationPolicy = SecureAggregationPolicy()

    @model_validator(mode="after")
    def _one_way_out(self) -> Policy:
        both = sorted({*self.release} & {*self.release_exact})
        if both:
            raise ValueError(
                f"release and release_exact both list {', '.join(both)}: name each metric in "
                "release, to let it out with noise, or in release_exact, to let it out as it is"
            )
        return self


class Site(Settings):
    """A whole ``site.toml``.

    Attributes:
        coordinator: host:port of the server; empty, with no ``[tls]``, where the site is reached
            through a SuperNode of Flower's.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:1``.
        state: folder of the ledger, the outbox and the audit trail.
        metrics_port: port of the Prometheus endpoint; 0 for none.
        metrics_host: address it listens on.
        engine: how private steps are made; nothing in it touches the guarantee.
    """

    name: SiteName
    coordinator: Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")] = ""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    state: Path = Path("state")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    metrics_host: str = "127.0.0.1"
    tls: Tls = Tls(ca=Path(), certificate=Path(), key=Path())
    data: Data
    budget: Budget
    policy: Policy = Policy()
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _both_or_neither(self) -> Site:
        given = {"coordinator", "tls"} & self.model_fields_set
        if len(given) == 1:
            raise ValueError(
                "coordinator and [tls] go together: name both, or neither for a site behind a "
                "SuperNode of Flower's"
            )
        return self


def check_linked(site: Site) -> None:
    """Refuse to go on where a site's file names no coordinator.

    Raises:
        SiteFileError: if so.
    """
    if not site.coordinator:
        raise SiteFileError(
            f"site {site.name} names no coordinator, and has no [tls]",
            remedy="Name both in site.toml; a site behind a SuperNode of Flower's needs neither.",
        )


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

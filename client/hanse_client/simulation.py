"""Many sites behind one ClientApp, for simulations: the same app, gates and ledger as at a site."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from hanse.errors import DataError
from hanse.metrics import UNSEEN
from hanse.records import Data, Records, concatenate, fingerprint, held_back, read_records
from hanse.simulation import LEDGER, CohortApp, SimulatedSites, read_parts
from hanse.task import AnyTask, Examples
from torch import Tensor

from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.leftovers import LeftoverStore
from hanse_client.runtime import ReadRecords, SiteRuntime
from hanse_client.secagg import masking_of, simulated
from hanse_client.site import (
    AllowedTask,
    Budget,
    Policy,
    SecureAggregationPolicy,
    Site,
    Tls,
    load_site,
)
from hanse_client.stacked.cohort import Cohort
from hanse_client.stacked.trainer import StackedTrainer
from hanse_client.trainers import Trainers

UNBOUNDED = 1e9
"""Epsilon that no job comes near."""

ROWS = "rows"
"""Config key of the rows of a carried ledger."""

LEFT = "left"
"""Config key of what the site has left out of its updates, as bytes."""


def make_app(described: str) -> ClientApp:
    """The ClientApp of the sites that ``described`` (a SimulatedSites as JSON) names.

    A site's ledger lives in memory: a simulation spends nothing of a real budget. Where the
    engine asks for it, the ledger is carried in the context's state (:data:`LEDGER`). What is not
    a site's own, all sites share: the model that they train, first of all.
    """
    return Federation(SimulatedSites.model_validate_json(described), Trainers(8)).app()


def make_cohort(described: str) -> CohortApp:
    """Likewise, for an engine that hands over the messages to many sites at once."""
    cohort = Cohort()
    trainers = Trainers(8, make=partial(StackedTrainer, cohort=cohort))
    sites = SimulatedSites.model_validate_json(described)
    cohort.answers_by(Federation(sites, trainers).app())
    return cohort.answer


class Federation:
    """Simulated sites, each opened when it is first asked, and kept.

    Args:
        trainers: where the models of all of them are.
    """

    def __init__(self, sites: SimulatedSites, trainers: Trainers) -> None:
        self._open_site = _from_files(sites) if sites.files else _from_parts(sites)
        self._trainers = trainers
        self._runtimes: dict[str, SiteRuntime] = {}
        self._audit = AuditTrail(None)

    def app(self) -> ClientApp:
        """The ClientApp of all of them."""
        return make_client_app(self._resolve, outermost=[self._carry])

    def _resolve(self, context: Context) -> SiteRuntime:
        name = str(context.node_config["site"])
        runtime = self._runtimes.get(name)
        if runtime is None:
            runtime = self._runtimes[name] = self._begin(name)
        return runtime

    def _begin(self, name: str, rows: Sequence[str] = ()) -> SiteRuntime:
        site, read = self._open_site(name)
        return SiteRuntime(
            site,
            read=read,
            ledger=Ledger(None, begun=rows),
            audit=self._audit,
            metrics=UNSEEN,
            masking=masking_of(site, simulated(name)),
            trainers=self._trainers,
        )

    def _carry(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Begin with the ledger that the context brings, and leave it there as it becomes.

        What was left out of updates goes with it.
        """
        if LEDGER not in context.state:
            return call_next(message, context)
        name = str(context.node_config["site"])
        carried = context.state.config_records[LEDGER]
        rows = cast(list[str], carried.get(ROWS, []))
        runtime = self._runtimes.get(name)
        if runtime is None or runtime.ledger.contents() != rows:
            runtime = self._runtimes[name] = self._begin(name, rows)
        runtime.leftovers = LeftoverStore(None, begun=cast(bytes, carried.get(LEFT, b"")))
        try:
            return call_next(message, context)
        finally:
            left = runtime.leftovers.carried()
            context.state[LEDGER] = ConfigRecord({ROWS: runtime.ledger.contents(), LEFT: left})


OpenSite = Callable[[str], tuple[Site, ReadRecords]]


def _from_files(sites: SimulatedSites) -> OpenSite:
    loaded = [load_site(path) for path in sites.files]

    def data_of(site: Site) -> Data:
        if sites.holdout_seed is None:
            return site.data
        return site.data.model_copy(update={"holdout_seed": sites.holdout_seed})

    def open_site(name: str) -> tuple[Site, ReadRecords]:
        if sites.pooled:
            return _waive(loaded[0]), lambda task: _pool(task, [data_of(site) for site in loaded])
        site = next(site for site in loaded if site.name == name)
        data = data_of(site)
        return _waive(site) if sites.waived else site, lambda task: read_records(task, data)

    return open_site


def _from_parts(sites: SimulatedSites) -> OpenSite:
    if sites.data is None or sites.parts is None:
        raise DataError("simulated sites need a pooled data set, or a file each")
    source, whole = sites.data, fingerprint(sites.data)
    parts, permissive = read_parts(sites.parts, sites.names), _permissive(sites)
    pools: dict[str, Pool] = {}
    of_task = WeakKeyDictionary[AnyTask, Pool]()  # to write down options takes as long as a step

    def pool_of(task: AnyTask) -> Pool:
        if task not in of_task:
            key = f"{type(task).__qualname__}:{task.options!r}"
            if key not in pools:
                pools[key] = Pool(task.read(source), parts, sites.holdout)
            of_task[task] = pools[key]
        return of_task[task]

    def open_site(name: str) -> tuple[Site, ReadRecords]:
        def read(task: AnyTask) -> Records:
            train, held_out = pool_of(task).of(name)
            known_as = hashlib.sha256(f"{whole}:{name}".encode()).hexdigest()
            return Records(train, held_out, known_as)

        return permissive.model_copy(update={"name": name}), read

    return open_site


class Pool:
    """A data set in the order of the sites, so that the records of each are a view of it.

    Args:
        parts: record numbers of each site.
        holdout: fraction of each part that is kept back.
    """

    def __init__(self, whole: Examples, parts: Mapping[str, Tensor], holdout: float) -> None:
        chosen = held_back(whole, holdout, seed=0)
        order: list[Tensor] = []
        self._ends: dict[str, tuple[int, int, int]] = {}
        start = 0
        for name, part in parts.items():
            mask = chosen[part]
            order += [part[~mask], part[mask]]
            middle, end = start + len(order[-2]), start + len(part)
            self._ends[name] = start, middle, end
            start = end
        self._ordered = whole.take(torch.cat(order))

    def of(self, name: str) -> tuple[Examples, Examples | None]:
        """What a site trains on, and what it holds out; None for nothing."""
        start, middle, end = self._ends[name]
        held_out = self._ordered.part(middle, end) if middle < end else None
        return self._ordered.part(start, middle), held_out


def _pool(task: AnyTask, data: list[Data]) -> Records:
    records = [read_records(task, each) for each in data]
    held_out = [each.held_out for each in records if each.held_out is not None]
    return Records(
        concatenate([each.train for each in records]),
        concatenate(held_out) if held_out else None,
        hashlib.sha256("".join(each.fingerprint for each in records).encode()).hexdigest(),
    )


def _waive(site: Site) -> Site:
    policy = site.policy.model_copy(update={"allow_training_without_privacy": True})
    return site.model_copy(update={"policy": policy})


def _permissive(sites: SimulatedSites) -> Site:
    nowhere = Path("simulated")
    return Site(
        name="simulated",
        coordinator="simulated:0",
        tls=Tls(ca=nowhere, certificate=nowhere, key=nowhere),
        data=Data(train=nowhere),
        budget=Budget(epsilon=sites.budget or UNBOUNDED),
        policy=Policy(
            tasks=(AllowedTask(name="*"),),
            max_steps=10**9,
            max_rounds=10**9,
            min_noise_multiplier=1e-9,
            max_clipping_norm=1e9,
            max_model_mb=1e9,
            allow_training_without_privacy=True,
            release_exact=("*",),
            count="public" if sites.count else 1.0,
            secure_aggregation=SecureAggregationPolicy(min_sites=2),
        ),
    )

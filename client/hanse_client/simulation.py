"""Many sites behind one ClientApp, for simulations: the same app, gates and ledger as at a site."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from hanse.errors import DataError
from hanse.records import Data, Records, concatenate, fingerprint, hold_out, read_records
from hanse.simulation import LEDGER, SimulatedSites
from hanse.task import AnyTask, Examples
from prometheus_client import CollectorRegistry

from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.leftovers import LeftoverStore
from hanse_client.metrics import ClientMetrics
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

UNBOUNDED = 1e9
"""Epsilon that no job comes near."""

ROWS = "rows"
"""Config key of the rows of a carried ledger."""

LEFT = "left"
"""Config key of what the site has left out of its updates, as bytes."""


def make_app(described: str) -> ClientApp:
    """The ClientApp of the sites that ``described`` (a SimulatedSites as JSON) names.

    A site's ledger lives in memory: a simulation spends nothing of a real budget. Where the
    engine asks for it, the ledger is carried in the context's state (:data:`LEDGER`).
    """
    sites = SimulatedSites.model_validate_json(described)
    open_site = _from_files(sites) if sites.files else _from_parts(sites)
    runtimes: dict[str, SiteRuntime] = {}

    def resolve(context: Context) -> SiteRuntime:
        name = str(context.node_config["site"])
        if name not in runtimes:
            runtimes[name] = begin(name)
        return runtimes[name]

    def begin(name: str, rows: Sequence[str] = ()) -> SiteRuntime:
        site, read = open_site(name)
        return SiteRuntime(
            site,
            read=read,
            ledger=Ledger(None, begun=rows),
            audit=AuditTrail(None),
            metrics=ClientMetrics(CollectorRegistry()),
            masking=masking_of(site, simulated(name)),
        )

    def carry(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Begin with the ledger that the context brings, and leave it there as it becomes.

        What was left out of updates goes with it.
        """
        if LEDGER not in context.state:
            return call_next(message, context)
        name = str(context.node_config["site"])
        rows = cast(list[str], context.state.config_records[LEDGER].get(ROWS, []))
        if name not in runtimes or runtimes[name].ledger.contents() != rows:
            runtimes[name] = begin(name, rows)
        runtime = runtimes[name]
        left = cast(bytes, context.state.config_records[LEDGER].get(LEFT, b""))
        runtime.leftovers = LeftoverStore(None, begun=left)
        try:
            return call_next(message, context)
        finally:
            left = runtime.leftovers.carried()
            context.state[LEDGER] = ConfigRecord({ROWS: runtime.ledger.contents(), LEFT: left})

    return make_client_app(resolve, outermost=[carry])


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
    source, parts = sites.data, np.load(sites.parts, allow_pickle=False)
    whole = fingerprint(source)

    @cache
    def pool(task_key: str) -> Examples:
        return tasks[task_key].read(source)

    tasks: dict[str, AnyTask] = {}

    def open_site(name: str) -> tuple[Site, ReadRecords]:
        def read(task: AnyTask) -> Records:
            key = f"{type(task).__qualname__}:{task.options!r}"
            tasks.setdefault(key, task)
            part = pool(key).take(torch.from_numpy(parts[name]))
            train, held_out = hold_out(part, sites.holdout, seed=0)
            known_as = hashlib.sha256(f"{whole}:{name}".encode()).hexdigest()
            return Records(train, held_out, known_as)

        return _permissive(name, sites), read

    return open_site


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


def _permissive(name: str, sites: SimulatedSites) -> Site:
    nowhere = Path("simulated")
    return Site(
        name=name,
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

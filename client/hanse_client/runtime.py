"""What a site holds open while it serves: its settings, data, model, ledger and audit trail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType
from hanse.aggregation import Encoding
from hanse.errors import PolicyError
from hanse.flower import only_arrays
from hanse.job import Job
from hanse.privacy.accounting import Charge
from hanse.records import Records
from hanse.task import AnyTask

from hanse_client.asking import Asked, asked_in
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.leftovers import Leftovers, LeftoverStore
from hanse_client.metrics import ClientMetrics
from hanse_client.plan import LocalPlan, plan_round, steps_of
from hanse_client.policy import check_job, check_model_size, check_plan, check_steps
from hanse_client.release import NoisedMetrics, Release, kept_back, release_of
from hanse_client.secagg import Masking, certified, masking_of, session_of
from hanse_client.site import Site
from hanse_client.trainers import Trainers
from hanse_client.training import Trainer
from hanse_client.turns import Turns

log = logging.getLogger("hanse.client")

ReadRecords = Callable[[AnyTask], Records]
"""How a site's records are read; a simulated site gets a part of a pooled data set."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An instruction that passed the policy: what is to be done, and with what.

    Attributes:
        kind: Flower's type of the instruction, ``train`` or ``evaluate``.
        plan: what a training round does here.
        noised: the metrics that leave with noise; None for none.
        charge: what carrying the order out costs of the privacy budget; None for nothing.
        encoding: of the update.
    """

    job: Job
    kind: str
    server_round: int
    run_id: int
    message_id: str
    plan: LocalPlan
    noised: NoisedMetrics | None
    charge: Charge | None
    trainer: Trainer
    records: Records
    encoding: Encoding

    @property
    def protected(self) -> bool:
        """Whether what it makes is private; training without privacy leaves nothing to protect."""
        return self.kind != MessageType.TRAIN or self.plan.privacy is not None


class SiteRuntime:
    """One open site; it serves one instruction at a time.

    Task, records and model stay warm from one instruction to the next of the same job.

    Args:
        trainers: where its trainer is kept; one of its own if None.
    """

    def __init__(
        self,
        site: Site,
        *,
        read: ReadRecords,
        ledger: Ledger,
        audit: AuditTrail,
        metrics: ClientMetrics,
        masking: Masking | None = None,
        leftovers: LeftoverStore | None = None,
        trainers: Trainers | None = None,
    ) -> None:
        ledger.anchor(audit)
        self.site = site
        self.ledger = ledger
        self.audit = audit
        self.metrics = metrics
        self.masking = masking or masking_of(site, certified(site))
        self._read = read
        self._trainers = Trainers() if trainers is None else trainers
        self._job: Job | None = None
        self._warm: tuple[Trainer, Records] | None = None
        self._order: Order | None = None
        self._told: set[str] = set()
        self._turns = Turns(ledger)
        self.leftovers = leftovers or LeftoverStore(None)
        self.left_out: Leftovers | None = None
        """What the order under way left out of its update; None until there is any."""
        self.statement: dict[str, float] = {}
        """What the ledger says of the order under way; empty without privacy."""

    @property
    def device(self) -> torch.device:
        """The device that the site's file names."""
        return self._trainers.device(self.site.device)

    @property
    def order(self) -> Order:
        """The order under way."""
        if self._order is None:
            raise PolicyError("no instruction has passed the policy")
        return self._order

    def accept(self, message: Message) -> Order:
        """Make ``message`` the order under way, if the policy allows it.

        Raises:
            JobError: if it is not an instruction of Hanse's server app.
            PolicyError: if the policy does not allow it, or a later round came before it.
            TaskError: if the model that came is not the task's.
            DataError: if the site's data does not fit the task.
            UnprovableModelError, CoupledLossError: if it cannot be trained under privacy.
        """
        asked = self.asked(message)
        job, server_round = asked.job, asked.server_round
        policy, run_id = self.site.policy, message.metadata.run_id
        kind = message.metadata.message_type
        encoding = asked.encoding
        if kind == MessageType.TRAIN:
            self._turns.check(run_id, server_round)
        check_model_size(policy, asked.model_bytes)
        trainer, records = self._open(job)
        trainer.receive(only_arrays(message.content))
        release = release_of(policy, job, trainer.task, judges=records.held_out is not None)
        check_steps(policy, job, steps_of(job, len(records.train)))
        plan = plan_round(
            job,
            server_round,
            len(records.train),
            site=self.site.name,
            proximal_mu=asked.proximal_mu,
            release=release,
        )
        check_plan(policy, job, plan)
        if kind == MessageType.TRAIN:
            trainer.check(records.train, plan)
            noised, charge = plan.noised, plan.charge
        else:
            noised, charge = _evaluation(release, trainer, records), release.evaluation_charge
        if kind == MessageType.TRAIN:
            self._turns.took(run_id, server_round)
        self._order = Order(
            job=job,
            kind=kind,
            server_round=server_round,
            run_id=run_id,
            message_id=message.metadata.message_id,
            plan=plan,
            noised=noised,
            charge=charge,
            trainer=trainer,
            records=records,
            encoding=encoding,
        )
        return self._order

    def asked(self, message: Message) -> Asked:
        """What an instruction asks for, if the policy allows its job; no order yet.

        Raises:
            JobError: if it is not an instruction of Hanse's server app.
            PolicyError: if the policy does not allow the job.
        """
        self._order = self.left_out = None
        self.statement = {}
        asked = asked_in(message.content)
        check_job(self.site.policy, asked.job, asked.server_round)
        return asked

    def masked(self, message: Message) -> ConfigRecord:
        """What this site answers to a stage of a secure round without training.

        Raises:
            SecureAggregationError, PeerError, PolicyError: as :mod:`hanse_client.secagg` tells.
        """
        asked = self.asked(message)
        job, config = asked.job, asked.config
        session = session_of(job, asked.server_round, message.metadata.run_id, config)

        def weight() -> float:
            return self.weight(len(self._open(job)[1].train))

        return self.masking.answer(message.metadata.message_type, session, job, config, weight)

    def weight(self, records: int) -> float:
        """The aggregation weight to send: the true count only where the policy makes it public."""
        count = self.site.policy.count
        return float(records) if count == "public" else float(count)

    def _tell_kept_back(self, task: AnyTask) -> None:
        """Let the administrator know of metrics that the policy names and that cannot leave."""
        if not self.site.policy.release:
            return
        names = set(kept_back(self.site.policy, task)) - self._told
        self._told |= names
        for name in sorted(names):
            log.warning(
                "policy.release names %s, which cannot be noised: it does not leave. "
                "policy.release_exact would let it out as it is, outside epsilon.",
                name,
            )

    def _open(self, job: Job) -> tuple[Trainer, Records]:
        if self._warm is None or self._job is None or self._job.digest != job.digest:
            trainer = self._trainers.of(job, self.site)
            self._warm = trainer, self._read(trainer.task)
            self._job = job
            self._tell_kept_back(trainer.task)
        return self._warm


def _evaluation(release: Release, trainer: Trainer, records: Records) -> NoisedMetrics | None:
    """The noised metrics of an evaluation, once it is proved that they can be noised."""
    if records.held_out is None or not release.evaluation:
        return None
    trainer.check_metrics(records.held_out)
    return release.of_evaluation(len(records.held_out))


Resolve = Callable[[Context], SiteRuntime]
"""Which site a context speaks for: a real client has one, a simulation many."""

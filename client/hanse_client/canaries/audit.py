"""`hanse audit`: whether the engine as built here carries out what a job claims."""

from __future__ import annotations

import dataclasses
import time

import torch
from hanse.errors import JobError
from hanse.job import Job
from hanse.privacy.accounting import Charge, epsilon, merge

from hanse_client.canaries.band import Band, bands, false_alarms, fixed_guesses, simulated
from hanse_client.canaries.bound import epsilon_at_least, refuting
from hanse_client.canaries.design import Design
from hanse_client.canaries.run import run
from hanse_client.canaries.scores import Statistics, measure
from hanse_client.canaries.verdict import Audit, Finding
from hanse_client.plan import LocalPlan, plan_round
from hanse_client.privacy.settings import BackendName

CANARIES = 1000
MOST_STEPS = 10_000
"""Steps that are audited at most: of a longer run, its beginning."""

SIMULATIONS = 20_000
"""Simulated runs of the ideal mechanism."""


def audit(
    job: Job,
    *,
    records: int | None = None,
    canaries: int = CANARIES,
    simulations: int = SIMULATIONS,
    backend: BackendName = "auto",
    device: torch.device,
) -> Audit:
    """Train on canaries by the site's own code, for the steps of ``job``'s run.

    Guesses are fixed and the band is simulated before the run; nothing is seeded. A correct
    engine passes but with a probability of :attr:`Audit.false_alarms`.

    Args:
        records: of a site, where the job leaves the sampling rate to it.
        canaries: how many; more of them see finer faults.
        backend: of the engine.

    Raises:
        JobError: if the job trains without privacy, or its sampling rate is not known.
        CalibrationError: if no noise reaches the job's target epsilon.
    """
    started = time.monotonic()
    plans, mechanism = _planned(job, records)
    privacy = job.privacy
    claimed = epsilon([mechanism], privacy.delta)
    design = Design.of(canaries, mechanism.sampling_rate)
    guesses = fixed_guesses(mechanism, design, claimed=claimed, delta=privacy.delta)
    correct = simulated(mechanism, design, guesses, simulations)
    trained = run(plans, privacy.clipping_norm, design, backend=backend, device=device)
    findings = _findings(measure(trained.scores, guesses), bands(correct))
    tried = {"canaries": canaries, "guesses": guesses}
    right = int(next(each.value for each in findings if each.name == "right"))
    return Audit(
        job=job.name,
        mechanism=mechanism,
        run_steps=job.rounds * plans[0].steps,
        clipping_norm=privacy.clipping_norm,
        backend=trained.backend,
        device=str(device),
        **tried,
        included=int(trained.scores.included.sum()),
        right=right,
        delta=privacy.delta,
        claimed=claimed,
        at_least=epsilon_at_least(**tried, right=right, delta=privacy.delta),
        findings=findings,
        false_alarms=false_alarms(correct, refuting(**tried, claimed=claimed, delta=privacy.delta)),
        seconds=time.monotonic() - started,
    )


def _findings(run: Statistics, limits: dict[str, Band]) -> tuple[Finding, ...]:
    return tuple(
        Finding(name=name, value=float(values[0]), band=limits[name]) for name, values in run
    )


def _planned(job: Job, records: int | None) -> tuple[list[LocalPlan], Charge]:
    """The rounds to be trained, and their mechanism over all of their steps."""
    if not job.privacy.private:
        raise JobError(
            f"{job.name} trains without privacy (privacy.mechanism = 'none'): it claims nothing "
            "that could be audited",
            remedy="Set [privacy] in job.toml, or name another job.",
        )
    if job.privacy.sampling_rate is None and records is None:
        raise JobError(
            f"{job.name} leaves privacy.sampling_rate to each site: batch_size / records",
            remedy="Give --records, the number of training records of the site in question.",
        )
    plans: list[LocalPlan] = []
    left = MOST_STEPS
    for server_round in range(1, job.rounds + 1):
        plan = plan_round(job, server_round, records or 1, site="audit")
        plans.append(dataclasses.replace(plan, steps=min(plan.steps, left)))
        left -= plans[-1].steps
        if left == 0:
            break
    # Noise and sampling rate are those of the run: the rounds merge into one.
    (mechanism,) = merge(plan.charge for plan in plans if plan.charge is not None)
    return plans, mechanism

"""`hanse client check`: what an administrator runs first, before anything leaves the site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flwr.app import MessageType
from hanse.aggregation import PLAIN, Encoding
from hanse.errors import BudgetError, HanseError, NameTakenError
from hanse.expiry import days_left
from hanse.job import Job
from hanse.privacy.accounting import Charge, decide
from hanse.records import fingerprints, read_records
from hanse.task import load_task
from hanse.tls import load_identity

from hanse_client import device
from hanse_client.books import audit_path, counted, ledger_path
from hanse_client.ledger.book import Account, Book, short
from hanse_client.ledger.reader import read_ledger
from hanse_client.ledger.verify import verify_ledger
from hanse_client.link import greet
from hanse_client.plan import LocalPlan, plan_round
from hanse_client.policy import check_job, check_plan
from hanse_client.release import Release, kept_back, release_of
from hanse_client.serve import coordinator_of
from hanse_client.site import Site

SOON_DAYS = 30
"""A certificate that ends within these days is told of."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        remedy: what to do, where ``ok`` is False.
        exit_code: of the error behind it, else 0.
    """

    name: str
    ok: bool
    message: str
    remedy: str = ""
    exit_code: int = 0


def check_site(site: Site, job: Job | None) -> Iterator[Finding]:
    """Yield each finding as it is made: data, certificate, coordinator, device, budget, egress.

    Args:
        job: a job that the site is asked to take part in; its task reads the data then, its
            first round is held against the policy, and its rounds against the budget.
    """
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("data", lambda: _data(site, job)),
        ("policy", lambda: _policy(site, job)),
        *(_link_checks(site) if site.coordinator else ()),
        ("device", lambda: device.describe(device.resolve(site.device))),
        ("budget", lambda: _budget(site, job)),
        ("leaves the site", lambda: _egress(site, job)),
    )
    for name, check in checks:
        try:
            yield Finding(name=name, ok=True, message=check())
        except HanseError as error:
            yield Finding(
                name=name,
                ok=False,
                message=error.message,
                remedy=error.remedy,
                exit_code=error.exit_code,
            )


def _link_checks(site: Site) -> tuple[tuple[str, Callable[[], str]], ...]:
    return (
        ("certificate", lambda: _certificate(site)),
        ("coordinator", lambda: _coordinator(site)),
    )


def _data(site: Site, job: Job | None) -> str:
    if job is None:
        known_as = " and ".join(map(short, fingerprints(site.data)))
        return (
            f"{site.data.train.name} is there, fingerprint {known_as}; with --job it is read as "
            "that job's task does"
        )
    records = read_records(load_task(job.task.name, job.task.options), site.data)
    held_out = 0 if records.held_out is None else len(records.held_out)
    known_as = " and ".join(map(short, records.fingerprints))
    return f"{len(records.train)} records to train on, {held_out} held out, fingerprint {known_as}"


def _policy(site: Site, job: Job | None) -> str:
    if job is None:
        return "allows the tasks " + ", ".join(task.name for task in site.policy.tasks)
    check_job(site.policy, job, 1)
    plan, _ = _planned(site, job)
    check_plan(site.policy, job, plan)
    if plan.privacy is None:
        return f"allows {job.name}, which trains with no privacy"
    return (
        f"allows {job.name}: {counted(job.rounds, 'round')} of {counted(plan.steps, 'step')}, "
        f"noise multiplier {plan.privacy.noise_multiplier:.3f}, "
        f"sampling rate {plan.privacy.sampling_rate:.4g}"
    )


def _planned(site: Site, job: Job) -> tuple[LocalPlan, Release]:
    task = load_task(job.task.name, job.task.options)
    records = read_records(task, site.data)
    release = release_of(site.policy, job, task, judges=records.held_out is not None)
    return plan_round(job, 1, len(records.train), site=site.name, release=release), release


def _certificate(site: Site) -> str:
    identity = load_identity(site.tls.ca, site.tls.certificate, site.tls.key)
    days, authority_days = days_left(identity.not_after), days_left(identity.authority_not_after)
    told = f"of {identity.name}, valid for {counted(days, 'more day')}"
    if days < SOON_DAYS:
        told += ": renew it with `hanse client renew`"
    if authority_days < SOON_DAYS:
        ends = counted(authority_days, "more day")
        told += f"; its authority is valid for {ends}: ask the operator about a new one"
    return told


def _coordinator(site: Site) -> str:
    try:
        greeting = greet(coordinator_of(site))
    except NameTakenError:
        return f"{site.coordinator} knows this site; its client is connected already"
    version = greeting.versions.get("hanse", "of an unknown version")
    return f"{site.coordinator} lets this site in; it runs hanse {version}, job {greeting.job}"


def _budget(site: Site, job: Job | None) -> str:
    budget, path = site.budget, ledger_path(site)
    verify_ledger(path, audit_path(site), budget.delta)
    book = read_ledger(path) if path.exists() else Book()
    data = fingerprints(site.data)
    account = book.account_of(data)
    if job is not None:
        _afford(site, job, account)
    if account is None:
        return f"epsilon {budget.epsilon:g} at delta {budget.delta:g}; nothing is spent"
    stated = book.statement(data[0], budget)
    return (
        f"epsilon {stated.spent:.4g} of {budget.epsilon:g} is spent on this data, account "
        f"{account.number}, in {counted(stated.rounds, 'round')}; {stated.left:.4f} is left "
        f"(delta {budget.delta:g})"
    )


def _afford(site: Site, job: Job, account: Account | None) -> None:
    """Hold what the job has yet to cost against what is left.

    Raises:
        BudgetError: if not all of its rounds will fit.
    """
    plan, release = _planned(site, job)
    if plan.charge is None:
        return
    spent = () if account is None else account.charges
    rounds, evaluations = _awaited(job, account)
    awaited = (_times(plan.charge, rounds), _times(release.evaluation_charge, evaluations))
    budget = site.budget
    verdict = decide((*spent, *filter(None, awaited)), budget=budget.epsilon, delta=budget.delta)
    if not verdict.fits:
        raise BudgetError(
            f"{counted(rounds, 'more round' if spent else 'round')} of {job.name} would bring "
            f"epsilon to {verdict.epsilon:.4g} at delta={budget.delta:g}, above the data's budget "
            f"of {budget.epsilon:g}"
        )


def _awaited(job: Job, account: Account | None) -> tuple[int, int]:
    """How many rounds and evaluations of the job are to come: of its last run, else of a new."""
    evaluations = job.evaluation.rounds_judged_by_sites(job.rounds)
    asked = [
        entry.instruction
        for _, entry in sorted(account.entries.items() if account else ())
        if entry.instruction.job_digest == job.digest
    ]
    last = {each.kind: each.server_round for each in asked if each.run_id == asked[-1].run_id}
    trained = last.get(MessageType.TRAIN, 0)
    if trained >= job.rounds:
        return job.rounds, evaluations
    judged = last.get(MessageType.EVALUATE, 0) // job.evaluation.every
    return job.rounds - trained, evaluations - judged


def _times(charge: Charge | None, number: int) -> Charge | None:
    """So many of a charge; None for nothing."""
    return replace(charge, steps=charge.steps * number) if charge and number else None


def _egress(site: Site, job: Job | None) -> str:
    policy = site.policy
    weight = "the number of records" if policy.count == "public" else f"a weight of {policy.count}"
    noised = ", ".join(policy.release) or "none"
    exact = ", ".join(policy.release_exact) or "none"
    told = (
        f"the update of each round{_encoded(job)}, {weight}, and of the metrics, with noise where "
        f"they are of private records: {noised}; as they are, outside the budget: {exact}"
    )
    kept = kept_back(policy, load_task(job.task.name, job.task.options)) if job else ()
    return f"{told}; not {', '.join(kept)}, which cannot be noised" if kept else told


def _encoded(job: Job | None) -> str:
    """In which form the update leaves, where a job asks for one."""
    encoding = Encoding() if job is None else job.encoding
    told = "" if encoding.name == PLAIN else f", encoded as {encoding.name}"
    return told + (", without what is frozen" if encoding.trainable_only else "")

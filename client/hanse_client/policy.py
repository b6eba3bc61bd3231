"""What a site's policy allows: checked before any work, told by name, value and bound."""

from __future__ import annotations

import hanse.task
from hanse.errors import PolicyError, PrivacyRequiredError
from hanse.job import Job

from hanse_client.plan import LocalPlan
from hanse_client.release import PUBLIC_METRICS, Kind, leaves_exact, leaves_noised
from hanse_client.site import Policy


def check_job(policy: Policy, job: Job, server_round: int) -> None:
    """Refuse a job that the policy does not allow, before its task is even loaded.

    Raises:
        PolicyError: naming what was asked, and the bound in ``site.toml``.
    """
    if policy.secure_aggregation.required and not job.secure_aggregation.enabled:
        raise PolicyError(
            "secure_aggregation.enabled = false, and this site takes part in no other jobs "
            "(policy.secure_aggregation.required in site.toml)"
        )
    allowed = {task.name: task.digest for task in policy.tasks}
    if job.task.name not in allowed and "*" not in allowed:
        raise PolicyError(
            f"task {job.task.name!r} is not among this site's (policy.tasks in site.toml)"
        )
    pinned = allowed.get(job.task.name)
    if pinned is not None and hanse.task.task_digest(job.task.name) != pinned:
        raise PolicyError(f"task {job.task.name!r} is not the version that policy.tasks pins")
    if job.rounds > policy.max_rounds:
        raise PolicyError(_above("rounds", job.rounds, "max_rounds", policy.max_rounds))
    if not 1 <= server_round <= job.rounds:
        raise PolicyError(f"round {server_round} is not one of the job's 1 to {job.rounds}")
    if job.privacy.private and job.privacy.sampling_rate is None and policy.count != "public":
        # Steps, noise and what the budget covers would follow from batch_size / records; whoever
        # may ask again and again, and sees what is refused, could tell the number of records.
        raise PolicyError(
            "privacy.sampling_rate is not set, and this site keeps its number of records to "
            "itself (policy.count in site.toml)",
            remedy="Set privacy.sampling_rate in the job, or ask the site to make count public.",
        )
    if not job.privacy.private and not policy.allow_training_without_privacy:
        raise PrivacyRequiredError(
            'privacy.mechanism = "none", and this site does not allow it '
            "(policy.allow_training_without_privacy in site.toml)"
        )


def check_steps(policy: Policy, job: Job, steps: int) -> None:
    """Refuse more steps than the policy's bound, before noise is calibrated to so many.

    Raises:
        PolicyError: naming both. In a private job the steps do not follow from a number of
            records that is private (:func:`check_job`); those of an epoch without privacy do, so
            that number stays here.
    """
    if steps > policy.max_steps:
        raise PolicyError(
            _above("steps", steps, "max_steps", policy.max_steps),
            discloses_nothing=job.training.steps is not None or job.privacy.private,
        )


def check_plan(policy: Policy, job: Job, plan: LocalPlan) -> None:
    """Refuse a round's work that is out of the policy's bounds.

    Raises:
        PolicyError: naming what was asked, and the bound in ``site.toml``.
    """
    check_steps(policy, job, plan.steps)
    if plan.privacy is None or plan.charge is None:
        return
    noise, norm = plan.charge.noise_multiplier, plan.privacy.clipping_norm
    if noise < policy.min_noise_multiplier:
        raise PolicyError(
            f"noise_multiplier = {noise:g} is below this site's smallest, "
            f"{policy.min_noise_multiplier:g} (policy.min_noise_multiplier in site.toml)"
        )
    if norm > policy.max_clipping_norm:
        raise PolicyError(
            _above("clipping_norm", norm, "max_clipping_norm", policy.max_clipping_norm)
        )


def check_model_size(policy: Policy, size_bytes: int) -> None:
    """Refuse a model larger than the policy's bound.

    Raises:
        PolicyError: naming size and bound.
    """
    if size_bytes > policy.max_model_mb * 1e6:
        raise PolicyError(
            _above("model size in MB", size_bytes / 1e6, "max_model_mb", policy.max_model_mb)
        )


def may_leave(policy: Policy, metric: str, kind: Kind, *, protected: bool = True) -> bool:
    """Whether the policy lets a metric's value out that came about as ``kind`` says.

    Args:
        protected: False for what was trained without privacy, which the site allows as a whole:
            its metrics leave as they are wherever the policy names them.
    """
    noised, exact = leaves_noised(policy, metric), leaves_exact(policy, metric)
    match kind:
        case Kind.PUBLIC:
            return metric in PUBLIC_METRICS and (noised or exact)
        case Kind.NOISED:
            return noised
        case Kind.EXACT:
            return exact or (noised and not protected)


def _above(name: str, value: float, key: str, bound: float) -> str:
    return f"{name} = {value:g} is above this site's largest, {bound:g} (policy.{key} in site.toml)"

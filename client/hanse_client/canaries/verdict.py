"""What an audit comes to: each figure of the run beside what a correct engine's would be."""

from __future__ import annotations

from dataclasses import dataclass

from hanse.errors import AuditError
from hanse.privacy.accounting import Charge

from hanse_client.canaries.band import Band

CAVEAT = (
    "An audit can find that the engine leaks more than it should; it cannot prove that it does "
    "not, and gives no upper bound of epsilon."
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A statistic of the run (see :class:`hanse_client.canaries.scores.Statistics`).

    Attributes:
        band: where those of a correct engine lie.
    """

    name: str
    value: float
    band: Band

    @property
    def ok(self) -> bool:
        return self.band.holds(self.value)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What one run showed.

    Attributes:
        job: its name.
        mechanism: what was carried out, over all steps together.
        run_steps: the steps of the job's whole run, of which the first ones were audited.
        backend: of the engine.
        canaries: how many there were, ``included`` of them in the data set.
        guesses: how many guesses were made, as fixed before the run, ``right`` of them right.
        claimed: the epsilon that the mechanism costs at ``delta``, by the ledger's accountant.
        at_least: the epsilon that the right guesses prove with 95 % confidence.
        false_alarms: the probability that a correct engine does not pass.
        seconds: wall time.
    """

    job: str
    mechanism: Charge
    run_steps: int
    clipping_norm: float
    backend: str
    device: str
    canaries: int
    included: int
    guesses: int
    right: int
    delta: float
    claimed: float
    at_least: float
    findings: tuple[Finding, ...]
    false_alarms: float
    seconds: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What speaks against the engine; nothing, where it passed."""
        outside = [
            f"{each.name} = {each.value:.4g} is outside the {each.band.low:.4g} to "
            f"{each.band.high:.4g} of a correct engine"
            for each in self.findings
            if not each.ok
        ]
        if self.at_least > self.claimed:
            outside.append(
                f"{self.right} right guesses of {self.guesses} prove an epsilon of at least "
                f"{self.at_least:.4g}, above the {self.claimed:.4g} that is claimed"
            )
        return tuple(outside)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.faults:
            return "The engine does not carry out the mechanism that the job claims."
        return (
            f"Nothing speaks against the claim: epsilon is at least {self.at_least:.3g} by the "
            f"audit and at most {self.claimed:.3g} by the accountant."
        )

    def verify(self) -> None:
        """Let pass an audit that nothing speaks against.

        Raises:
            AuditError: if anything does.
        """
        if self.faults:
            raise AuditError("; ".join(self.faults))

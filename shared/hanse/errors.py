"""Every refusal and failure of Hanse, each with a name, an exit code, a cause and a remedy.

The message of an error says what is wrong here and now (name, value, bound); ``remedy`` says
what to do about it. ``label`` names the kind in metrics and on the wire, ``exit_code`` is what
a command ends with, ``help`` is the line of the table in the README.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class HanseError(Exception):
    """Base of all errors that Hanse raises.

    Args:
        message: What is wrong: name, value, bound.
        remedy: What to do about it; the kind's own ``remedy_hint`` if left out.
        discloses_nothing: Of this message, where it differs from the kind's.
    """

    exit_code: ClassVar[int] = 1
    label: ClassVar[str] = "internal"
    help: ClassVar[str] = "A fault of Hanse itself; please report it with the log."
    remedy_hint: ClassVar[str] = "Please report this with the log."
    discloses_nothing: bool = False
    """Whether the message is free of anything read from private data, so that it may leave a
    site. The text of other errors stays in the site's own log."""

    def __init__(
        self, message: str, *, remedy: str | None = None, discloses_nothing: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or self.remedy_hint
        if discloses_nothing is not None:
            self.discloses_nothing = discloses_nothing

    def reason(self) -> str:
        """The text that may leave a site: the label, and the message where it is harmless."""
        return f"{self.label}: {self.message}" if self.discloses_nothing else self.label


# --- 10-19: what people wrote -------------------------------------------------------------


class ConfigError(HanseError):
    """A file that a person wrote does not validate."""

    discloses_nothing = True


class JobError(ConfigError):
    exit_code = 10
    label = "job"
    help = "job.toml is missing, malformed, or has a wrong or unknown key."
    remedy_hint = "Correct the named key in job.toml."


class SiteFileError(ConfigError):
    exit_code = 11
    label = "site_file"
    help = "site.toml is missing, malformed, or has a wrong or unknown key."
    remedy_hint = "Correct the named key in site.toml."


class TaskError(ConfigError):
    exit_code = 12
    label = "task"
    help = "The task is unknown, cannot be loaded, or its options are wrong."
    remedy_hint = "`hanse task list` names the tasks that are installed."


class RegisterError(ConfigError):
    exit_code = 13
    label = "register"
    help = "sites.toml is missing or malformed."
    remedy_hint = "Write it anew with `hanse provision`."


class WorkspaceError(HanseError):
    exit_code = 14
    label = "workspace"
    help = "The workspace belongs to another job, is in use, is damaged, or cannot be written."
    remedy_hint = "Name another --workspace, or remove this one."


class MissingExtraError(HanseError):
    exit_code = 15
    label = "missing_extra"
    help = "The command needs packages that are not installed here."
    remedy_hint = "Install the extra that the message names."


# --- 20-29: data, model and training ------------------------------------------------------


class DataError(HanseError):
    exit_code = 20
    label = "data"
    help = "The site's data cannot be read: no such file, wrong columns, wrong types."
    remedy_hint = "`hanse client check` shows what the task expects of the data."


class NonFiniteDataError(DataError):
    exit_code = 21
    label = "non_finite_data"
    help = "The site's data holds NaN or infinite values where the task allows none."
    remedy_hint = "Clean the named column, or declare that its values may be missing."


class UnprovableModelError(HanseError):
    exit_code = 22
    label = "unprovable_model"
    help = "The model has layers that mix records (BatchNorm), so privacy cannot be proved."
    remedy_hint = "Use GroupNorm or LayerNorm in place of batch statistics."
    discloses_nothing = True


class CoupledLossError(HanseError):
    exit_code = 23
    label = "coupled_loss"
    help = "The loss of one record depends on the other records of its batch."
    remedy_hint = "Return one loss a record, without reduction or class weights over the batch."
    discloses_nothing = True


class DivergedError(HanseError):
    exit_code = 24
    label = "diverged"
    help = "Local training ended in NaN or infinite weights."
    remedy_hint = "Lower the learning rate."
    discloses_nothing = True


class DeviceError(HanseError):
    exit_code = 25
    label = "device"
    help = "The device asked for is not on this machine."
    remedy_hint = 'Use device = "auto" or "cpu" in site.toml.'
    discloses_nothing = True


class UpdateRangeError(HanseError):
    exit_code = 26
    label = "update_range"
    help = "The update has a coordinate beyond what the job's secure aggregation or encoding takes."
    remedy_hint = "Raise secure_aggregation.range, choose bfloat16, or lower the learning rate."


# --- 30-39: identity and link -------------------------------------------------------------


class CertificateError(HanseError):
    exit_code = 30
    label = "certificate"
    help = "A certificate or key cannot be read, does not match, or is of another authority."
    remedy_hint = "Ask the operator for a new kit, or check the paths under [tls]."
    discloses_nothing = True


class CertificateExpiredError(CertificateError):
    exit_code = 31
    label = "certificate_expired"
    help = "A certificate is not valid at this time."
    remedy_hint = "Renew it (`hanse client renew`), or set this machine's clock."


class NotRegisteredError(HanseError):
    exit_code = 32
    label = "not_registered"
    help = "The site is not in the server's sites.toml, or with another certificate."
    remedy_hint = "Ask the operator to register this site's certificate."
    discloses_nothing = True


class NameTakenError(HanseError):
    exit_code = 33
    label = "name_taken"
    help = "Another client with the same certificate is connected."
    remedy_hint = "Stop the other client, or wait until the server has given it up."
    discloses_nothing = True


class ProtocolError(HanseError):
    exit_code = 34
    label = "protocol"
    help = "The two ends do not speak the same major version of the protocol."
    remedy_hint = "Install the version of hanse that the message names."
    discloses_nothing = True


class WireError(HanseError):
    exit_code = 35
    label = "wire"
    help = "A frame is malformed, larger than allowed, or fails its digest."
    remedy_hint = (
        "Check that both ends run released versions; the limits are in site.toml and job.toml."
    )
    discloses_nothing = True


class PortInUseError(HanseError):
    exit_code = 36
    label = "port_in_use"
    help = "The port to listen on is taken."
    remedy_hint = "Stop what listens there, or choose another port."
    discloses_nothing = True


class UnreachableError(HanseError):
    exit_code = 37
    label = "unreachable"
    help = "The coordinator does not answer at its address."
    remedy_hint = "Check the address, the firewall, and that the server runs."
    discloses_nothing = True


class OutboxError(HanseError):
    exit_code = 38
    label = "outbox"
    help = "The site's outbox cannot be written: full disk, no permission, locked."
    remedy_hint = "Make room or free the outbox; the reply was not sent."


# --- 40-49: policy and privacy ------------------------------------------------------------


class PolicyError(HanseError):
    exit_code = 40
    label = "policy"
    help = "The site's policy does not allow what was asked of it."
    remedy_hint = "Change the job, or ask the site's administrator to change [policy]."
    discloses_nothing = True


class BudgetError(HanseError):
    exit_code = 41
    label = "budget"
    help = "The round would spend more privacy than the site's budget has left."
    remedy_hint = "Use more noise or fewer rounds, or ask the site's administrator."


class LedgerError(HanseError):
    exit_code = 42
    label = "ledger"
    help = "The privacy ledger cannot be written: full disk, no permission, locked."
    remedy_hint = "Make room or free the ledger; nothing was trained and nothing was sent."


class PrivacyRequiredError(PolicyError):
    exit_code = 43
    label = "privacy_required"
    help = "The job trains without privacy and the site does not allow it."
    remedy_hint = "Set [privacy] in the job, or allow_training_without_privacy = true in site.toml."


class CalibrationError(HanseError):
    exit_code = 44
    label = "calibration"
    help = "No noise multiplier reaches the target epsilon."
    remedy_hint = "Raise target_epsilon or delta, or train for fewer steps."
    discloses_nothing = True


class DataChangedError(LedgerError):
    exit_code = 45
    label = "data_changed"
    help = "The privacy ledger does not know the data: it asks whether the people are the same."
    remedy_hint = "Answer with `hanse client ledger SITE --adopt ACCOUNT`, or `--adopt new`."


class LedgerBrokenError(LedgerError):
    exit_code = 46
    label = "ledger_broken"
    help = "The privacy ledger or the audit trail was changed by hand, cut off, or damaged."
    remedy_hint = "Keep both files as they are, and find out who changed them; nothing was trained."


class AuditError(HanseError):
    exit_code = 47
    label = "audit"
    help = "The empirical audit speaks against the engine of private training as it is built here."
    remedy_hint = "Train nothing private with it; audit again, and report it if it fails again."
    discloses_nothing = True


class SecureAggregationError(HanseError):
    exit_code = 48
    label = "secure_aggregation"
    help = "A secure round cannot go on: too few sites are left, or somebody broke its protocol."
    remedy_hint = "The round taught nothing to anybody; see which site or stage it was."
    discloses_nothing = True


class PeerError(HanseError):
    exit_code = 49
    label = "peer"
    help = "Another site's identity in a secure round is forged, expired, or not the pinned one."
    remedy_hint = "Compare fingerprints over another channel; `hanse client identity` shows them."
    discloses_nothing = True


# --- 50-59: the federation ----------------------------------------------------------------


class QuorumError(HanseError):
    exit_code = 50
    label = "quorum"
    help = "Round after round too few sites answered in time."
    remedy_hint = "`hanse server status` names the sites; the run goes on where it stopped."


class StrategyError(HanseError):
    exit_code = 51
    label = "strategy"
    help = "The strategy is unknown, or cannot aggregate what the sites sent."
    remedy_hint = "Correct [strategy] in job.toml."


class UpdateError(HanseError):
    exit_code = 52
    label = "update"
    help = "A site's reply does not fit the model, is not finite, or fails the job's [checks]."
    remedy_hint = "The reply was left out; look at that site's log."


class ProcessError(HanseError):
    exit_code = 53
    label = "process"
    help = "A process that the command started ended with an error."
    remedy_hint = "Read the log that the message names."


class LostError(HanseError):
    exit_code = 54
    label = "lost"
    help = "A site lost what it was asked, by a crash, and its round is over."
    remedy_hint = "Nothing is to be done: the site goes on with the round under way."
    discloses_nothing = True


class TrailError(HanseError):
    exit_code = 55
    label = "trail"
    help = "A run's audit trail was changed, is cut off, or does not agree with the run or a site."
    remedy_hint = "Keep the workspace and the sites' trails as they are; find out who changed them."


def error_types() -> Iterator[type[HanseError]]:
    """Every kind of error that can end a command, by exit code."""

    def walk(kind: type[HanseError]) -> Iterator[type[HanseError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from walk(child)

    concrete = (kind for kind in walk(HanseError) if "exit_code" in vars(kind))
    return iter(sorted(concrete, key=lambda kind: kind.exit_code))

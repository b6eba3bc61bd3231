"""Whether a run's trail is whole, and agrees with what else the run left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanse.errors import TrailError, WorkspaceError
from hanse.flower import to_record
from hanse.trail import chained_lines, last_digest
from torch import Tensor

from hanse_server import checkpoint
from hanse_server.audit.account import Account
from hanse_server.audit.digests import model_digest
from hanse_server.audit.trail import went_in
from hanse_server.history import RoundRecord, read_history
from hanse_server.workspace import audit_path, read_run


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found whole.

    Attributes:
        lines: of the trail.
        rounds: that were kept, and hold.
        again: rounds among them that were run again after a crash, each as often as that was.
        folded: replies that went into the model, each once.
        models: files whose weights are those that the trail tells of.
        digest: of the last line, in which all lines have a part.
    """

    lines: int
    rounds: int
    again: tuple[int, ...]
    folded: int
    models: tuple[str, ...]
    digest: str


def verify_trail(workspace: Path) -> tuple[Verification, Account]:
    """Hold a workspace's trail against itself, its history, its checkpoints and its models.

    A server may be writing meanwhile: what it wrote after the trail was read is passed over.

    Raises:
        TrailError: if something was changed, cut off, or does not agree; naming it.
        WorkspaceError: if the workspace cannot be read.
    """
    path = audit_path(workspace)
    if not path.exists():
        raise TrailError(f"{workspace} has no audit trail: a simulation, or it was removed")
    account = Account(str(read_run(workspace)["run_id"]))
    # Each file is written after the trail: what is there by now, the trail tells of.
    history, rounds = read_history(workspace), _rounds(workspace)
    digest = last_digest(path)
    account.read(chained_lines(path, TrailError))
    _check_history(account, history, len(read_history(workspace)))
    models = [*_check_checkpoints(account, workspace, rounds), *_check_models(account, workspace)]
    found = Verification(
        lines=account.lines,
        rounds=account.last,
        again=tuple(account.again),
        folded=sum(len(kept.folded) for kept in account.kept.values()),
        models=tuple(models),
        digest=digest,
    )
    return found, account


def _check_history(account: Account, history: Sequence[dict[str, Any]], by_now: int) -> None:
    """Each round as the history has it; the newest may not have got that far."""
    if len(history) > account.last:
        raise TrailError(f"history.jsonl has {len(history)} rounds, the trail {account.last}")
    if account.last > by_now + 1:
        raise TrailError(f"the trail has {account.last} rounds, history.jsonl {by_now}")
    for line in history:
        record = RoundRecord.from_line(line)
        kept = account.kept[record.round]
        if record.outcome != kept.outcome:
            raise TrailError(
                f"round {record.round}: history.jsonl says {record.outcome}, the trail "
                f"{kept.outcome}"
            )
        for kind, told in (("train", kept.folded), ("evaluate", kept.judged)):
            if went_in(record, kind) != told:
                raise TrailError(
                    f"round {record.round}: history.jsonl has {len(went_in(record, kind))} {kind} "
                    f"replies that counted, the trail {len(told)}, or others"
                )


def _check_checkpoints(account: Account, workspace: Path, rounds: Sequence[int]) -> list[str]:
    newest = max(rounds, default=0)
    if newest > account.last:
        raise TrailError(f"the checkpoint of round {newest} is of a round that was never kept")
    if account.last > max(_rounds(workspace), default=0) + 1:
        raise TrailError(f"the trail has {account.last} rounds, the newest checkpoint is {newest}")
    found = []
    for number in rounds:
        try:
            model = checkpoint.load_round(workspace / "checkpoints", number)
        except WorkspaceError:
            if number in _rounds(workspace):  # not removed by a server at this moment
                raise
            continue
        if model is None:
            continue
        if _digest_of(model) != account.kept[number].model:
            raise TrailError(
                f"the checkpoint of round {number} does not hold the model that the trail tells of"
            )
        found.append(f"checkpoints/round-{number:05d}/model.safetensors")
    return found


def _check_models(account: Account, workspace: Path) -> list[str]:
    """The last and the best model; of a round that was run again, as it was either time."""
    found = []
    for name in ("last", "best"):
        path = workspace / "models" / f"{name}.safetensors"
        if not path.exists():
            continue
        model, statement = checkpoint.load_stated(path)
        number = statement.get("round")
        if number not in account.released:
            raise TrailError(f"{path}: the trail knows of no round {number}")
        if _digest_of(model) not in account.released[number]:
            raise TrailError(f"{path} is not the model of round {number} that the trail tells of")
        if name == "last" and number < _last_completed(account, workspace):
            raise TrailError(f"{path} is of round {number}: later ones were completed")
        found.append(f"models/{name}.safetensors")
    return found


def _digest_of(model: Mapping[str, Tensor]) -> str:
    """The digest of a model that a file holds; none that a trail tells of has any other dtype."""
    try:
        return model_digest(to_record(model, adopt=True))
    except TypeError as foreign:
        raise TrailError(f"a model of the run holds what no update can: {foreign}") from foreign


def _last_completed(account: Account, workspace: Path) -> int:
    """The last completed round that is surely durable."""
    durable = max(_rounds(workspace), default=0)
    completed = (n for n, kept in account.kept.items() if kept.outcome == "completed")
    return max((number for number in completed if number <= durable), default=0)


def _rounds(workspace: Path) -> list[int]:
    return checkpoint.rounds(workspace / "checkpoints")

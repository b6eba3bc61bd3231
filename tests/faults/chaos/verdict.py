"""What must hold after a run, whatever befell it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hanse.privacy.accounting import epsilon
from hanse.wire.message import CHUNK_BYTES
from hanse_client.audit import read_chained
from hanse_client.ledger import Entry, read_ledger, verify
from hanse_client.outbox import Outbox
from hanse_server.checkpoint import load_last, load_model
from hanse_server.history import read_history
from torch import Tensor

from tests.faults.chaos.process import FailedRunError
from tests.faults.chaos.run import Run
from tests.faults.chaos.witness import Truth, told

# Runs of one setting come to the same few charges: each is accounted for once.
setattr(verify, epsilon.__name__, cache(epsilon))

DELTA = 1e-5
LARGE = 1000
MOST_HELD = 4


def model_of(run: Run) -> dict[str, Tensor]:
    """The model that a run ended with, and all that a next round would have started from."""
    last = load_last(run.workspace / "checkpoints")
    if last is None:
        raise FailedRunError("the run left no checkpoint")
    state = {f"strategy/{name}": tensor for name, tensor in last.strategy.items()}
    return load_model(run.workspace / "models" / "last.safetensors") | state


def judge(run: Run, uninterrupted: dict[str, Tensor] | None) -> None:
    """Hold a run that has ended against what must be.

    Args:
        uninterrupted: the model of a run that nothing befell; None where noise is in it.

    Raises:
        FailedRunError: naming what does not hold.
    """
    history = read_history(run.workspace)
    _rounds(run, history)
    if uninterrupted is not None:
        _model(model_of(run), uninterrupted)
    _transfers(run, history)
    for site in run.sites:
        _books(run, site, history)
    _trails(run)
    name = run.chance.choice(list(run.sites))
    command = run.chance.choice(("audit", "ledger"))
    run.hanse("client", command, str(run.sites[name] / "site.toml"), "--verify")


def _rounds(run: Run, history: list[dict[str, Any]]) -> None:
    """Each round is there, once; each site's update was folded in each, unless it may be away."""
    rounds = [line["round"] for line in history]
    if rounds != list(range(1, run.setting.rounds + 1)):
        raise FailedRunError(f"the history has the rounds {rounds}")
    if run.may_refuse or run.setting.quorum:
        return
    for line in history:
        outcomes = {name: site["outcome"] for name, site in line["sites"].items()}
        if outcomes != dict.fromkeys(run.setting.names, "result"):
            raise FailedRunError(f"round {line['round']} went otherwise: {outcomes}")


def _transfers(run: Run, history: list[dict[str, Any]]) -> None:
    """After a cut an update goes on from the last whole chunk; a process that died knows none."""
    setting = run.setting
    if setting.width < LARGE or any(each.lives > 1 for each in run.processes.values()):
        return
    cuts = sum(run.link(site).cuts for site in run.sites)
    came = sum(line["bytes_up"] for line in history)
    most = setting.rounds * setting.sites * 1.01 * setting.model_bytes + cuts * 1.1 * CHUNK_BYTES
    if came > most:
        raise FailedRunError(f"{came} bytes came up, with {cuts} cuts at most {most:.0f} should")


def _model(model: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if model.keys() != expected.keys():
        raise FailedRunError(f"the model has {sorted(model)}, not {sorted(expected)}")
    for name, tensor in expected.items():
        if not torch.equal(model[name], tensor):
            worst = float((model[name].double() - tensor.double()).abs().max())
            raise FailedRunError(
                f"the model is not that of the uninterrupted run: {name} differs by {worst:g}"
            )


def _trails(run: Run) -> None:
    """The server's trail agrees with what the run left, and with the trail of each site."""
    against = [word for site in run.sites.values() for word in ("--against", str(_trail(site)))]
    run.hanse("server", "audit", "--workspace", str(run.workspace), *against)


def _trail(site: Path) -> Path:
    return site / "state" / "audit.jsonl"


def _books(run: Run, site: str, history: list[dict[str, Any]]) -> None:
    """Ledger, audit trail and outbox of a site, against each other and against the witness."""
    state = run.sites[site] / "state"
    trail, ledger = _trail(run.sites[site]), state / "ledger.sqlite"
    verify.verify_ledger(ledger, trail, DELTA)
    released = Counter(line["id"] for line in read_chained(trail) if line["event"] == "released")
    truth = told(run.witness(site))
    left = {message for message, of in truth.items() if of.left}
    if untold := left - released.keys():
        raise FailedRunError(f"{site}: replies left that the trail does not tell: {untold}")
    book = read_ledger(ledger)
    if run.setting.private:
        _charges(run, site, book.entries(), truth)
        _every_round_charged(site, book.entries(), history)
    elif not run.may_refuse:
        # Each round is one message, however often it was asked for.
        bare = sum(len(account.unprotected) for account in book.accounts())
        if bare != run.setting.rounds:
            raise FailedRunError(f"{site}: {bare} messages trained {run.setting.rounds} rounds")
    held = _held(state / "outbox.sqlite")
    if held > MOST_HELD:
        raise FailedRunError(f"{site}: the outbox still holds {held} replies")


def _charges(run: Run, site: str, entries: list[Entry], truth: Mapping[str, Truth]) -> None:
    """No message has fewer charges than it cost, or more than the crashes explain."""
    messages: dict[tuple[str, int], set[str]] = defaultdict(set)
    for entry in entries:
        asked = entry.instruction
        messages[asked.kind, asked.server_round].add(asked.message_id)
    for (kind, number), ids in messages.items():
        if len(ids) > 1:
            raise FailedRunError(f"{site}: {kind} of round {number} came as {len(ids)} messages")
    charged = Counter(
        entry.instruction.message_id for entry in entries if entry.state != "taken back"
    )
    for message, of in truth.items():
        count = charged.get(message, 0)
        least = max(len(of.left), 1 if of.drew else 0)
        if count < least:
            raise FailedRunError(f"{site}: {message} cost {least} charges, {count} are counted")
    for message, count in charged.items():
        drew = len(truth[message].drew) if message in truth else 0
        # Each process that drew may cost a charge. Nobody sees who judged.
        most = max(1, drew) if drew else 1 + run.processes[site].deaths
        if count > most and site not in run.disks:  # a full disk loses what was paid for
            raise FailedRunError(f"{site}: {message} is charged {count} times, {most} explained")


def _every_round_charged(site: str, entries: list[Entry], history: list[dict[str, Any]]) -> None:
    charged = {
        entry.instruction.server_round
        for entry in entries
        if entry.instruction.kind == "train" and entry.state == "released"
    }
    folded = {
        line["round"] for line in history if line["sites"].get(site, {}).get("outcome") == "result"
    }
    if folded - charged:
        raise FailedRunError(f"{site}: rounds {sorted(folded - charged)} were never charged")


def _held(path: Path) -> int:
    outbox = Outbox(path)
    try:
        return len(outbox.instructions())
    finally:
        outbox.close()

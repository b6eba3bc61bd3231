"""The ledger's gate: what is charged, what is taken back, and what begins on which data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MessageType
from hanse.errors import DataChangedError, LedgerBrokenError, LedgerError
from hanse.records import Data, Records, read_records
from hanse_client.audit import read_audit
from hanse_client.ledger import Entry
from hanse_client.ledger.verify import verify_ledger

from tests.harbour import Harbour, job, site

SMALL = {"privacy": {"noise_multiplier": 60.0}}


def states(here: Harbour) -> list[str]:
    return [entry.state for entry in here.ledger.entries()]


def last(here: Harbour) -> Entry:
    return here.ledger.entries()[-1]


def events(here: Harbour) -> list[str]:
    return [line["event"] for line in read_audit(here.audit)]


def failing(where: str, here: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a part of training, or of its model, fail from now on."""

    def fail(*arguments: object, **settings: object) -> None:
        raise LedgerError(f"{where} failed")

    trainer = here.runtime.order.trainer
    monkeypatch.setattr(trainer if hasattr(trainer, where) else trainer.model, where, fail)


def test_a_charge_is_told_in_the_trail_with_all_that_a_recount_needs(
    harbour: Callable[..., Harbour],
) -> None:
    here = harbour()
    here.send(job(), name="a")
    line = next(line for line in read_audit(here.audit) if line["event"] == "charged")
    told = {key: line[key] for key in ("id", "run", "round", "type", "account", "fingerprints")}
    assert told == {
        "id": "a",
        "run": 1,
        "round": 1,
        "type": "train",
        "account": 1,
        "fingerprints": ["f" * 64],
    }
    assert (line["noise_multiplier"], line["sampling_rate"], line["steps"]) == (2.0, 0.5, 2)
    assert (line["row"], len(line["digest"])) == (2, 64)
    here.ledger.close()
    verified = verify_ledger(here.audit.with_name("ledger.sqlite"), here.audit, 1e-5)
    assert verified.rows == verified.told == 3


def test_what_failed_before_the_first_batch_is_taken_back(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harbour()
    here.send(job(**SMALL), name="a")
    failing("load", here, monkeypatch)
    assert here.send(job(**SMALL), name="b").has_error()
    assert states(here) == ["released", "taken back"]
    assert events(here)[-2:] == ["charge_taken_back", "refused"]
    monkeypatch.undo()
    assert here.send(job(**SMALL), name="b").has_content()
    assert states(here) == ["released", "taken back", "released"]


@pytest.mark.parametrize("where", ["_batch", "update"])
def test_what_failed_after_the_first_batch_stays(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    here = harbour()
    here.send(job(**SMALL), name="a")
    failing(where, here, monkeypatch)
    assert here.send(job(**SMALL), name="b").has_error()
    assert states(here) == ["released", "released"]
    monkeypatch.undo()
    assert here.send(job(**SMALL), name="b").has_content()
    assert states(here) == ["released"] * 3, "what came of the error may have left"


def test_a_reply_is_released_whatever_training_says_of_itself(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harbour()
    here.send(job(**SMALL), name="a")
    trainer = here.runtime.order.trainer
    train = trainer.train

    def forgetful(*arguments: Any) -> Any:
        result = train(*arguments)
        trainer.saw_records = False
        return result

    monkeypatch.setattr(trainer, "train", forgetful)
    assert here.send(job(**SMALL), name="b").has_content()
    assert states(here) == ["released", "released"]


def test_nothing_leaves_that_cannot_be_released(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harbour()

    def full(*_: object) -> None:
        raise LedgerError("no room")

    monkeypatch.setattr(here.ledger, "release", full)
    reply = here.send(job())
    assert reply.error.reason == "ledger"
    assert states(here) == ["reserved"]


# --- data -----------------------------------------------------------------------------------


def on(files: Data) -> Callable[[Any], Records]:
    return lambda task: read_records(task, files)


@pytest.fixture
def quay(tmp_path: Path) -> Harbour:
    """A site whose data is in files."""
    here = Harbour(tmp_path / "state", site(tmp_path, allow_training_without_privacy=True))
    for name in ("train", "test"):
        (tmp_path / name).write_text(name)
    here.runtime._read = on(Data(train=tmp_path / "train", test=tmp_path / "test"))
    return here


PLAIN = {"privacy": {"mechanism": "none"}}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(MessageType.TRAIN, {}), (MessageType.TRAIN, PLAIN), (MessageType.EVALUATE, {})],
)
@pytest.mark.parametrize("changed", ["train", "test"])
def test_changed_data_is_neither_trained_nor_judged_on(
    quay: Harbour, tmp_path: Path, kind: str, changes: dict[str, Any], changed: str
) -> None:
    quay.send(job(**SMALL), name="a")
    (tmp_path / changed).write_text("one more record")
    assert quay.send(job(**SMALL), name="b").has_content(), "what was read once stays as it was"

    other = job(name="next", **(SMALL | changes))
    reply: Message = quay.send(other, name="c", kind=kind)

    assert (reply.error.code, reply.error.reason) == (DataChangedError.exit_code, "data_changed")
    assert states(quay) == ["released", "released"]
    refused = read_audit(quay.audit)[-1]
    assert refused["label"] == "data_changed"

    quay.ledger.adopt(quay.runtime.order.records.fingerprints, 1)
    assert quay.send(other, name="c", kind=kind).has_content()
    assert events(quay).count("data_adopted") == 1


def test_the_same_records_by_any_name_are_one_account(quay: Harbour, tmp_path: Path) -> None:
    quay.send(job(**SMALL), name="a")
    folder = tmp_path / "moved" / "below"
    folder.mkdir(parents=True)
    (tmp_path / "train").rename(folder / "other.csv")
    quay.runtime._read = on(Data(train=tmp_path / "moved", test=tmp_path / "test"))
    quay.runtime.site = quay.runtime.site.model_copy(update={"name": "another"})
    assert quay.send(job(name="next", **SMALL), name="b").has_content()
    assert states(quay) == ["released", "released"]
    assert events(quay).count("account_opened") == 1


def test_the_first_data_may_be_judged_on_before_it_is_trained_on(quay: Harbour) -> None:
    quay.send(job(**SMALL), name="a", kind=MessageType.EVALUATE)
    assert events(quay)[0] == "account_opened"
    assert quay.send(job(**SMALL), name="b").has_content()
    assert events(quay).count("account_opened") == 1


def test_only_training_without_privacy_is_noted_as_such(quay: Harbour) -> None:
    plain = job(**PLAIN)
    quay.send(plain, name="a", kind=MessageType.EVALUATE)
    assert "unprotected" not in events(quay)
    quay.send(plain, name="b")
    quay.send(plain, name="b")
    assert events(quay).count("unprotected") == 1


def test_an_evaluation_with_a_charge_is_charged(
    quay: Harbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = quay.runtime.accept

    def charged(message: Message) -> Any:
        order = accept(message)
        quay.runtime._order = replace(order, charge=order.plan.charge)
        return quay.runtime._order

    monkeypatch.setattr(quay.runtime, "accept", charged)
    quay.send(job(**SMALL), name="a", kind=MessageType.EVALUATE)
    entry = last(quay)
    assert (entry.instruction.kind, entry.state) == ("evaluate", "released")
    statement = quay.ledger.statement(entry.fingerprints[0], quay.runtime.site.budget)
    assert (statement.rounds, statement.evaluations) == (0, 1)


def test_a_site_whose_trail_was_cut_does_not_open(tmp_path: Path) -> None:
    here = Harbour(tmp_path, site(tmp_path))
    here.send(job())
    here.ledger.close()
    here.audit.write_text("")
    with pytest.raises(LedgerBrokenError, match="lines were removed from the trail"):
        Harbour(tmp_path, site(tmp_path))

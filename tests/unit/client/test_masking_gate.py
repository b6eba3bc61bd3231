"""The gates in a secure round: no session, no training; no mask, no release."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType
from hanse.flower import ARRAYS, CONFIG, METRICS, error_label
from hanse.job import Job
from hanse.secagg.cohort import Announcement, SessionId
from hanse.secagg.messages import (
    KEYS,
    SESSION,
    SHARES,
    SITES,
    SURVIVORS,
    UNMASK,
    pack_cohort,
    pack_named,
    read_announcement,
    read_named,
)
from hanse_client.audit import read_audit
from hanse_client.secagg import masking_of, simulated
from hanse_client.secagg.session import Session

from tests.harbour import Harbour, job

TOKEN = "a" * 32
MASKING = import_module("hanse_client.gates.masking")  # the package has functions of these names
EGRESS = import_module("hanse_client.gates.egress")


class Visited:
    """A harbour with two other sites; a test says what the server sends."""

    def __init__(self, here: Harbour, job: Job) -> None:
        self.here, self.job = here, job
        here.runtime.masking = masking_of(here.runtime.site, simulated("harbour"))
        self._sent = 0
        self.names = ["harbour", "north", "south"]
        session = SessionId(run_id=1, server_round=1, token=TOKEN, job=job.digest)
        self.others = {
            name: Session(
                session,
                job.secure_aggregation,
                identity=simulated(name)(),
                weight=1.0,
                min_sites=2,
            )
            for name in self.names[1:]
        }

    def send(self, kind: str, **more: Any) -> Message:
        self._sent += 1
        more = {SESSION: TOKEN, **more}
        return self.here.send(self.job, kind=kind, name=str(self._sent), more=more)

    def share(self) -> dict[str, dict[str, bytes]]:
        own = self.send(KEYS).content.config_records[CONFIG]
        members: list[Announcement] = [
            read_announcement(own, "harbour"),
            *(other.announce() for other in self.others.values()),
        ]
        reply = self.send(SHARES, **pack_cohort(members))
        sealed = {"harbour": read_named(reply.content.config_records[CONFIG], "shares")}
        return sealed | {name: other.share(members) for name, other in self.others.items()}

    def train(self) -> Message:
        return self.send(MessageType.TRAIN, **{SITES: self.names})


@pytest.fixture
def visited(harbour: Callable[..., Harbour]) -> Visited:
    return Visited(harbour(release=("update_norm",)), job(secure_aggregation={"enabled": True}))


def test_a_secure_round_is_charged_once_and_leaves_masked(visited: Visited) -> None:
    visited.share()
    assert visited.here.spent() == 0, "no stage but training costs anything"
    reply = visited.train()
    arrays = reply.content.array_records[ARRAYS]
    assert {array.dtype for array in arrays.values()} == {"uint32"}
    assert "update_norm" not in reply.content.metric_records[METRICS]
    spent = visited.here.spent()
    assert spent > 0
    assert error_label(visited.train().error) == "secure_aggregation"
    assert visited.here.spent() == spent
    (line,) = [x for x in read_audit(visited.here.audit) if x.get("bytes")]
    assert (line["type"], line["masked"]) == (MessageType.TRAIN, True)


def test_all_stages_pass_the_gates(visited: Visited) -> None:
    sealed = visited.share()
    assert visited.train().has_content()
    for other in visited.others.values():
        other.begin_training(visited.names)
        other.mask({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)})
    own = visited.send(SURVIVORS, **{SITES: visited.names})
    signatures = {n: other.consent(visited.names) for n, other in visited.others.items()}
    signatures["harbour"] = bytes(own.content.config_records[CONFIG]["signature"])  # type: ignore[arg-type]
    shares = {sender: each["harbour"] for sender, each in sealed.items() if "harbour" in each}
    asked = {
        SITES: visited.names,
        **pack_named("signatures", signatures),
        **pack_named("shares", shares),
    }
    reply = visited.send(UNMASK, **asked)
    assert set(read_named(reply.content.config_records[CONFIG], "revealed")) == set(visited.names)
    assert error_label(visited.send(UNMASK, **asked).error) == "secure_aggregation", "once"
    assert set(reply.content) == {CONFIG}


def test_training_without_a_session_is_refused_before_any_charge(visited: Visited) -> None:
    assert error_label(visited.train().error) == "secure_aggregation"
    assert visited.here.spent() == 0


def test_training_for_another_session_is_refused(visited: Visited) -> None:
    visited.share()
    reply = visited.here.send(visited.job, more={SESSION: "b" * 32, SITES: visited.names})
    assert "not open at this site" in (reply.error.reason or "")
    assert visited.here.spent() == 0


def test_a_session_does_not_begin_twice(visited: Visited) -> None:
    visited.share()
    assert "has begun" in (visited.send(KEYS).error.reason or "")


def test_a_restarted_site_has_no_session(visited: Visited) -> None:
    visited.share()
    visited.here.runtime.masking = masking_of(visited.here.runtime.site, simulated("harbour"))
    assert "started again" in (visited.train().error.reason or "")


def test_a_stage_of_a_job_without_secure_aggregation_is_refused(
    harbour: Callable[..., Harbour],
) -> None:
    reply = harbour().send(job(), kind=KEYS, more={SESSION: TOKEN})
    assert "asks for no secure aggregation" in (reply.error.reason or "")


def test_a_site_may_require_it(harbour: Callable[..., Harbour]) -> None:
    here = harbour(secure_aggregation={"required": True})
    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        reply = here.send(job(), kind=kind)
        assert error_label(reply.error) == "policy"
        assert "policy.secure_aggregation.required" in (reply.error.reason or "")
    assert here.spent() == 0


@pytest.mark.parametrize("kind", ["query.default", "train.default"])
def test_no_other_message_type_passes(kind: str, visited: Visited) -> None:
    assert error_label(visited.send(kind).error) == "policy"


@pytest.mark.parametrize("damage", ["missing", "length", "type", "long"])
def test_a_malformed_cohort_is_refused(damage: str, visited: Visited) -> None:
    own = visited.send(KEYS).content.config_records[CONFIG]
    members = [read_announcement(own, "harbour"), *(o.announce() for o in visited.others.values())]
    asked: dict[str, Any] = pack_cohort(members)
    match damage:
        case "missing":
            del asked["weights"]
        case "length":
            asked["weights"] = asked["weights"][1:]
        case "type":
            asked["signatures"] = ["text"] * 3
        case "long":
            asked["credentials"] = [b"x" * 100_000] * 3
    reply = visited.send(SHARES, **asked)
    assert error_label(reply.error) == "secure_aggregation"


def test_an_update_that_was_not_masked_does_not_leave(
    visited: Visited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the masking gate out of order, the last gate holds."""
    visited.share()
    monkeypatch.setattr(MASKING, "_masked", lambda session, content: content)
    reply = visited.train()
    assert error_label(reply.error) == "secure_aggregation"
    assert "not masked" in (reply.error.reason or "")


def test_without_that_guard_it_would(visited: Visited, monkeypatch: pytest.MonkeyPatch) -> None:
    visited.share()
    monkeypatch.setattr(MASKING, "_masked", lambda session, content: content)
    monkeypatch.setattr(EGRESS, "check_masked", lambda arrays: None)
    arrays: ArrayRecord = visited.train().content.array_records[ARRAYS]
    assert {array.dtype for array in arrays.values()} == {"float32"}

"""Each attack of the table of hostile servers is refused by its name, before any work."""

from __future__ import annotations

import pytest
from flwr.app import MessageType
from hanse.flower import METRICS, WEIGHT, error_label
from hanse.wire import hanse_pb2 as pb

from tests.attacks.besieged import Besieged, Tyrant, content, rogue
from tests.attacks.hostile_servers import INSTRUCTED, STREAMED, Instructed, Streamed
from tests.attacks.hostile_sites import ESCAPE
from tests.harbour import job
from tests.loopback import Loopback, wait_until

HONEST = {"privacy": {"noise_multiplier": 60.0}}


@pytest.mark.parametrize("case", INSTRUCTED, ids=lambda case: case.does)
def test_instructed(loopback: Loopback, case: Instructed) -> None:
    """Nothing is trained or charged; the reply, the trail and the metrics name the refusal."""
    tyrant, here = Tyrant(loopback.server()), Besieged(loopback, **case.policy)
    case.before(tyrant)
    charged, refused = here.trained, len(here.told)

    reply = tyrant.send(case.ask(), **case.false)

    assert reply.has_error()
    assert error_label(reply.error) == case.label
    assert here.trained == charged
    (line,) = here.told[refused:]
    assert (line["event"], line["label"]) == ("refused", case.label)
    assert case.told in line["reason"]
    assert line["reason"].isprintable()
    assert here.refusals(case.label) == 1
    again = tyrant.send(content(job(), 5), id="c" * 32, kind=MessageType.QUERY)
    assert again.has_content()  # and the site is there for who asks what it allows


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.does)
def test_streamed(loopback: Loopback, case: Streamed) -> None:
    """The site ends the stream, and tells why where its administrator looks."""
    with rogue(loopback, case.script):
        here = Besieged(loopback)
        wait_until(lambda: any(line["event"] == "stream_ended" for line in here.told))
        here.client.stop()
    line = next(line for line in here.told if line["event"] == "stream_ended")
    assert line["label"] == case.label
    assert case.told in line["reason"]
    assert here.refusals(case.label) >= 1
    assert here.trained == []


def test_metrics_that_the_policy_does_not_list_stay(loopback: Loopback) -> None:
    """There is nothing in an instruction by which a server could ask for them."""
    tyrant = Tyrant(loopback.server())
    Besieged(loopback, release=(), count=3.0)
    reply = tyrant.send(content(job()))
    assert dict(reply.content.metric_records[METRICS]) == {WEIGHT: 3.0}


def test_an_instruction_that_comes_again_is_answered_from_the_outbox(loopback: Loopback) -> None:
    tyrant, here = Tyrant(loopback.server()), Besieged(loopback)
    first = tyrant.send(content(job(**HONEST)))
    again = tyrant.send(content(job(**HONEST)))
    assert first.content == again.content
    assert here.trained == ["a" * 32]


def test_a_round_under_another_id_is_charged_again(loopback: Loopback) -> None:
    """A server that asks twice learns twice: the ledger has both, and the budget ends it."""
    tyrant, here = Tyrant(loopback.server()), Besieged(loopback)
    for id_ in ("a" * 32, "b" * 32):
        assert tyrant.send(content(job(**HONEST)), id=id_).has_content()
    assert here.trained == ["a" * 32, "b" * 32]


def test_a_farewell_writes_nothing_into_the_terminal(loopback: Loopback) -> None:
    async def script(stream: object) -> None:
        last = pb.Goodbye(reason="policy", message=f"{ESCAPE}\nerror: all is well" * 9999)
        await stream.write(pb.ServerFrame(goodbye=last))  # type: ignore[attr-defined]

    with rogue(loopback, script):
        error = Besieged(loopback).client.await_end()
    assert error is not None
    assert error.label == "policy"
    assert error.message.isprintable()
    assert len(error.message) <= 1000

"""Workers of a simulation: what goes through their pipes, which GPU they see, how they end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app import Error as FlowerError
from flwr.clientapp import ClientApp
from hanse.flower import become_server_app, to_record
from hanse_server.simulation.process import ProcessEngine
from hanse_server.simulation.worker import Pipe

SITES = {number: f"site-{number}" for number in (11, 12, 13, 14)}


def make_app(described: str) -> ClientApp:
    """Sites that tell who they are, and what their process sees."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        told = ConfigRecord({"pid": os.getpid(), "gpu": seen, "described": described})
        return Message(RecordDict({"told": told}), reply_to=message)

    return app


def questions() -> list[Message]:
    content = RecordDict({"asked": ConfigRecord({"what": 1})})
    return [Message(content, node, "query") for node in SITES]


@pytest.fixture(autouse=True)
def server_app() -> None:
    become_server_app(7)


@pytest.fixture
def engine(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ProcessEngine]:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: getattr(request, "param", 0))
    made = ProcessEngine(f"{__name__}:make_app", "these", SITES, workers=2)
    yield made
    made.close()


def told(replies: Iterator[Message]) -> dict[int, ConfigRecord]:
    found = {}
    for reply in replies:
        assert not reply.has_error(), reply.error
        found[reply.metadata.src_node_id] = reply.content.config_records["told"]
    return found


@pytest.mark.parametrize("engine", [3], indirect=True)
def test_each_worker_sees_a_gpu_of_its_own(engine: ProcessEngine) -> None:
    found = told(engine.execute(questions()))

    assert [found[node]["gpu"] for node in SITES] == ["0", "1", "0", "1"]
    assert all(each["described"] == "these" for each in found.values())


def test_where_there_is_one_gpu_or_none_workers_see_what_there_is(engine: ProcessEngine) -> None:
    assert {each["gpu"] for each in told(engine.execute(questions())).values()} == {"all"}


def test_of_the_gpus_that_are_visible_workers_share_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    engine = ProcessEngine(f"{__name__}:make_app", "these", SITES, workers=2)
    found = told(engine.execute(questions()))
    engine.close()

    assert [found[node]["gpu"] for node in SITES] == ["5", "7", "5", "7"]


def test_a_worker_that_died_while_it_was_idle_answers_with_an_error_and_is_started_anew(
    engine: ProcessEngine,
) -> None:
    before = told(engine.execute(questions()))
    engine._workers[0].process.kill()
    engine._workers[0].process.join()

    first = list(engine.execute(questions()))
    after = told(engine.execute(questions()))

    errors = [reply.error for reply in first if reply.has_error()]
    assert [error.reason for error in errors] == ["worker_died"]
    assert after[11]["pid"] != before[11]["pid"]
    assert after[12]["pid"] == before[12]["pid"]


def test_a_content_that_many_sites_are_sent_goes_through_the_pipe_once() -> None:
    ours, theirs = (Pipe(end) for end in multiprocessing.Pipe())
    arrays = to_record({"w": torch.ones(10_000)})
    content, other = (RecordDict({"arrays": arrays}) for _ in range(2))
    sizes, received = [], []
    write = ours.connection.send_bytes
    ours.connection.send_bytes = lambda data: (sizes.append(len(data)), write(data))  # type: ignore

    for node, each in ((11, content), (12, content), (13, other)):
        ours.send(Message(each, node, "train"), SITES[node])
        received.append(theirs.receive())

    assert [site for _, site in received] == ["site-11", "site-12", "site-13"]
    assert [message.metadata.dst_node_id for message, _ in received] == [11, 12, 13]
    assert all(message.content == content for message, _ in received)
    assert received[1][0].content is received[0][0].content
    assert sum(size > 40_000 for size in sizes) == 2


def test_an_error_between_two_messages_of_one_content_changes_neither() -> None:
    ours, theirs = (Pipe(end) for end in multiprocessing.Pipe())
    content = RecordDict({"arrays": to_record({"w": torch.ones(3)})})
    asked = Message(content, 11, "train")
    for message in (asked, Message(FlowerError(1, "no"), reply_to=asked), asked):
        ours.send(message)
        found, _ = theirs.receive()
        assert found.has_error() == message.has_error()
        assert found.has_error() or found.content == content

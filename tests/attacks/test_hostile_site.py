"""Each attack of the table of hostile sites is refused by its name, and harms nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import torch
from flwr.app import Message, RecordDict
from hanse.flower import ARRAYS, to_record, to_tensors
from hanse.identity import node_id_of
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history

from tests.attacks.hostile_sites import (
    AT_THE_DOOR,
    IN_A_ROUND,
    ON_THE_STREAM,
    AtTheDoor,
    InARound,
    OnTheStream,
)
from tests.attacks.liar import HONEST, LIAR, enter, envelope_of, honest, job, round_of, update
from tests.loopback import Loopback, RunningServer


def value(server: RunningServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"hanse_server_{name}_total", labels) or 0.0


@pytest.fixture
def server(loopback: Loopback) -> RunningServer:
    """A server with two honest sites, and a liar that is registered."""
    loopback.issue(LIAR)
    server = loopback.server()
    for name in HONEST:
        loopback.client(name, honest)
    server.await_sites(*HONEST)
    return server


@pytest.fixture
def impatient(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for no more than a second from now on: the honest sites are there."""
    monkeypatch.setattr("hanse_server.link.reception.HELLO_SECONDS", 1.0)
    monkeypatch.setattr("hanse_server.link.reception.WATCH_SECONDS", 0.1)
    monkeypatch.setattr("hanse_server.link.slots.PROGRESS_SECONDS", 1.0)


def ask(server: RunningServer, *names: str) -> tuple[list[str], Iterator[Message]]:
    """Send a model to sites: the ids of the instructions, and what is answered."""
    grid = server.grid()
    content = RecordDict({ARRAYS: to_record(update())})
    messages = [Message(content, node_id_of(name), "train") for name in names]
    replies = iter(grid.send_and_receive(messages, timeout=20))
    return list(grid._awaited), replies


@pytest.mark.parametrize("case", IN_A_ROUND, ids=lambda case: case.does)
def test_in_a_round(
    loopback: Loopback, server: RunningServer, tmp_path: Path, case: InARound
) -> None:
    """The offender is out of the round, with name and reason; the others' mean is the model."""
    loop = round_of(server, tmp_path / "run", job())
    loop._resume()
    before = to_tensors(loop._arrays)

    async def attack() -> None:
        async with enter(loopback) as liar:
            running = asyncio.create_task(asyncio.to_thread(loop.run))
            attacking = asyncio.create_task(case.attack(liar, await liar.asked()))
            await running
            attacking.cancel()  # where the server has not asked for the body

    asyncio.run(attack())

    (line,) = read_history(tmp_path / "run")
    outcomes = {name: site["outcome"] for name, site in line["sites"].items()}
    assert outcomes == {"east": "result", "west": "result", LIAR: case.label}
    reason = line["sites"][LIAR]["reason"]
    assert reason.isprintable()
    assert 0 < len(reason) <= 500
    assert value(server, "replies", site=LIAR, outcome=case.label) == 1
    after = load_model(tmp_path / "run" / "models" / "last.safetensors")
    for name, change in update().items():
        assert torch.allclose(after[name], before[name] + change)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", ON_THE_STREAM, ids=lambda case: case.does)
def test_on_the_stream(loopback: Loopback, server: RunningServer, case: OnTheStream) -> None:
    """The offender is sent away by name, and the others are answered for."""

    loopback.issue("absent")

    async def attack() -> str:
        async with enter(loopback) as liar:
            (_, others), _kept = ask(server, LIAR, "absent")
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it is cut short
                await case.attack(liar, envelope_of(others))
            return await liar.farewell()

    assert asyncio.run(attack()) == case.label
    assert value(server, "site_dismissed", site=LIAR, reason=case.label) == 1
    _, replies = ask(server, *HONEST)
    assert [reply.has_content() for reply in replies] == [True, True]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", AT_THE_DOOR, ids=lambda case: case.does)
def test_at_the_door(loopback: Loopback, server: RunningServer, case: AtTheDoor) -> None:
    """Nobody gets in who may not; who is there already stays and works."""

    assert asyncio.run(case.attack(loopback)) == case.label
    assert value(server, "connections_refused", reason=case.label) >= 1
    _, replies = ask(server, *HONEST)
    assert [reply.has_content() for reply in replies] == [True, True]

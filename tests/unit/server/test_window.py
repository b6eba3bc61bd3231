"""What is on its way to a crowd stays within bounds, and nobody waits for who takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from hanse.flower import ARRAYS, to_record
from hanse.wire.message import CHUNK_BYTES, Encoded, encode
from hanse_server.link import window as windows
from hanse_server.link.window import LEAST, ON_THE_WAY, WINDOW, SendWindow, least_piece


@pytest.mark.parametrize("sites", [0, 1, 8, 128, 129, 1000, 2048, 10_000])
def test_the_least_pieces_of_all_sites_together_are_bounded(sites: int) -> None:
    size = least_piece(sites)
    assert LEAST <= size <= CHUNK_BYTES
    assert size == LEAST or size * sites <= ON_THE_WAY


def pieces(encoded: Encoded, start: int, most: int) -> list[tuple[memoryview, ...]]:
    found = []
    while start < encoded.body_size:
        found.append(encoded.piece(start, most))
        start += sum(map(len, found[-1]))
    return found


@pytest.mark.parametrize("most", [1, 1000, 4096, CHUNK_BYTES])
@pytest.mark.parametrize("start", [0, 999, 5000])
def test_a_body_is_whole_in_pieces_of_any_size(most: int, start: int) -> None:
    tensors = {"a": torch.randn(1500), "none": torch.empty(0), "b": torch.randn(700)}
    encoded = encode(RecordDict({ARRAYS: to_record(tensors)}))
    found = pieces(encoded, start, most)

    whole = b"".join(encoded.body)
    assert b"".join(part for parts in found for part in parts) == whole[start:]
    assert all(sum(map(len, parts)) == most for parts in found[:-1])
    assert encoded.piece(len(whole), most) == ()


def test_a_body_of_nothing_has_no_piece() -> None:
    assert encode(RecordDict()).piece(0, 100) == ()


# --- turns ----------------------------------------------------------------------------------------


class Sites:
    """Pieces on their way, each until it is told to have arrived."""

    def __init__(self, most: int) -> None:
        self.window = SendWindow(most)
        self.granted: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._arrived: dict[str, asyncio.Event] = {}

    async def send(self, name: str, asked: int, least: int = 10) -> None:
        async def sent() -> None:
            async with self.window.turn(asked, least) as size:
                self.granted[name] = size
                await self._arrived[name].wait()
            del self.granted[name]

        self._arrived[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(sent())
        await settled()

    async def arrives(self, name: str) -> None:
        self._arrived[name].set()
        await settled()

    async def breaks_off(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        self.granted.pop(name, None)
        await settled()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


Scene = Callable[[Sites], Coroutine[Any, Any, None]]


def play(most: int, scene: Scene) -> None:
    asyncio.run(scene(Sites(most)))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TURN_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
def test_who_finds_no_room_waits_for_it_in_turn() -> None:
    async def scene(sites: Sites) -> None:
        for name, asked in (("a", 60), ("b", 60), ("c", 30)):
            await sites.send(name, asked)
        assert sites.granted == {"a": 60}, "c would fit, but b was there before it"
        await sites.arrives("a")
        assert sites.granted == {"b": 60, "c": 30}
        await sites.send("d", 10)
        assert sites.granted == {"b": 60, "c": 30, "d": 10}
        await sites.send("e", 11)
        assert "e" not in sites.granted
        await sites.arrives("d")
        assert "e" not in sites.granted, "what is small takes no room, and leaves none"
        await sites.arrives("c")
        assert sites.granted == {"b": 60, "e": 11}

    play(100, scene)


@pytest.mark.usefixtures("patient")
def test_who_breaks_off_leaves_its_room_or_its_place_to_others() -> None:
    async def scene(sites: Sites) -> None:
        for name, asked in (("a", 60), ("b", 60), ("c", 30)):
            await sites.send(name, asked)
        await sites.breaks_off("b")
        assert sites.granted == {"a": 60, "c": 30}
        await sites.breaks_off("a")
        await sites.send("d", 70)
        assert sites.granted == {"c": 30, "d": 70}

    play(100, scene)


@pytest.mark.usefixtures("patient")
def test_a_turn_that_comes_as_its_site_breaks_off_is_no_bodys() -> None:
    async def scene(sites: Sites) -> None:
        for name in ("a", "b"):
            await sites.send(name, 100)
        sites._arrived["a"].set()
        await asyncio.sleep(0)  # a gives back, and b has its turn without knowing
        assert not sites.window._waiting
        assert "b" not in sites.granted
        await sites.breaks_off("b")
        await sites.send("c", 100)
        assert sites.granted == {"c": 100}

    play(100, scene)


def test_who_waits_too_long_goes_on_with_a_small_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TURN_SECONDS", 0.05)

    async def scene(sites: Sites) -> None:
        await sites.send("takes nothing", 100)
        await sites.send("b", 50)
        assert "b" not in sites.granted
        await asyncio.sleep(0.2)
        assert sites.granted == {"takes nothing": 100, "b": 10}
        await sites.arrives("b")
        await sites.arrives("takes nothing")
        await sites.send("c", 100)
        assert sites.granted == {"c": 100}, "the window is what it was"

    play(100, scene)


def test_a_piece_is_never_larger_than_the_largest() -> None:
    async def scene() -> None:
        window = SendWindow()
        async with AsyncExitStack() as stack:
            found = [
                await stack.enter_async_context(window.turn(1 << 40, LEAST))
                for _ in range(WINDOW // CHUNK_BYTES)
            ]
            assert set(found) == {CHUNK_BYTES}

    asyncio.run(scene())

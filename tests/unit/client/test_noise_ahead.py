"""Noise is drawn in threads before it is asked for, and each value of it is still used once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch
from hanse_client.privacy import ahead
from hanse_client.privacy import noise as noises
from hanse_client.privacy.ahead import NoiseAhead
from hanse_client.privacy.noise import SecureNoise
from torch import Tensor


@pytest.fixture(autouse=True)
def however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WORTHWHILE", 0)


class Numbered:
    """Not noise but 1, 2, 3, ..., no number twice; with the threads that drew."""

    def __init__(self) -> None:
        self.drawn, self.threads = 0, list[str]()
        self._one = threading.Lock()

    def standard_normals(self, count: int) -> Tensor:
        with self._one:
            self.threads.append(threading.current_thread().name)
            self.drawn += count
            return torch.arange(self.drawn - count + 1, self.drawn + 1, dtype=torch.float64)


def asked(noise: NoiseAhead, counts: list[int]) -> list[float]:
    found = [noise.standard_normals(count) for count in counts]
    assert [len(each) for each in found] == counts
    return torch.cat(found).tolist()


def test_what_was_begun_is_given_once_and_drawn_by_threads() -> None:
    source, counts = Numbered(), [3, 1, 4, 1, 5]
    noise = NoiseAhead(source)
    noise.begin(counts)
    found = asked(noise, counts)
    assert sorted(found) == list(range(1, 15))
    assert all(each.startswith("noise") for each in source.threads)


def test_without_a_beginning_it_draws_at_once() -> None:
    source = Numbered()
    assert asked(NoiseAhead(source), [2, 3]) == [1, 2, 3, 4, 5]
    assert set(source.threads) == {threading.current_thread().name}


def test_a_step_that_failed_leaves_nothing_to_the_next() -> None:
    source = Numbered()
    noise = NoiseAhead(source)
    noise.begin([5, 5])
    before = asked(noise, [5])
    noise.begin([5, 5])
    after = asked(noise, [5, 5])
    assert len({*before, *after}) == 15


class AtOnce(Executor):
    """Threads that have always drawn by the time they are looked at."""

    def submit(self, draw: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        drawn = Future[Any]()
        drawn.set_result(draw(*arguments, **named))
        return drawn


def test_few_draws_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AHEAD", 3)
    monkeypatch.setattr(ahead, "threads", lambda purpose, count: AtOnce())
    source = Numbered()
    noise = NoiseAhead(source)
    noise.begin([1] * 10)
    assert source.drawn == 3
    for drawn in (4, 5, 6, 7, 8, 9, 10, 10, 10, 10):
        noise.standard_normals(1)
        assert source.drawn == drawn


def test_what_fails_in_a_thread_fails_the_step() -> None:
    class Broken:
        def standard_normals(self, count: int) -> Tensor:
            raise MemoryError("no room for noise")

    noise = NoiseAhead(Broken())
    noise.begin([1])
    with pytest.raises(MemoryError, match="no room for noise"):
        noise.standard_normals(1)


def test_noise_for_which_there_was_no_room_is_drawn_once_it_is_asked_for() -> None:
    class Crowded(Numbered):
        def standard_normals(self, count: int) -> Tensor:
            if threading.current_thread().name.startswith("noise"):
                raise torch.OutOfMemoryError("the pass takes it all")
            return super().standard_normals(count)

    noise = NoiseAhead(Crowded())
    noise.begin([3, 2])
    assert asked(noise, [3, 2]) == [1, 2, 3, 4, 5]


def test_other_values_than_were_begun_are_refused() -> None:
    noise = NoiseAhead(Numbered())
    noise.begin([3])
    with pytest.raises(AssertionError, match="3 values was begun, and 4"):
        noise.standard_normals(4)


def test_a_small_draw_is_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WORTHWHILE", 10)
    source = Numbered()
    noise = NoiseAhead(source)
    noise.begin([4, 5])
    assert asked(noise, [4, 5]) == list(range(1, 10))
    assert set(source.threads) == {threading.current_thread().name}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys that were drawn from the operating system."""
    drawn, urandom = list[bytes](), os.urandom

    def counted(size: int) -> bytes:
        found = urandom(size)
        if size == 32:
            drawn.append(found)
        return found

    monkeypatch.setattr(os, "urandom", counted)
    return drawn


def test_each_thread_draws_under_a_key_of_its_own(keys: list[bytes]) -> None:
    source, together = SecureNoise(), threading.Barrier(3)
    drawn: list[list[float]] = []

    def draw() -> None:
        together.wait()
        drawn.append(source.standard_normals(100).tolist())

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for each in threads:
        each.start()
    draw()
    for each in threads:
        each.join()
    assert len(set(keys)) == 3
    assert len({value for values in drawn for value in values}) == 300


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_makes_the_normals_of_the_words_of_the_cipher(keys: list[bytes]) -> None:
    gpu, sums = torch.device("cuda"), torch.zeros(2 * noises.GPU_BLOCK + 5, device="cuda")
    drawn = list[Tensor]()

    class Noted(SecureNoise):
        def words(self, count: int, *, pinned: bool) -> Tensor:
            found = super().words(count, pinned=pinned)
            drawn.append(found.clone())
            return found

    source = NoiseAhead(Noted(), gpu)
    for _ in range(2):
        source.begin(noises.draws([sums]))
        noises.noised([sums], 1.0, 1.0, source)
    assert len({tuple(words[:4].tolist()) for words in drawn}) == len(drawn) == 6
    found = source.standard_normals(1001)
    assert found.device.type == "cuda"
    expected = torch.empty(1001, dtype=torch.float64)
    noises.box_muller(drawn[-1], expected)
    assert torch.allclose(found.cpu(), expected, rtol=1e-12, atol=1e-13)
    values = (sums / 2.0**0.5).double()  # two steps' noise: of twice the variance
    assert float(values.std()) == pytest.approx(1.0, abs=0.002)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.002)
    assert float(values.pow(4).mean()) == pytest.approx(3.0, abs=0.02)

"""The noise of a step, drawn while the step is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from typing import TypeAlias

import torch
from hanse.threads import threads
from torch import Tensor

from hanse_client.privacy.noise import NoiseSource, SecureNoise, box_muller

AHEAD = 2**23
"""Values under way or ready at once: 64 MiB."""

AHEAD_OF_GPU = 2**25
"""The same for a GPU, which takes them faster than they are drawn: 256 MiB."""

WORTHWHILE = 2**17
"""Values of a step below which handing them from thread to thread takes as long as it saves."""

CPU = torch.device("cpu")


_Drawn: TypeAlias = tuple[Tensor, torch.cuda.Event | None]
"""Values, and when they are there, for a GPU."""


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream that noise is made on, one for all steps on a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class NoiseAhead:
    """A source that draws in threads what will be asked for, from the moment that is known.

    While a GPU works on a step, the processor has little else to do; and while a processor does,
    its other cores. As many threads draw at a time as torch computes with, at least one. Of
    :class:`SecureNoise` for a GPU they draw the words, in memory that the GPU fetches them from,
    and have it make normals of those beside its other work.

    Args:
        source: draws; of several threads at a time, if there are.
        device: that the values will be used on.
    """

    def __init__(self, source: NoiseSource, device: torch.device = CPU) -> None:
        self._source = source
        self._words = source if isinstance(source, SecureNoise) and device.type == "cuda" else None
        self._device = device
        self._beside = None if self._words is None else _beside(device)
        self._counts: Iterator[int] = iter(())
        self._drawing: deque[tuple[int, Future[_Drawn]]] = deque()
        self._under_way = 0
        self._most = AHEAD if self._words is None else AHEAD_OF_GPU

    def begin(self, counts: Sequence[int]) -> None:
        """Begin to draw for calls of :meth:`standard_normals` with ``counts``, in this order.

        What was begun before and not asked for is dropped: nothing is ever given twice.
        """
        self._drawing.clear()
        self._under_way = 0
        worthwhile = self._words is not None or sum(counts) >= WORTHWHILE
        self._counts = iter(counts if worthwhile else ())
        self._begin_more()

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, shape (count,); on the device, if that made them."""
        if not self._drawing:
            return self._ready(self._draw(count))
        begun, drawn = self._drawing.popleft()
        self._under_way -= begun
        self._begin_more()
        if begun != count:
            raise AssertionError(f"noise for {begun} values was begun, and {count} are asked for")
        try:
            return self._ready(drawn.result())
        except torch.OutOfMemoryError:  # a GPU has room again, once the pass is over
            return self._ready(self._draw(count))

    def _draw(self, count: int) -> _Drawn:
        if self._words is None or self._beside is None:
            return self._source.standard_normals(count), None
        with torch.cuda.stream(self._beside):
            words = self._words.words(count, pinned=True).to(self._device, non_blocking=True)
            normals = torch.empty(count, dtype=torch.float64, device=self._device)
            box_muller(words, normals)
            return normals, self._beside.record_event()

    def _ready(self, drawn: _Drawn) -> Tensor:
        """For the stream of who asks."""
        normals, made = drawn
        if made is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(made)
            normals.record_stream(stream)
        return normals

    def _begin_more(self) -> None:
        while self._under_way < self._most:
            count = next(self._counts, None)
            if count is None:
                return
            drawn = threads("noise", torch.get_num_threads()).submit(self._draw, count)
            self._drawing.append((count, drawn))
            self._under_way += count

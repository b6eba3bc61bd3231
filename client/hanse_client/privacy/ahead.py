"""The noise of a step, drawn while the step is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import torch
from hanse.threads import threads
from torch import Tensor

from hanse_client.privacy.noise import NoiseSource

AHEAD = 64
"""Draws under way or ready at once: with blocks of noise, 64 MiB at most."""

WORTHWHILE = 2**17
"""Values of a step below which handing them from thread to thread takes as long as it saves."""


class NoiseAhead:
    """A source that draws in threads what will be asked for, from the moment that is known.

    While a GPU works on a step, the processor has little else to do; and while a processor does,
    its other cores. As many threads draw at a time as torch computes with, at least one.

    Args:
        source: draws; of several threads at a time, if there are.
    """

    def __init__(self, source: NoiseSource) -> None:
        self._source = source
        self._counts: Iterator[int] = iter(())
        self._drawing: deque[tuple[int, Future[Tensor]]] = deque()

    def begin(self, counts: Sequence[int]) -> None:
        """Begin to draw for calls of :meth:`standard_normals` with ``counts``, in this order.

        What was begun before and not asked for is dropped: nothing is ever given twice.
        """
        self._drawing.clear()
        self._counts = iter(counts if sum(counts) >= WORTHWHILE else ())
        while len(self._drawing) < AHEAD and self._begin_next():
            pass

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, on the CPU, shape (count,)."""
        if not self._drawing:
            return self._source.standard_normals(count)
        begun, drawn = self._drawing.popleft()
        self._begin_next()
        if begun != count:
            raise AssertionError(f"noise for {begun} values was begun, and {count} are asked for")
        return drawn.result()

    def _begin_next(self) -> bool:
        for count in self._counts:
            drawn = threads("noise", torch.get_num_threads()).submit(
                self._source.standard_normals, count
            )
            self._drawing.append((count, drawn))
            return True
        return False

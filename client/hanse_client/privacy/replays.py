"""Passes begun as one on a GPU: to begin a thousand kernels from Python takes longer than they."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import torch
from hanse.task import Examples
from torch import Tensor

from hanse_client.privacy.clipping import ClippedSum

log = logging.getLogger("hanse.client")

Summed: TypeAlias = Callable[[Examples, Tensor], ClippedSum]
"""A batch, and which of its records count, to the sum of their clipped gradients."""

Shapes: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]

SHARE_OF_GPU = 16
"""Of a GPU's memory, the recordings of a model may keep this part."""


class Recorder(Protocol):
    """Records work of a device, to be done again."""

    def unwaiting(self) -> AbstractContextManager[None]:
        """Within this, to wait for the device is a RuntimeError."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Do ``work``, on tensors that stay; calls of the result do it again."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether recordings keep more memory than they may."""
        ...


class CudaGraphs:
    """Records CUDA graphs: https://docs.nvidia.com/cuda/cuda-programming-guide, CUDA Graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._held = 0

    @contextmanager
    def unwaiting(self) -> Iterator[None]:
        """Within this, to wait for the device is a RuntimeError."""
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                # That it does not find every wait; a recording of one fails by itself.
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Do ``work``, on tensors that stay; calls of the result do it again."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph,
            self._pool,
            self._stream,
            # Other threads draw noise meanwhile, into memory that they ask the driver for.
            capture_error_mode="thread_local",
        )
        with torch.cuda.device(self._device), recording:
            before = torch.cuda.memory_reserved(self._device)
            work()
            self._held += torch.cuda.memory_reserved(self._device) - before
        return graph.replay

    @property
    def is_full(self) -> bool:
        """Whether recordings keep more memory than they may."""
        memory: int = torch.cuda.get_device_properties(self._device).total_memory
        return self._held > memory // SHARE_OF_GPU


class Replays:
    """Recorded passes over batches, one for each shape of them, kept from round to round.

    A recording repeats what the device did, on what the batch, the weights and the device's random
    generator are by then. So a pass that waits for the device is not recorded, since it may go on
    by what it reads there, nor one that draws random numbers on the processor. Whatever else
    Python decides in a pass stays as it was decided then: ``graphs = false`` is for such models.

    Args:
        tensors: parameters and buffers that the passes read. When they have moved, passes are
            recorded anew.
        recorder: makes what records them.
    """

    def __init__(self, tensors: Sequence[Tensor], recorder: Callable[[], Recorder]) -> None:
        self._tensors = tensors
        self._make_recorder = recorder
        self._came: Counter[Shapes] = Counter()
        self.obstacle: str | None = None
        """Why nothing is recorded; None as far as is known."""
        self._resting = False
        self.clear()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within this nothing is replayed: for who wants to see what a pass keeps in memory."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def clear(self) -> None:
        """Free what the recordings keep."""
        self._recordings: dict[Shapes, _Recording] = {}
        self._sums: tuple[Tensor, ...] = ()
        self._recorder = self._make_recorder()
        self._addresses = [each.data_ptr() for each in self._tensors]

    def run(self, summed: Summed, part: Examples, counted: Tensor) -> ClippedSum | None:
        """What ``summed`` makes of a batch, by a recording; None where there is none.

        For the first batch of a shape there is none: many a shape comes only once, and kernels
        make themselves ready at their first use.

        Args:
            counted: shape (B,).
        """
        if self.obstacle is not None or self._resting:
            return None
        shapes = tuple((each.shape, each.dtype) for each in (*part.inputs, part.targets))
        self._came[shapes] += 1
        if self._came[shapes] == 1:
            return None
        if self._addresses != [each.data_ptr() for each in self._tensors]:
            self.clear()
        if shapes not in self._recordings:
            self.obstacle = self._record(shapes, summed, part, counted)
        if self.obstacle is not None:
            log.info("private steps are begun kernel by kernel: %s", self.obstacle)
            self.clear()
            return None
        return self._recordings[shapes].replay(part, counted)

    def _record(
        self, shapes: Shapes, summed: Summed, part: Examples, counted: Tensor
    ) -> str | None:
        """Record what ``summed`` makes of batches of these shapes, or tell why not."""
        drawn = torch.get_rng_state(), random.getstate()
        try:
            with self._recorder.unwaiting():
                tried = summed(part, counted)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"the model waits for the device ({error})"
        if not torch.equal(drawn[0], torch.get_rng_state()) or drawn[1] != random.getstate():
            return "the model draws random numbers on the processor"
        # One place for the sums of all shapes: they are fetched before another pass begins.
        self._sums = self._sums or tuple(map(torch.empty_like, tried.sums))
        recording = _Recording(
            Examples(tuple(each.clone() for each in part.inputs), part.targets.clone()),
            counted.clone(),
            replace(
                tried,
                sums=self._sums,
                losses=torch.empty_like(tried.losses),
                # What was not recorded after all leaves norms that no pass makes.
                norms=torch.full_like(tried.norms, math.nan),
            ),
        )
        try:
            recording.again = self._recorder.record(lambda: recording.work(summed))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"the model cannot be recorded ({error})"
        self._recordings[shapes] = recording
        return "recordings keep too much memory" if self._recorder.is_full else None


@dataclass
class _Recording:
    """Where a pass finds its batch, and where it puts what it has made.

    Attributes:
        again: does it.
    """

    batch: Examples
    counted: Tensor
    made: ClippedSum
    again: Callable[[], object] = lambda: None

    def work(self, summed: Summed) -> None:
        """What is recorded."""
        fresh, made = summed(self.batch, self.counted), self.made
        torch._foreach_copy_(made.sums, fresh.sums)
        made.losses.copy_(fresh.losses)
        made.norms.copy_(fresh.norms)

    def replay(self, part: Examples, counted: Tensor) -> ClippedSum:
        """On another batch of the same shape; the result is a copy, the receiver's to change."""
        own = (*self.batch.inputs, self.batch.targets, self.counted)
        for place, fresh in zip(own, (*part.inputs, part.targets, counted), strict=True):
            place.copy_(fresh)
        self.again()
        made = self.made
        return replace(
            made,
            sums=tuple(torch._foreach_add(made.sums, 0.0)),
            losses=made.losses.clone(),
            norms=made.norms.clone(),
        )

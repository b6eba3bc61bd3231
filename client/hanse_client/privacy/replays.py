"""Passes begun as one on a GPU: to begin a thousand kernels from Python takes longer than they."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from hanse.task import Examples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        """Within this, what cannot be recorded is a RuntimeError: to wait for the device, and to
        draw random numbers elsewhere. It holds for the whole process."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Do ``work``, on tensors that stay; calls of the result do it again.

        Raises:
            RuntimeError: if that cannot be recorded.
        """
        ...

    def randomness(self) -> Callable[[], None]:
        """The state of the device's random generator: a call of it puts that back."""
        ...

    @property
    def room(self) -> int:
        """Bytes that recordings may keep yet."""
        ...


class CudaGraphs:
    """Records CUDA graphs: https://docs.nvidia.com/cuda/cuda-programming-guide, CUDA Graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Of another priority than any stream that noise is made on: torch gives out the same few
        # streams of a priority again and again.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        memory: int = torch.cuda.get_device_properties(device).total_memory
        self._room = memory // SHARE_OF_GPU

    @contextmanager
    def unwaiting(self) -> Iterator[None]:
        """Within this, what cannot be recorded is a RuntimeError: to wait for the device, and to
        draw random numbers elsewhere. It holds for the whole process."""
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                # That it does not find every wait; a recording of one fails by itself.
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("error")
            with undrawn():
                yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        """Do ``work``, on tensors that stay; calls of the result do it again.

        Raises:
            RuntimeError: if that cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph,
            self._pool,
            self._stream,
            # Other threads draw noise meanwhile, into memory that they ask the driver for.
            capture_error_mode="thread_local",
        )
        # A recording that fails would leave its own stream as the one that all goes on.
        with torch.cuda.stream(torch.cuda.current_stream(self._device)), recording:
            before = torch.cuda.memory_reserved(self._device)
            work()
            self._room -= torch.cuda.memory_reserved(self._device) - before
        return graph.replay

    def randomness(self) -> Callable[[], None]:
        """The state of the device's random generator: a call of it puts that back."""
        state = torch.cuda.get_rng_state(self._device)
        return lambda: torch.cuda.set_rng_state(state, self._device)

    @property
    def room(self) -> int:
        """Bytes that recordings may keep yet."""
        return self._room


@contextmanager
def undrawn() -> Iterator[None]:
    """RuntimeError if random numbers were drawn on the processor within this."""
    before = torch.get_rng_state(), random.getstate()
    yield
    if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
        raise RuntimeError("random numbers are drawn on the processor")


class Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what operations within this read, and none of them has made.

    A recording reads it where it lies, also when the model has long let go of it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors(args, kwargs):
            storage = _storage(tensor)
            if storage not in self._made:
                self.kept.setdefault(storage, tensor.detach())
        result = func(*args, **(kwargs or {}))
        self._made.update(map(_storage, _tensors(result)))
        return result


def _tensors(*values: Any) -> Iterator[Tensor]:
    return (each for each in tree_leaves(values) if isinstance(each, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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

    Attributes:
        replayed: how many passes were.
        obstacle: why nothing is recorded; None as far as is known.
    """

    def __init__(self, tensors: Sequence[Tensor], recorder: Callable[[], Recorder]) -> None:
        self._tensors = tensors
        self._make_recorder = recorder
        self._came: Counter[Shapes] = Counter()
        self.replayed = 0
        self.obstacle: str | None = None
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
        """What ``summed`` makes of a batch, by a recording; None where the pass is to be made.

        That is so for the first batch of a shape: many a shape comes only once, and kernels make
        themselves ready at their first use. And it is so where a record's norm is not finite, so
        that the sum is not. Then the pass that is made draws what the replay has drawn: else
        whether a record has such a norm would change the masks of dropout of all others.

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
        if self.obstacle is None:
            back = self._recorder.randomness()
            made = self._recordings[shapes].replay(part, counted)
            if math.isfinite(total := float(made.norms.sum())):
                self.replayed += 1
                return made
            back()
            if not math.isnan(total):
                return None
            self.obstacle = "the model's passes leave no trace in a recording"
        log.info("private steps are begun kernel by kernel: %s", self.obstacle)
        self.clear()
        return None

    def _record(
        self, shapes: Shapes, summed: Summed, part: Examples, counted: Tensor
    ) -> str | None:
        """Record what ``summed`` makes of batches of these shapes, or tell why not."""
        try:
            with self._recorder.unwaiting():
                tried = summed(part, counted)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"a pass cannot be recorded ({error})"
        try:
            recording = self._place(part, counted, tried)
            outside = Outside()

            def work() -> None:
                with outside:
                    recording.work(summed)

            recording.again = self._recorder.record(work)
        except torch.OutOfMemoryError:
            return "there is no room for recordings"
        except Exception as error:  # noqa: BLE001 - whatever it is, the pass itself was made
            return f"a pass cannot be recorded ({error})"
        recording.reads = list(outside.kept.values())
        self._recordings[shapes] = recording
        kept = sum(each.nbytes() for each in self._recordings.values())
        kept += sum(each.nbytes for each in self._sums)
        return None if kept <= self._recorder.room else "recordings keep too much memory"

    def _place(self, part: Examples, counted: Tensor, tried: ClippedSum) -> _Recording:
        # One place for the sums of all shapes: they are fetched before another pass begins.
        self._sums = self._sums or tuple(map(torch.empty_like, tried.sums))
        return _Recording(
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


@dataclass
class _Recording:
    """Where a pass finds its batch, and where it puts what it has made.

    Attributes:
        again: does it.
        reads: what it reads besides, and must not be freed.
    """

    batch: Examples
    counted: Tensor
    made: ClippedSum
    again: Callable[[], object] = lambda: None
    reads: Sequence[Tensor] = ()

    def nbytes(self) -> int:
        """Of its own places."""
        return sum(each.nbytes for each in (*self.batch.inputs, self.batch.targets, self.counted))

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

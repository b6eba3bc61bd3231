"""The dispatch of engines with workers: a queue for each, and never more at work than asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message


@dataclass(eq=False)
class Call:
    """What one caller wants done.

    Attributes:
        queues: what waits for each worker, by its number.
        replies: what is ready and not yet taken.
        under_way: messages that workers execute now.
        closed: whether the caller takes nothing more.
    """

    queues: list[deque[Message]]
    replies: deque[Message] = field(default_factory=deque)
    under_way: int = 0
    closed: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return not (self.under_way or self.replies or any(self.queues))


class QueueEngine(ABC):
    """Persistent workers, known by their numbers; each site always goes to the same one.

    Args:
        nodes: node ids of the sites.
        workers: how many there are.
    """

    def __init__(self, nodes: Iterable[int], workers: int) -> None:
        self._count = workers
        self._home = {node: rank % workers for rank, node in enumerate(sorted(nodes))}
        self._calls: list[Call] = []
        self._busy: dict[int, tuple[Message, Call]] = {}

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message as its worker has it ready.

        Several calls may be open: who is asked for a reply goes first, and for the others no more
        is done ahead than there are workers. Who closes the iterator leaves undone what is not
        begun.
        """
        call = Call([deque() for _ in range(self._count)])
        for message in messages:
            call.queues[self._home[message.metadata.dst_node_id]].append(message)
        self._calls.append(call)
        try:
            while not call.done:
                while not call.replies:
                    self._feed(call)
                    self._await()
                yield call.replies.popleft()
        finally:
            self._calls.remove(call)
            call.closed = True

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    @abstractmethod
    def _begin(self, rank: int, message: Message) -> None:
        """Have a worker begin on a message."""

    @abstractmethod
    def _replies(self, at_work: Mapping[int, Message]) -> Mapping[int, Message]:
        """Wait until a worker is done, or gone; its reply, or what is told in place of one.

        Args:
            at_work: what each worker that is not idle is at, by the worker's number.
        """

    def _feed(self, first: Call) -> None:
        """Give every worker that is idle something to do."""
        ahead = [call for call in self._calls if len(call.replies) < self._count]
        for rank in range(self._count):
            if rank in self._busy:
                continue
            call = next((call for call in (first, *ahead) if call.queues[rank]), None)
            if call is not None:
                message = call.queues[rank].popleft()
                self._busy[rank] = message, call
                call.under_way += 1
                self._begin(rank, message)

    def _await(self) -> None:
        """Wait until a worker is ready; its reply goes to whom it is for."""
        at_work = {rank: message for rank, (message, _) in self._busy.items()}
        for rank, reply in self._replies(at_work).items():
            _, call = self._busy.pop(rank)
            call.under_way -= 1
            if not call.closed:
                call.replies.append(reply)

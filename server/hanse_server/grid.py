"""What Hanse's round loop asks of a grid beyond Flower's own interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from hanse.flower import become_server_app

from hanse_server.status import Awaited

Replies: TypeAlias = Generator[Message, None, None]
"""Replies as they arrive; who has seen enough closes it."""


class HanseGrid(Grid):
    """A Flower Grid that knows its sites by name, says whom it waits for, and can settle.

    Making one makes this process the ServerApp's: messages that strategies create from then on
    carry ``run_id``.
    """

    def __init__(self, run_id: int) -> None:
        become_server_app(run_id)
        self.run_id = run_id
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep Flower's description of the run, for apps that ask for it."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's description of the run; None unless somebody has set it."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message of this run; strategies may as well call Flower's constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    @abstractmethod
    def get_node_ids(self) -> Sequence[int]:
        """The node ids of the sites that are there now, ascending."""

    @abstractmethod
    def site_name(self, node_id: int) -> str:
        """The name of a site, there or not; the number itself where none is known."""

    @abstractmethod
    def awaited(self) -> Sequence[Awaited]:
        """Whose replies are awaited, since when and until when."""

    @abstractmethod
    def owing(self, group_id: str) -> frozenset[str]:
        """The sites that an earlier process of this run asked in a group, without settling: they
        may hold a reply, paid for with privacy, that only the same round can take."""

    @abstractmethod
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Replies:
        """Send at once; yield replies as they arrive, until all are in or ``timeout`` is over.

        A reply that comes later, or after the iterator was closed, is dropped.
        """

    @abstractmethod
    def collect(self, messages: Iterable[Message], *, timeout: float) -> Replies:
        """Like ``send_and_receive``, but what has no reply yet when the iterator is closed stays
        owed: later calls yield it, and until then its site is :meth:`working`."""

    @abstractmethod
    def working(self) -> Mapping[int, str]:
        """The node ids of the sites that owe a reply to :meth:`collect`, each with the group of
        the message that it is at."""

    @abstractmethod
    def take_up(self, message_type: str, group_id: str) -> None:
        """Have :meth:`collect` yield what an earlier process of this run collected in vain: what
        is of another group than ``group_id``, and what is owed by sites that are away."""

    @abstractmethod
    def give_up(self, node_ids: Collection[int]) -> None:
        """Wait for these sites no longer; their replies come too late."""

    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """Bytes of payload received and sent so far."""

    @abstractmethod
    def settle(self) -> None:
        """What was answered so far is safe: the sites may forget their replies.

        To be called once the round's checkpoint is durable, and not before.
        """

    @abstractmethod
    def settle_kept(self, instructions: Collection[str]) -> None:
        """Likewise of what an earlier process of this run was answered to ``instructions``, and
        made durable, but did not live to settle: it must not be folded again."""

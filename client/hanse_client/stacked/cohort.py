"""Messages to many simulated sites, answered by one ClientApp, so that the sites train together.

Each message passes all gates of its site, as ever. When one has come as far as its training, it
waits there, and the next message is let in from that place, until nobody else can come; then all
that wait are trained at once, and each goes on out through its gates. So a charge is in the ledger
before a batch is drawn, and what leaves has passed egress, for every site.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hanse.flower import answer
from hanse.task import Examples
from torch import Tensor

from hanse_client.plan import LocalPlan
from hanse_client.training import TrainingResult

MOST = 32
"""Sites that wait at most: each holds some twenty frames of Python's stack."""


@dataclass(eq=False)
class Waiting:
    """A site that has come as far as its training.

    Attributes:
        outcome: what came of it, or the error that training it ended in; None while it waits.
    """

    weights: Mapping[str, Tensor]
    examples: Examples
    plan: LocalPlan
    outcome: TrainingResult | Exception | None = None


TrainAll = Callable[[Sequence[Waiting]], None]
"""Trains all of them at once, and gives each its outcome."""


class Cohort:
    """Answers messages by ``app``, whose trainers :meth:`join` it; for one thread at a time."""

    def __init__(self) -> None:
        self._app: ClientApp | None = None
        self._left: deque[tuple[int, Message, Context]] = deque()
        self._replies: dict[int, Message] = {}
        self._at_work: set[int] = set()
        self._waiting: list[Waiting] = []

    def answers_by(self, app: ClientApp) -> None:
        """Set the app, whose trainers know this cohort already."""
        self._app = app

    def answer(self, asked: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
        """Yield the reply to each message, in their order."""
        left = deque((number, *each) for number, each in enumerate(asked))
        replies: dict[int, Message] = {}
        following = 0
        while left:
            # Another call may have come since the last reply was taken; nobody waits meanwhile.
            self._left, self._replies = left, replies
            self._answer_next()
            while following in replies:
                yield replies.pop(following)
                following += 1

    def join(self, waiting: Waiting, train_all: TrainAll) -> TrainingResult:
        """Wait for others to train with; returns what came of it.

        Raises:
            Exception: as training this site alone would.
        """
        self._waiting.append(waiting)
        while waiting.outcome is None and self._has_room():
            self._answer_next()
        if waiting.outcome is None:
            together, self._waiting = self._waiting, []
            try:
                train_all(together)
            except Exception as failure:  # noqa: BLE001 - each answers with it, as it would alone
                for each in together:
                    each.outcome = failure
        if isinstance(waiting.outcome, Exception):
            raise waiting.outcome
        if waiting.outcome is None:
            raise RuntimeError("a site was left out of its cohort's training")
        return waiting.outcome

    def _has_room(self) -> bool:
        """Whether another site can come: a site serves one message at a time."""
        if not self._left or len(self._waiting) >= MOST:
            return False
        return self._left[0][1].metadata.dst_node_id not in self._at_work

    def _answer_next(self) -> None:
        app, (number, message, context) = self._app, self._left.popleft()
        if app is None:
            raise RuntimeError("the cohort has no app")
        self._at_work.add(context.node_id)
        self._replies[number] = answer(lambda each: app(each, context), message)
        self._at_work.discard(context.node_id)

"""What is owed by a site, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hanse.wire.assembler import Assembler

from hanse_server.link.instruction import Instruction, Reply
from hanse_server.link.slots import Progress, Slots


@dataclass
class Pending:
    """An instruction whose reply is awaited.

    Attributes:
        answer: is called with the reply.
        assembler: of the reply, once it is announced.
        progress: of the reply, while it holds a slot.
    """

    instruction: Instruction
    answer: Callable[[Reply], None]
    slots: Slots
    assembler: Assembler | None = None
    progress: Progress | None = None

    @property
    def id(self) -> str:
        """The message id."""
        return self.instruction.id

    @property
    def granted(self) -> bool:
        """Whether the reply holds a slot."""
        return self.progress is not None

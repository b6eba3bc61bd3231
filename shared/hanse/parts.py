"""The bytes of an array where they lie: in memory, or in a file."""

from __future__ import annotations

from typing import Protocol

Data = bytes | bytearray | memoryview
"""Bytes in memory."""


class Stored(Protocol):
    """Bytes that lie in a file."""

    def __len__(self) -> int:
        """How many there are."""

    def mapped(self) -> memoryview:
        """All of them as memory, mapped anew; what is written there stays there."""

    def read_into(self, start: int, into: memoryview) -> None:
        """Fill ``into`` with those from ``start`` on.

        Raises:
            WorkspaceError: if they cannot be read.
        """


Part = Data | Stored
"""The bytes of one array."""


def in_memory(part: Part) -> Data:
    """They themselves, or mapped."""
    return part if isinstance(part, Data) else part.mapped()

"""What a secure round has decided so far, on disk, so that a restarted server asks the same again.

A site answers a stage once. The messages of a stage follow from who answered the stage before;
with that kept, a server that comes back sends the same messages under the same ids, and the sites
answer from their outboxes. Where it cannot, it begins the round anew, in a fresh session.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hanse.errors import WorkspaceError
from hanse.parsing import parse_json
from hanse.secagg.messages import SHARES
from pydantic import BaseModel

from hanse_server.durable import kept_in, write_file


class _Content(BaseModel):
    """The file."""

    round: int
    token: str
    earlier: dict[str, int]
    stages: dict[str, list[str]]


class Transcript:
    """The session of one round: its token, and who answered each stage that is over.

    Made by :meth:`resume`, or :meth:`begin_anew` of another.

    Attributes:
        earlier: how often each site may have trained in sessions of this round that were lost.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self._content = content
        self.token: str = content["token"]
        self.earlier: dict[str, int] = content["earlier"]

    @staticmethod
    def resume(path: Path, server_round: int) -> Transcript:
        """The session that ``path`` has of a round; a fresh one if it has none.

        Raises:
            WorkspaceError: if the file is damaged.
        """
        try:
            content = parse_json(path.read_bytes())
            _Content.model_validate(content, strict=True)
            if content["round"] == server_round:
                return Transcript(path, content)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as damaged:
            raise WorkspaceError(
                f"{path} is damaged: {damaged}",
                remedy="Remove that file; the round begins anew.",
            ) from damaged
        return Transcript._begin(path, server_round, {})

    def begin_anew(self) -> Transcript:
        """A fresh session of the same round, on disk in place of this one."""
        asked = self.decided(SHARES) or ()  # they were asked to train next, and charged for it
        earlier = self.earlier | {name: 1 + self.earlier.get(name, 0) for name in asked}
        return Transcript._begin(self._path, self._content["round"], earlier)

    @staticmethod
    def _begin(path: Path, server_round: int, earlier: dict[str, int]) -> Transcript:
        token = secrets.token_hex(16)
        content = {"round": server_round, "token": token, "earlier": earlier, "stages": {}}
        transcript = Transcript(path, content)
        transcript._write()
        return transcript

    def decided(self, stage: str) -> list[str] | None:
        """Who answered ``stage``; None while that is open."""
        names: list[str] | None = self._content["stages"].get(stage)
        return names

    def decide(self, stage: str, names: Collection[str]) -> None:
        """Close ``stage``, durably, before anything that follows from it is sent."""
        self._content["stages"][stage] = sorted(names)
        self._write()

    def _write(self) -> None:
        with kept_in(self._path.parent):
            write_file(self._path, json.dumps(self._content).encode())

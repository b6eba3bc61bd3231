"""What Hanse's two apps tell each other beside their messages where a SuperLink carries them.

Flower knows nodes by numbers that it gives anew at each start, gives a run that goes on a new
number too, and starts a process for each message. So the server's app asks each node for its
site's name, and every instruction brings a slip: its id and its run as Hanse knows them, which
stay the same when the run goes on, and the replies that the site need no longer keep.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from hanse.errors import ProtocolError

SLIP = "hanse.superlink"
"""Key of the ConfigRecord in a message."""

HELLO = "query.hanse_hello"
"""Type of the message that asks for a site's name, and says what is settled."""

SITE, VERSION, HELD = "site", "hanse", "held"
"""Config keys of the answer to it: who it is, and ids of the replies that its outbox holds."""

PROTOCOL = 1
MOST_SETTLED = 10_000

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Slip:
    """What comes with an instruction.

    Attributes:
        instruction: its id, 32 hex digits; the same whenever the same is asked again.
        run_id: of the run as its workspace has it.
        settled: ids of instructions whose replies the server has made durable.
    """

    instruction: str
    run_id: int
    settled: tuple[str, ...] = ()

    def record(self) -> ConfigRecord:
        """As it travels."""
        return ConfigRecord(
            {
                "protocol": PROTOCOL,
                "id": self.instruction,
                "run": self.run_id,
                "settled": list(self.settled),
            }
        )


def read_slip(content: RecordDict) -> Slip:
    """The slip of a message.

    Raises:
        ProtocolError: if there is none, or it is malformed.
    """
    record = content.config_records.get(SLIP)
    if record is None:
        raise ProtocolError(
            "the message is not of Hanse's ServerApp",
            remedy='The app needs serverapp = "hanse_server.flower_app:app".',
        )
    if record.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the ServerApp speaks version {str(record.get('protocol'))[:20]} of the slips, and "
            f"this is version {PROTOCOL}",
            remedy="Install the same version of hanse at the SuperLink and at the sites.",
        )
    instruction, run_id, settled = (record.get(each) for each in ("id", "run", "settled"))
    if not (_is_id(instruction) and isinstance(run_id, int) and 0 <= run_id < 2**63):
        raise ProtocolError("the slip of a message is malformed: its id or its run")
    if not isinstance(settled, Sequence) or isinstance(settled, str | bytes):
        raise ProtocolError("the slip of a message is malformed: what is settled is no list")
    if len(settled) > MOST_SETTLED or not all(map(_is_id, settled)):
        raise ProtocolError("the slip of a message is malformed: what is settled")
    return Slip(
        instruction=str(instruction), run_id=run_id, settled=tuple(str(each) for each in settled)
    )


def without_slip(content: RecordDict) -> RecordDict:
    """The message as it was before its slip was added."""
    return RecordDict({name: record for name, record in content.items() if name != SLIP})


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None

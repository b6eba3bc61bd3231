"""What tests of the link ask sites for, and a site that sends back what it gets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from hanse.identity import node_id_of
from hanse_server.grid import HanseGrid


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def ask(
    grid: HanseGrid, content: RecordDict, *names: str, server_round: int = 1
) -> Iterator[Message]:
    """The replies to a training instruction to some sites."""
    messages = [
        Message(content, node_id_of(name), "train", group_id=str(server_round)) for name in names
    ]
    return iter(grid.send_and_receive(messages, timeout=20))


def weights(megabytes: float) -> RecordDict:
    array = np.random.default_rng(0).standard_normal(round(megabytes * 125_000))
    return RecordDict({"arrays": ArrayRecord([array])})

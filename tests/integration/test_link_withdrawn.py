"""What a slow site has not begun when its round is over, it need not do: it would cost privacy."""

from __future__ import annotations

import threading

from flwr.app import ConfigRecord, Message, RecordDict
from hanse.identity import node_id_of

from tests.loopback import Loopback, wait_until


def instruction(server_round: int) -> Message:
    content = RecordDict({"config": ConfigRecord({"round": server_round})})
    return Message(content, node_id_of("slow"), "train", group_id=str(server_round))


def test_what_was_settled_before_it_was_begun_is_never_begun(loopback: Loopback) -> None:
    begun: list[str] = []
    go = threading.Event()

    def slow(message: Message) -> Message:
        begun.append(message.metadata.group_id)
        go.wait(20)
        return Message(message.content, reply_to=message)

    server = loopback.server()
    client = loopback.client("slow", slow)
    server.await_sites("slow")
    grid = server.grid()
    for server_round in (1, 2, 3):
        assert list(grid.send_and_receive([instruction(server_round)], timeout=0.3)) == []
        grid.settle()
    replies = grid.send_and_receive([instruction(4)], timeout=20)
    go.set()

    assert [reply.metadata.group_id for reply in replies] == ["4"]
    assert begun == ["1", "4"]
    grid.settle()
    wait_until(lambda: not client.outbox.instructions())


def test_what_was_withdrawn_may_be_asked_again(loopback: Loopback) -> None:
    go = threading.Event()

    def slow(message: Message) -> Message:
        go.wait(20)
        return Message(message.content, reply_to=message)

    server = loopback.server()
    loopback.client("slow", slow)
    server.await_sites("slow")
    grid = server.grid()
    for server_round in (1, 2):
        assert list(grid.send_and_receive([instruction(server_round)], timeout=0.3)) == []
    grid.settle()
    # As a server does that lost its last checkpoint: the same instruction, under the same id.
    replies = server.grid().send_and_receive([instruction(2)], timeout=20)
    go.set()

    assert [reply.metadata.group_id for reply in replies] == ["2"]

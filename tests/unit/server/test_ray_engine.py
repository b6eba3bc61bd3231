"""The engine on Ray, as far as it goes without one: frames, room, and what is told at the start."""

from __future__ import annotations

import socket
import sys

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app import Error as FlowerError
from hanse.errors import JobError, MissingExtraError, UnreachableError, WireError
from hanse.flower import become_server_app, to_array
from hanse_server.simulation.cluster import RayCluster, room_in
from hanse_server.simulation.frames import pack, pack_state, unpack, unpack_state
from hanse_server.simulation.ray_engine import RayEngine


def engine(address: str | None) -> RayEngine:
    return RayEngine("builtins:str", "", {2: "a"}, RayCluster(address=address))


def test_messages_and_states_come_back_as_they_were() -> None:
    become_server_app(7)
    arrays = ArrayRecord({"w": to_array(torch.arange(5.0)), "empty": Array(torch.zeros(0).numpy())})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"rows": ["a", "b"]})})
    message = Message(content, 2, "train", group_id="1")
    again = unpack(*pack(message))
    assert again.content == content
    assert again.metadata.dst_node_id == 2
    failed = unpack(*pack(Message(FlowerError(8, "died"), reply_to=message)))
    assert (failed.error.code, failed.error.reason) == (8, "died")
    assert unpack_state(pack_state(content)) == content
    assert unpack_state(pack_state(RecordDict())) == RecordDict()


def test_a_frame_that_changed_is_refused() -> None:
    become_server_app(7)
    content = RecordDict({"arrays": ArrayRecord({"w": to_array(torch.ones(3))})})
    header, body = pack(Message(content, 2, "train"))
    with pytest.raises(WireError, match="changed on the way"):
        unpack(header, body[:-1] + b"\x07")


@pytest.mark.parametrize(
    ("has", "gpus", "workers", "sites", "expected"),
    [
        ({"CPU": 8.0}, 0.0, None, 100, 8),
        ({"CPU": 8.0}, 0.0, None, 3, 3),
        ({"CPU": 8.0}, 0.0, 20, 100, 20),  # workers share cores: a cluster may shrink
        ({"CPU": 8.0, "GPU": 2.0}, 0.5, None, 100, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 0.4, None, 100, 4),
        ({"CPU": 8.0, "GPU": 4.0}, 2.0, None, 100, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1.0, 1, 100, 1),
    ],
)
def test_as_many_workers_are_started_as_there_is_room_for(
    has: dict[str, float], gpus: float, workers: int | None, sites: int, expected: int
) -> None:
    assert room_in(has, gpus, workers, sites) == (8, expected)


@pytest.mark.parametrize(("gpus", "workers"), [(1.0, 3), (0.5, 5), (4.0, None)])
def test_gpus_that_are_not_there_are_missed_at_once(gpus: float, workers: int | None) -> None:
    with pytest.raises(JobError, match="do not fit in the Ray cluster, which has 2"):
        room_in({"CPU": 8.0, "GPU": 2.0}, gpus, workers, 100)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="not installed") as refused:
        engine(None)
    assert "hanse[ray]" in refused.value.remedy


def test_an_address_at_which_nothing_listens_is_told_at_once(free_port: int) -> None:
    with pytest.raises(UnreachableError, match=f"no Ray cluster at 127.0.0.1:{free_port}"):
        engine(f"127.0.0.1:{free_port}")


def test_the_address_is_knocked_at_as_it_is_written() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        from hanse_server.simulation.cluster import _knock

        _knock(f"127.0.0.1:{server.getsockname()[1]}")
    for elsewhere in (None, "auto", "ray://host:10001"):
        _knock(elsewhere)

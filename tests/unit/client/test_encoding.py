"""An update as it leaves a site: encoded, accounted for, and what it left out sent later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from flwr.app import Array, ArrayRecord, Message
from hanse.aggregation import Encoding
from hanse.encodings import decode, encoding_of
from hanse.errors import (
    JobError,
    LedgerError,
    OutboxError,
    PolicyError,
    TaskError,
    UpdateRangeError,
)
from hanse.flower import ARRAYS, ENCODING_ERROR, METRICS, to_record, to_tensor
from hanse.job import Job
from hanse.task import Examples, NoOptions, Task
from hanse_client.audit import read_audit
from hanse_client.encoding import encode_update
from hanse_client.gates.encoding import travelling
from hanse_client.leftovers import Leftovers, LeftoverStore, Owner
from hanse_client.plan import rounding_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.harbour import Harbour, job
from tests.harbour import site as harbour_site

TOPK = Encoding(name="topk", kept=0.1)
OWNER = Owner(run_id=1, job="a" * 64, encoding="{}")


def total(arrays: ArrayRecord, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an update that may be encoded."""
    return {
        name: to_tensor(array)
        if encoding_of(array) == "plain"
        else decode(array, like[name].dtype, tuple(like[name].shape))
        for name, array in arrays.items()
    }


def updates(seed: int, count: int) -> list[dict[str, Tensor]]:
    randomness = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"w": (30, 40), "b": (2,), "n": ()}
    return [
        {
            name: torch.randn(shape, generator=randomness) if name != "n" else torch.tensor(at)
            for name, shape in shapes.items()
        }
        for at in range(count)
    ]


# --- error feedback -------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([0.01, 0.1, 0.5]))
def test_nothing_of_the_updates_is_lost(seed: int, rounds: int, kept: float) -> None:
    """What was sent, and what is left out after the last round, are all of the updates."""
    encoding = Encoding(name="topk", kept=kept)
    asked = updates(seed, rounds)
    left: dict[str, Tensor] = {}
    sent = {
        name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in asked[0].items()
    }
    for number, update in enumerate(asked):
        encoded = encode_update(update, encoding, seed=number, left_out=left)
        left = encoded.left_out
        for name, tensor in total(encoded.arrays, update).items():
            sent[name] += tensor
    for name in asked[0]:
        wanted = sum(update[name].double() for update in asked)
        remains = left.get(name, torch.zeros(()))
        assert torch.allclose(sent[name] + remains, torch.as_tensor(wanted), atol=1e-4)
    assert set(left) == {"w"}, "what is sent as it is leaves nothing out"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int4"])
def test_other_encodings_leave_nothing_behind(name: str) -> None:
    encoded = encode_update(updates(1, 1)[0], Encoding(name=name), seed=1)
    assert encoded.left_out == {}
    assert 0 < encoded.error < 0.25


def test_the_error_is_relative_to_what_was_to_be_sent() -> None:
    update = updates(1, 1)[0]
    encoded = encode_update(update, TOPK, seed=1)
    floats = ("w", "b")
    back = total(encoded.arrays, update)
    lost = torch.cat([(update[n] - back[n]).reshape(-1) for n in floats]).norm()
    whole = torch.cat([update[n].reshape(-1) for n in floats]).norm()
    assert encoded.error == pytest.approx(float(lost / whole), rel=1e-5)
    assert encoded.plain_bytes == 4 * (1200 + 2) + 8
    assert encoded.bytes == sum(len(array.data) for array in encoded.arrays.values())


def test_an_update_of_nothing_has_no_error() -> None:
    encoded = encode_update({"w": torch.zeros(1000)}, Encoding(name="int8"), seed=1)
    assert encoded.error == 0.0


def test_a_number_that_an_encoding_cannot_tell_is_refused_by_name() -> None:
    update = {"w": torch.full((1000,), 1e6)}
    with pytest.raises(UpdateRangeError, match="float16") as caught:
        encode_update(update, Encoding(name="float16"), seed=1)
    assert caught.value.reason() == "update_range", "how large it is stays at the site"
    assert encode_update(update, Encoding(name="bfloat16"), seed=1).error < 0.01


def test_what_is_frozen_does_not_travel() -> None:
    update = updates(1, 1)[0] | {"base": torch.zeros(100, 100)}
    asked = Encoding(trainable_only=True)
    encoded = encode_update(update, asked, seed=1, frozen={"base"})
    assert set(encoded.arrays) == {"w", "b", "n"}
    assert encoded.error == 0.0
    assert encoded.plain_bytes > 40_000
    assert set(encode_update(update, Encoding(), seed=1, frozen={"base"}).arrays) == set(update)
    with pytest.raises(TaskError, match="base"):
        encode_update(update | {"base": torch.ones(2)}, asked, seed=1, frozen={"base"})


def test_the_seed_differs_by_job_round_and_site() -> None:
    seeds = {
        rounding_seed(job(seed=seed), number, name)
        for seed in (1, 2)
        for number in (1, 2)
        for name in ("east", "west")
    }
    assert len(seeds) == 8


# --- what is kept of it -----------------------------------------------------------------------


def store(folder: Path) -> LeftoverStore:
    return LeftoverStore(folder / "leftovers")


def left(instruction: str, before: float, after: float, owner: Owner = OWNER) -> Leftovers:
    return Leftovers(
        owner=owner,
        instruction=instruction,
        before={"w": torch.full((2,), before)},
        after={"w": torch.full((2,), after)},
    )


WHOLE = {"w": torch.zeros(2)}


def test_the_next_instruction_begins_after_the_last_and_a_repeated_one_where_it_began(
    tmp_path: Path,
) -> None:
    store(tmp_path).keep(left("one", 1.0, 2.0))
    again = store(tmp_path)
    assert torch.equal(again.at(OWNER, "two", WHOLE)["w"], torch.full((2,), 2.0))
    assert torch.equal(again.at(OWNER, "one", WHOLE)["w"], torch.full((2,), 1.0))


@pytest.mark.parametrize("change", [{"run_id": 2}, {"job": "b" * 64}, {"encoding": "[]"}])
def test_what_another_run_or_job_left_out_is_never_sent(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    other = Owner(**{**vars(OWNER), **change})
    for kept in (store(tmp_path), LeftoverStore(None)):
        kept.keep(left("one", 1.0, 2.0))
        assert kept.at(other, "one", WHOLE) == {}
        assert kept.at(other, "two", WHOLE) == {}


def test_what_does_not_fit_the_model_is_dropped(tmp_path: Path) -> None:
    store(tmp_path).keep(left("one", 1.0, 2.0))
    assert store(tmp_path).at(OWNER, "two", {"w": torch.zeros(3)}) == {}
    assert store(tmp_path).at(OWNER, "two", {"v": torch.zeros(2)}) == {}


def test_nothing_is_left_out_at_first(tmp_path: Path) -> None:
    assert store(tmp_path).at(OWNER, "one", WHOLE) == {}


def test_a_damaged_file_is_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "leftovers"
    store(tmp_path).keep(left("one", 1.0, 2.0))
    whole = path.read_bytes()
    rest = json.dumps({"owner": {"run_id": 1}, "instruction": 7}).encode() + b"\nx"
    forged = hashlib.sha256(rest).hexdigest().encode() + rest
    for damaged in (b"", whole[:40], whole[:-1], whole[:200] + b"?" + whole[201:], forged):
        path.write_bytes(damaged)
        caplog.clear()
        assert store(tmp_path).at(OWNER, "two", WHOLE) == {}
        assert "is dropped" in caplog.text


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="leftovers"):
        LeftoverStore(tmp_path / "away" / "leftovers").keep(left("one", 1.0, 2.0))


# --- through the gates ------------------------------------------------------------------------

WIDE = f"{__name__}:Wide"


class Wide(Task[NoOptions]):
    """Enough weights that each encoding is worth while; the first layer is frozen."""

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 40))
        model[0].requires_grad_(False)
        return model

    def read(self, source: Path) -> Examples:
        numbers = torch.linspace(-1, 1, 160).reshape(40, 4)
        return Examples((numbers,), numbers.repeat(1, 10))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs - targets).abs().mean())}


def wide_job(**changes: Any) -> Job:
    return job(task={"name": WIDE}, privacy={"mechanism": "none"}, **changes)


ASKED = {"hanse.encoding": "topk", "hanse.encoding.kept": 0.1}


class WideHarbour(Harbour):
    """A site with that task, whose leftovers are in a file; it can be opened again."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        allowed = {
            "tasks": ({"name": WIDE},),
            "release": ("update_norm", ENCODING_ERROR),
            "allow_training_without_privacy": True,
        }
        super().__init__(folder, harbour_site(folder, **allowed | policy))
        self.runtime.leftovers = LeftoverStore(folder / "leftovers")

    def ask(self, job: Job, asked: dict[str, Any], **how: Any) -> Message:
        """An instruction with weights of the task's model."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = Wide(NoOptions()).model().state_dict()
        return self.send(job, more=asked, weights=weights, **how)


Open = Callable[..., WideHarbour]


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Open]:
    made: list[WideHarbour] = []

    def make(folder: str = "site", **policy: Any) -> WideHarbour:
        for each in made:  # it stops before it starts again
            each.ledger.close()
        (tmp_path / folder).mkdir(exist_ok=True)
        made.append(WideHarbour(tmp_path / folder, **policy))
        return made[-1]

    yield make
    made[-1].ledger.close()


def sent(reply: Message) -> dict[str, bytes]:
    assert reply.has_content(), reply.error
    return {name: array.data for name, array in reply.content.array_records[ARRAYS].items()}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int4", "topk"])
def test_an_update_leaves_as_it_is_asked_for_and_is_told(wide: Open, name: str) -> None:
    here = wide()
    reply = here.ask(wide_job(), {"hanse.encoding": name})
    arrays = reply.content.array_records[ARRAYS]
    assert encoding_of(arrays["1.weight"]) == name
    told = reply.content.metric_records[METRICS]
    error = told[ENCODING_ERROR]
    assert isinstance(error, float)
    assert 0 < error < 1
    (line,) = (line for line in read_audit(here.audit) if line["event"] == "released")
    assert line["encoding"] == [name]
    assert line["bytes"] == sum(map(len, sent(reply).values()))
    each = (blake3(data).digest() for data in sent(reply).values())
    assert line["blake3"] == blake3(b"".join(each)).hexdigest()
    value = here.metrics.registry.get_sample_value
    count = "hanse_client_update_bytes_total"
    assert value(count, {"form": "encoded"}) == line["bytes"]
    assert value(count, {"form": "plain"}) == 4 * (160 + 40 + 1600 + 40)
    assert value("hanse_client_encoding_error") == error


def test_a_private_update_is_encoded_after_its_noise(wide: Open) -> None:
    """The encoding knows nothing but the noised update: the error is told as public."""
    here = wide()
    reply = here.ask(job(task={"name": WIDE}), {"hanse.encoding": "int8"})
    assert set(reply.content.metric_records[METRICS]) >= {"update_norm", ENCODING_ERROR}
    assert reply.content.config_records["terms"]["exact"] == []
    assert here.spent() > 0


def test_a_policy_that_does_not_list_the_error_keeps_it(wide: Open) -> None:
    reply = wide(release=()).ask(wide_job(), {"hanse.encoding": "int8"})
    assert set(reply.content.metric_records[METRICS]) == {"num-examples"}


def test_only_what_is_trained_travels_where_the_job_says_so(wide: Open) -> None:
    here = wide()
    whole = here.ask(wide_job(), {}, name="a")
    some = here.ask(wide_job(), {"hanse.encoding.trainable-only": True}, name="b")
    assert set(sent(whole)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(sent(some)) == {"1.weight", "1.bias"}
    assert sent(some)["1.weight"] == sent(whole)["1.weight"]


def test_an_encoding_of_tomorrow_is_answered_plain(wide: Open) -> None:
    reply = wide().ask(wide_job(), {"hanse.encoding": "int3", "hanse.encoding.kept": 0.2})
    assert {encoding_of(array) for array in reply.content.array_records[ARRAYS].values()} == {
        "plain"
    }


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"hanse.encoding": 8}, "hanse.encoding: name = 8"),
        ({"hanse.encoding": "topk", "hanse.encoding.kept": 2.0}, "kept = 2.0"),
        ({"hanse.encoding": "topk", "hanse.encoding.kept": float("nan")}, "kept = nan"),
        ({"hanse.encoding.trainable-only": "perhaps"}, "trainable_only = 'perhaps'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(
    wide: Open, asked: dict[str, Any], told: str
) -> None:
    here = wide()
    reply = here.ask(wide_job(), asked)
    assert reply.error.code == JobError.exit_code
    assert told in str(reply.error.reason)
    assert not here.ledger.entries()


def test_a_masked_update_is_not_encoded(wide: Open) -> None:
    secure = wide_job(secure_aggregation={"enabled": True})
    reply = wide().ask(secure, {"hanse.encoding": "int8"})
    assert reply.error.code == JobError.exit_code
    assert "leaves whole" in str(reply.error.reason)


def test_an_array_that_is_encoded_unasked_does_not_leave(wide: Open) -> None:
    here = wide()
    here.ask(wide_job(), {"hanse.encoding": "int8"})
    update = to_record({n: torch.ones(s) for n, s in _shapes(here).items()})
    assert set(travelling(here.runtime, update)) == set(update)
    forged = Array("float32", (40, 40), "hanse.encoding.int4", b"")
    with pytest.raises(PolicyError, match="unasked"):
        travelling(here.runtime, ArrayRecord({**update, "1.weight": forged}))
    lacking = ArrayRecord({name: array for name, array in update.items() if name != "1.bias"})
    with pytest.raises(PolicyError, match="missing"):
        travelling(here.runtime, lacking)


def _shapes(here: Harbour) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in here.runtime.order.trainer.model.state.items()}


def test_what_was_left_out_is_sent_later_over_a_restart(wide: Open) -> None:
    """Two rounds with a restart between are what two rounds are without."""
    here = wide("undisturbed")
    here.ask(wide_job(), ASKED, name="a", number=1)
    undisturbed = here.ask(wide_job(), ASKED, name="b", number=2)
    forgetful = wide("forgetful").ask(wide_job(), ASKED, name="b", number=2)
    wide().ask(wide_job(), ASKED, name="a", number=1)
    restarted = wide().ask(wide_job(), ASKED, name="b", number=2)
    assert sent(restarted) == sent(undisturbed)
    assert sent(restarted) != sent(forgetful)


def test_a_repeated_instruction_is_answered_with_the_same_bytes(wide: Open) -> None:
    """Its reply was lost on the way to the outbox: nothing is added twice."""
    here = wide()
    here.ask(wide_job(), ASKED, name="a", number=1)
    second = here.ask(wide_job(), ASKED, name="b", number=2)
    again = wide().ask(wide_job(), ASKED, name="b", number=2)
    assert sent(again) == sent(second)
    kept = (here.audit.parent / "leftovers").read_bytes()
    third = wide().ask(wide_job(), ASKED, name="b", number=2)
    assert sent(third) == sent(second)
    assert (here.audit.parent / "leftovers").read_bytes() == kept


def test_a_private_job_never_sends_what_one_without_privacy_left_out(
    wide: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run, another job: it begins with nothing."""
    here, begun = wide(), list[float]()
    at = LeftoverStore.at

    def watched(self: LeftoverStore, *how: Any) -> dict[str, Tensor]:
        found = at(self, *how)
        begun.append(sum(float(tensor.abs().sum()) for tensor in found.values()))
        return found

    monkeypatch.setattr(LeftoverStore, "at", watched)
    for number in (1, 2):
        here.ask(wide_job(), ASKED, name=f"open-{number}", number=number)
    here.ask(job(task={"name": WIDE}), ASKED, name="private", number=3)
    assert begun[0] == 0.0
    assert begun[1] > 0.0
    assert begun[2] == 0.0


def test_nothing_is_kept_before_the_charge_counts_for_good(
    wide: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a later round could send it, and the same charge be taken up again."""
    here = wide()

    def fails(reservation: Any) -> None:
        raise LedgerError("full")

    monkeypatch.setattr(here.ledger, "release", fails)
    reply = here.ask(job(task={"name": WIDE}), ASKED)
    assert reply.error.code == LedgerError.exit_code
    assert not (here.audit.parent / "leftovers").exists()


def test_a_reply_whose_leftovers_cannot_be_kept_does_not_leave(wide: Open) -> None:
    here = wide()
    here.runtime.leftovers = LeftoverStore(here.audit.parent / "away" / "leftovers")
    reply = here.ask(wide_job(), ASKED)
    assert reply.error.code == OutboxError.exit_code

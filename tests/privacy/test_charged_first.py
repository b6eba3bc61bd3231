"""A round is charged, durably, before it looks at a record, and settled before its reply leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MessageType
from hanse_client.ledger import read_ledger
from hanse_client.training import Trainer

from tests.harbour import Harbour, job, site

Work = Callable[..., Any]


def states(here: Harbour) -> list[str]:
    """Of the charges, as another process reads them from the disk."""
    return [entry.state for entry in read_ledger(here.audit.parent / "ledger.sqlite").entries()]


@pytest.mark.parametrize(
    ("kind", "method"), [(MessageType.TRAIN, "train"), (MessageType.EVALUATE, "predict")]
)
def test_the_charge_is_on_the_disk_before_the_work_begins(
    kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    work: Work = getattr(Trainer, method)

    def spying(self: Trainer, *arguments: Any) -> Any:
        seen.append(states(here))
        return work(self, *arguments)

    monkeypatch.setattr(Trainer, method, spying)
    here = Harbour(tmp_path, site(tmp_path, release=("mae",)))
    here.send(job(), kind=kind)
    here.ledger.close()
    assert seen == [["reserved"]]
    assert states(here) == ["released"]

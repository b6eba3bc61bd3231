"""What tests of a site share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harbour import Harbour, site


@pytest.fixture
def harbour(tmp_path: Path) -> Iterator[Callable[..., Harbour]]:
    made: list[Harbour] = []

    def make(**policy: Any) -> Harbour:
        folder = tmp_path / str(len(made))
        made.append(Harbour(folder, site(folder, **policy)))
        return made[-1]

    yield make
    for each in made:
        each.ledger.close()

"""What is not imported before it is needed: each of these takes longer than a command may."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "flwr", "grpc", "numpy", "scipy", "pandas", "matplotlib", "cryptography"}
HELP = """
import contextlib, sys
import hanse.cli
sys.argv = ["hanse", "--help"]
with contextlib.suppress(SystemExit):
    hanse.cli.main()
"""


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        pytest.param(HELP, HEAVY, id="help"),
        pytest.param(
            "import hanse_client.serve",
            {"opacus", "dp_accounting", "scipy", "pandas"},
            id="client",
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, unwanted: set[str]) -> None:
    tell = f"{code}\nimport sys\nprint('imported:', *sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", tell], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    imported = set(told.rpartition("imported:")[2].split())
    assert "hanse" in imported
    assert imported & unwanted == set()

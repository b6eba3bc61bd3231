"""Modules of this folder that are run on their own, and print as JSON what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hospitals import environment


def found_by(module: str, *arguments: str) -> dict[str, Any]:
    """What a module of this folder finds."""
    ran = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found

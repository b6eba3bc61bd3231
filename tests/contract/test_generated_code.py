"""The generated code is what today's hanse.proto makes."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from grpc_tools import protoc
from hanse import wire

SOURCE = "hanse/wire/hanse.proto"


@pytest.mark.parametrize("name", ["hanse_pb2.py", "hanse_pb2.pyi"])
def test_generated_code_is_current(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plug-in that writes the stubs lies beside the interpreter, which need not be on the path.
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    folder = Path(wire.__file__).parent
    root = folder.parent.parent
    arguments = [f"-I{root}", f"--python_out={tmp_path}", f"--mypy_out=quiet:{tmp_path}", SOURCE]

    assert protoc.main(["protoc", *arguments]) == 0

    fresh = (tmp_path / "hanse/wire" / name).read_text()
    assert _without_versions(fresh) == _without_versions((folder / name).read_text()), (
        f"{name} is out of date; hanse/wire/__init__.py tells how to make it anew"
    )


def _without_versions(code: str) -> list[str]:
    """The lines that do not depend on the version of the generator."""
    lines = code.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("DESCRIPTOR", "_sym_db")))
    return lines[start:]

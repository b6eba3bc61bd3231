"""The examples that come with Hanse: in the installed package, or in the checkout."""

from __future__ import annotations

from pathlib import Path


def example(name: str) -> Path:
    """The folder of an example: ``heart`` or ``mnist``.

    Raises:
        FileNotFoundError: if there is no such example.
    """
    here = Path(__file__).parent
    for folder in (here / "_examples" / name, here.parents[1] / "deploy" / "examples" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no example {name!r} in this installation")

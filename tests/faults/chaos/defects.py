"""Defects that Hanse could have, planted to see that the chaos finds each of them."""

from __future__ import annotations


def plant(name: str) -> None:
    """Give this process a defect."""
    raise NotImplementedError(name)

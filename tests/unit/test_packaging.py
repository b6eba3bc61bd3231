"""What is installed, against what the project says it needs and was tested with."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, _, version in pins}


def direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = {*project["dependencies"], *(line for extra in extras for line in extra)}
    requirements = [Requirement(line) for line in sorted(lines)]
    return [requirement for requirement in requirements if requirement.name != "hanse"]


def needed() -> set[str]:
    """Every distribution that ``hanse[dev]`` brings in here, at any distance.

    Not beyond torch: what that needs depends on the accelerator it was built for.
    """
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement("hanse[dev]")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == "torch":
                continue
            further = map(Requirement, distribution(name).requires or [])
            waiting += [r for r in further if not r.marker or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {"hanse"}


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_what_was_tested_is_what_is_asked_for(requirement: Requirement) -> None:
    pinned = constraints()[canonicalize_name(requirement.name)]

    assert requirement.specifier.contains(pinned), f"{requirement} but {pinned} was tested"


def test_everything_that_is_needed_is_pinned() -> None:
    assert needed() - constraints().keys() == set()

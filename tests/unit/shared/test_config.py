"""Files that people write: a mistake is told with its key, its value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanse.config import Settings, load_toml, validate
from hanse.errors import JobError, SiteFileError
from pydantic import Field, PositiveInt, ValidationError


class Inner(Settings):
    steps: PositiveInt = 1
    lr: float = 0.1


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    rate: float = Field(default=0.5, ge=0.0, le=1.0)


def told(data: object) -> str:
    with pytest.raises(JobError) as refused:
        validate(data, Outer, JobError, where="job.toml")
    return refused.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a", "inner": {"stepps": 3}}, "inner.stepps: unknown key (did you mean steps?)"),
        ({"name": "a", "innner": {}}, "innner: unknown key (did you mean inner?)"),
        ({"name": "a", "inner": {"zzz": 3}}, "inner.zzz: unknown key (known here: steps, lr)"),
        ({"name": "a", "inner": {"steps": 0}}, "inner.steps = 0: Input should be greater than 0"),
        ({"name": "a", "rate": 2.0}, "rate = 2.0: Input should be less than or equal to 1"),
        ({"name": "a", "rate": float("nan")}, "rate = nan: Input should be a finite number"),
        ({"name": "a", "several": [{"lr": "x"}]}, "several.0.lr = 'x': Input should be a valid"),
        ({}, "name: missing, and needed"),
    ],
)
def test_a_mistake_is_told_with_its_key_and_its_value(data: object, message: str) -> None:
    assert told(data).startswith(f"job.toml: {message}")


def test_every_mistake_is_told_at_once() -> None:
    message = told({"rate": -1.0, "inner": {"stepps": 1}})

    assert "name: missing" in message
    assert "rate = -1.0" in message
    assert "stepps" in message


def test_a_file_becomes_a_frozen_model(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('name = "a"\n[inner]\nsteps = 2\n', encoding="utf-8")

    read = load_toml(file, Outer, SiteFileError)

    assert read.inner.steps == 2
    with pytest.raises(ValidationError, match="frozen"):
        read.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "not valid TOML"),
        (b"name = '\xff'", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "site.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SiteFileError, match=message) as refused:
        load_toml(file, Outer, SiteFileError)

    assert refused.value.message.startswith(str(file))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SiteFileError, match="cannot be read"):
        load_toml(tmp_path, Outer, SiteFileError)


def test_a_file_that_is_nested_too_deeply_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("x = " + "[" * 20_000)
    with pytest.raises(JobError, match=r"job\.toml: not valid TOML: it is nested too deeply"):
        load_toml(tmp_path / "job.toml", Outer, JobError)

"""Files that people write: read once, validated into frozen models, mistakes told in full."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hanse.errors import ConfigError
from hanse.plain import plain

MOST_PROBLEMS = 20
LONGEST_VALUE = 200
"""Characters of a value, or of the name of a key, in a message: some files come from others."""


class Settings(BaseModel):
    """Base of every table in a file that a person writes: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


S = TypeVar("S", bound=BaseModel)


def load_toml(path: Path, model: type[S], error: type[ConfigError]) -> S:
    """Read ``path`` into ``model``.

    Raises:
        ConfigError: of the kind ``error``, naming file, key, value and what was expected.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise error(f"{path}: no such file", remedy="Name an existing file.") from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise error(f"{path}: cannot be read: {unreadable}") from unreadable
    except tomllib.TOMLDecodeError as malformed:
        raise error(f"{path}: not valid TOML: {malformed}") from malformed
    except RecursionError as deep:
        raise error(f"{path}: not valid TOML: it is nested too deeply") from deep
    return validate(data, model, error, where=path.name)


def validate(data: object, model: type[S], error: type[ConfigError], *, where: str) -> S:
    """Validate ``data`` into ``model``; ``where`` is what a message calls the source."""
    try:
        return model.model_validate(data)
    except ValidationError as invalid:
        found = invalid.errors(include_url=False)
        problems = [_problem(detail, model) for detail in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(f"and {len(found) - MOST_PROBLEMS} more")
        raise error(f"{where}: " + "; ".join(problems)) from invalid


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location = plain(".".join(str(part) for part in detail["loc"]), LONGEST_VALUE)
    if detail["type"] == "extra_forbidden":
        return f"{location}: unknown key{_suggestion(detail['loc'], model)}"
    if detail["type"] == "missing":
        return f"{location}: missing, and needed"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], Mapping):
        return f"{location}: {message}" if location else message
    return f"{location} = {plain(_repr(detail['input']), LONGEST_VALUE)}: {message}"


def _repr(value: object) -> str:
    """A value as it is written; of a number with thousands of digits Python makes no text."""
    try:
        return repr(value)
    except ValueError:
        return "a number of too many digits"


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    table: Any = model
    for part in location[:-1]:
        field = getattr(table, "model_fields", {}).get(part)
        table = field.annotation if field is not None else None
    known = list(getattr(table, "model_fields", {}))
    close = get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known here: {', '.join(known)})" if known else ""

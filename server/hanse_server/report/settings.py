"""A job's settings, written out as the TOML that would ask for the same again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(settings: Mapping[str, Any]) -> str:
    """``settings`` as TOML; what is None or an empty table is left out."""
    return "\n".join(_table(settings, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    given = {name: value for name, value in table.items() if value is not None and value != {}}
    # A table within a table stays on one line where all of it is plain values.
    deep = {name for name, value in given.items() if isinstance(value, dict)}
    if path:
        deep = {name for name in deep if not _is_plain(given[name])}
    for name, value in given.items():
        if name not in deep:
            yield f"{_key(name)} = {_value(value)}"
    for name in given:
        if name in deep:
            inner = (*path, name)
            lines = list(_table(given[name], inner))
            if lines[0]:  # it has values of its own, besides further tables
                yield from ("", f"[{'.'.join(map(_key, inner))}]")
            yield from lines


def _is_plain(table: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, dict) for value in table.values())


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        given = {name: inner for name, inner in value.items() if inner is not None}
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in given.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)

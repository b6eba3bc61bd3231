"""Files that people write: jobs, sites, registers; and the job that an instruction holds."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hanse.config import validate
from hanse.errors import JobError
from hanse.job import Job, load_job
from hanse.task import load_task
from hanse_client.site import load_site
from hanse_server.provisioning.kit import site_toml
from hanse_server.register import Register, add_site, remove_site

from tests.fuzz.mutation import change_bytes, change_json, change_tree
from tests.fuzz.site_link import AskedSite
from tests.fuzz.target import Target

_SHIPPED = ("image", "tabular")
_EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def toml_of(table: dict[str, Any], path: str = "") -> str:
    """A tree as TOML; what TOML has no word for is left out."""
    lines, tables = [], []
    for key, value in table.items():
        name = _quoted(str(key))
        if isinstance(value, dict):
            inner = f"{path}.{name}".lstrip(".")
            tables.append(f"[{inner}]\n{toml_of(value, inner)}")
        elif (text := _value(value)) is not None:
            lines.append(f"{name} = {text}\n")
    return "".join(lines) + "".join(tables)


def _value(value: Any) -> str | None:
    if isinstance(value, list):
        inner = [text for each in value if (text := _value(each)) is not None]
        return f"[{', '.join(inner)}]"
    if isinstance(value, dict):
        pairs = [(key, text) for key, each in value.items() if (text := _value(each)) is not None]
        return "{" + ", ".join(f"{_quoted(str(key))} = {text}" for key, text in pairs) + "}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _quoted(value)
    return None if value is None else json.dumps(value)


def _quoted(text: str) -> str:
    """Text as a string of TOML, which knows no surrogates as JSON does."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _change(data: bytes, randomness: Random) -> bytes:
    """A change to the tree of a TOML file; of its bytes, where it holds none."""
    if randomness.random() < 0.02:
        return data + b"\nx = " + b"[" * 20_000
    if randomness.random() < 0.1:
        return change_bytes(data, randomness)
    try:
        tree = tomllib.loads(data.decode())
        changed = change_tree(tree, randomness)
        if isinstance(changed, dict):
            return toml_of(changed).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        pass
    return change_bytes(data, randomness)


def _target(folder: Path, read: Callable[[Path], object], seeds: list[bytes]) -> Target:
    path = folder / "file.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return Target(run=run, seeds=seeds, mutate=_change)


def _example_jobs() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_EXAMPLES.rglob("*job*.toml"))]


def jobs(folder: Path) -> Target:
    """``job.toml``, and the options of the shipped tasks in it."""

    def read(path: Path) -> None:
        job = load_job(path)
        validate(json.loads(job.instruction), Job, JobError, where="again")
        if job.task.name in _SHIPPED:
            load_task(job.task.name, job.task.options)

    return _target(folder, read, _example_jobs())


def sites(folder: Path) -> Target:
    """``site.toml``."""
    kit = site_toml("harbour", "localhost:9443")
    told = "\n".join(line.removeprefix("# ") for line in kit.splitlines() if "=" in line)
    peers = '\n[policy.secure_aggregation]\nrequired = true\npeers = {north = "' + "0" * 64 + '"}\n'
    examples = [path.read_bytes() for path in sorted(_EXAMPLES.rglob("*site*.toml"))]
    whole = kit + peers
    return _target(folder, load_site, [kit.encode(), whole.encode(), told.encode(), *examples])


def registers(folder: Path) -> Target:
    """``sites.toml``: read, a site added, another removed."""
    whole = folder / "whole.toml"
    for name in ("north", "east"):
        add_site(whole, name, name.encode().hex().ljust(64, "0"))

    def read(path: Path) -> None:
        Register(path).admit("east", b"east".hex().ljust(64, "0"))
        add_site(path, "west", "f" * 64)
        remove_site(path, "east")

    return _target(folder, read, [whole.read_bytes(), b""])


def instructed_jobs(folder: Path) -> Target:
    """The JSON of a job in an instruction, as a site takes it in."""
    path = folder / "job.toml"
    seeds = []
    for example in _example_jobs():
        path.write_bytes(example)
        seeds.append(load_job(path).instruction.encode())
    asked = AskedSite(folder, *_SHIPPED)
    return Target(run=asked.ask, seeds=seeds, mutate=change_json, close=asked.close)

"""What either side keeps durably: journal, outbox, ledger, audit trail."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

from hanse.privacy.accounting import Charge
from hanse_client.audit import AuditTrail
from hanse_client.books import audit_path, audit_result, audit_view, ledger_path
from hanse_client.ledger import Ledger, read_ledger
from hanse_client.outbox import Outbox
from hanse_server.journal import Entry, Journal, State

from tests.charges import BUDGET, instruction, reserve
from tests.fuzz.mutation import change_bytes, change_json
from tests.fuzz.target import Target, each
from tests.harbour import site


def _file(folder: Path, name: str) -> Path:
    """A name without the files that SQLite put beside another of that name."""
    for path in folder.glob(f"{name}*"):
        path.unlink()
    return folder / name


def _compact(path: Path) -> bytes:
    """A database as one small file."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")
    return path.read_bytes()


def _with_rows(table: str, columns: int, statements: list[str], path: Path, rows: bytes) -> None:
    """A database of the schema given, with rows in JSON; what SQLite does not take is left out."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        try:
            listed = json.loads(rows)
        except (ValueError, RecursionError):
            listed = []
        for row in listed if isinstance(listed, list) else []:
            try:
                marks = ", ".join("?" * columns)
                db.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608
            except (sqlite3.Error, TypeError, ValueError, OverflowError):
                continue
        db.commit()


def _schema(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND type != 'trigger'"
        found = [row[0] for row in db.execute(query)]
        version = db.execute("PRAGMA user_version").fetchone()[0]
    return [*found, f"PRAGMA user_version = {version}"]


def _change(data: bytes, randomness: Random) -> bytes:
    """A change to rows in JSON, or to a database's bytes."""
    if data[:1] == b"\0":
        return b"\0" + change_json(data[1:], randomness)
    return data[:1] + change_bytes(data[1:], randomness)


def journals(folder: Path) -> Target:
    """The server's journal: a database, or rows of one."""
    path = _file(folder, "journal.sqlite")
    with closing(Journal(path)) as made:
        entries = [
            Entry(instruction=name, run_id=7, site="east", message_type="train", group_id="1")
            for name in ("a", "b", "c")
        ]
        made.owe(entries)
        made.mark(["b"], State.RECEIVED)
    whole, schema = _compact(path), _schema(path)

    def run(data: bytes) -> None:
        path = _file(folder, "journal.sqlite")
        if data[:1] == b"\0":
            _with_rows("instruction", 7, schema, path, data[1:])
        else:
            path.write_bytes(data[1:])
        with closing(Journal(path)) as journal:
            journal.unsettled()
            journal.state("a")
            journal.entry("a")
            journal.owe(entries[:1])
            journal.mark(["b", "c"], State.ABANDONED)
            journal.settle(keep={"b"})

    rows = [["a", "7", "east", "train", "1", "owed", 1.0], ["b", "9", "", "", "", "settled", 2]]
    seeds = [b"\1" + whole, b"\0" + json.dumps(rows).encode()]
    return Target(run=run, seeds=seeds, mutate=_change)


def outboxes(folder: Path) -> Target:
    """A site's outbox: a database, or rows of one."""
    path = _file(folder, "outbox.sqlite")
    with closing(Outbox(path)) as made:
        made.put("a", b"header", [b"abc", b"def"])
        made.put("b", b"other", [])
    whole, schema = _compact(path), _schema(path)

    def run(data: bytes) -> None:
        path = _file(folder, "outbox.sqlite")
        if data[:1] == b"\0":
            _with_rows("reply", 5, schema, path, data[1:])
        else:
            path.write_bytes(data[1:])
        with closing(Outbox(path)) as outbox:
            names = {"a", *outbox.instructions()}
            for name in names:
                header = outbox.header(name)
                assert header is None or isinstance(header, bytes)
                assert isinstance(outbox.piece(name, 1), bytes)
            assert all(isinstance(name, str) for name in names)
            list(Outbox.look_into(path))
            outbox.put("c", b"h", [b"x"])
            outbox.forget(["a", "c"])

    seeds = [
        b"\1" + whole,
        b"\0" + json.dumps([["a", "h", 1.0, None, "abc"], ["b", "h", 2, "file", ""]]).encode(),
    ]
    return Target(run=run, seeds=seeds, mutate=_change)


def ledgers(folder: Path) -> Target:
    """A site's privacy ledger: a database, or the contents of its rows, rightly chained."""
    path = _file(folder, "ledger.sqlite")
    with Ledger(path) as made:
        made.release(reserve(made, "a"))
        made.take_back(reserve(made, "b"))
        made.note_unprotected(("a" * 64,), instruction("c"))
        made.adopt(("c" * 64,), 1)
        made.adopt(("d" * 64,), None)
    whole, schema = _compact(path), _schema(path)
    with closing(sqlite3.connect(path)) as db:
        contents = [json.loads(row[0]) for row in db.execute("SELECT content FROM events")]

    def run(data: bytes) -> None:
        path = _file(folder, "ledger.sqlite")
        if data[:1] == b"\0":
            _with_rows("events", 3, schema, path, _chained(data[1:]))
        else:
            path.write_bytes(data[1:])
        each(lambda: read_ledger(path).statement("a" * 64, BUDGET), lambda: _spend(path))

    seeds = [b"\1" + whole, b"\0" + json.dumps(contents).encode()]
    return Target(run=run, seeds=seeds, mutate=_change)


def _spend(path: Path) -> None:
    with Ledger(path) as ledger:
        charge = Charge(noise_multiplier=5.0, sampling_rate=0.1, steps=1)
        ledger.release(reserve(ledger, "z", charge=charge))


def _chained(contents: bytes) -> bytes:
    """The contents of rows with the digests that they should have."""
    try:
        listed = json.loads(contents)
    except (ValueError, RecursionError):
        return b"[]"
    rows, before = [], "0" * 64
    for number, content in enumerate(listed if isinstance(listed, list) else [], start=1):
        text = json.dumps(content)
        before = hashlib.sha256(before.encode() + text.encode()).hexdigest()
        rows.append([number, text, before])
    return json.dumps(rows).encode()


def trails(folder: Path) -> Target:
    """A site's audit trail, as it is, or rightly chained; the ledger beside it is whole."""
    at = site(folder)
    ledger, trail = ledger_path(at), audit_path(at)
    with Ledger(ledger) as made:
        made.anchor(AuditTrail(trail))
        made.release(reserve(made, "a"))
        made.take_back(reserve(made, "b"))
        made.note_unprotected(("a" * 64,), instruction("c"))
    whole = trail.read_bytes()

    def run(data: bytes) -> None:
        trail.write_bytes(linked(data[1:]) if data[:1] == b"\1" else data[1:])
        each(
            lambda: audit_view(audit_result(at)["lines"]),
            lambda: audit_view(audit_result(at, verify=True)["lines"]),
            lambda: AuditTrail(trail).write("asked", round=1),
        )

    left = {"event": "left", "time": 1.0, "type": "train", "round": 1, "bytes": 10}
    more = left | {"metrics": {"m": {"loss": 1.0}}, "kinds": {"noised": ["loss"]}}
    told = whole + json.dumps(more).encode() + b"\n"
    return Target(run=run, seeds=[b"\0" + whole, b"\1" + told], mutate=change_lines)


def change_lines(data: bytes, randomness: Random) -> bytes:
    """A change to one line of a trail, whose first byte tells whether it is then linked."""
    lines = data[1:].split(b"\n")
    at = randomness.randrange(len(lines))
    lines[at] = change_json(lines[at], randomness)
    return bytes([randomness.randrange(2)]) + b"\n".join(lines)


def linked(text: bytes) -> bytes:
    """Lines of a trail that each name the digest of the one before."""
    lines, before = [], "0" * 64
    for line in text.split(b"\n"):
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError):
            lines += [line] if line else []
            continue
        if isinstance(parsed, dict):
            line = json.dumps(parsed | {"previous": before}, sort_keys=True).encode()
        lines.append(line)
        before = hashlib.sha256(line).hexdigest()
    return b"\n".join(lines) + b"\n"

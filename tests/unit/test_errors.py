"""Every kind of error has a name, a code, a cause and a remedy, and the README tells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanse.errors import ConfigError, DataError, HanseError, LedgerError, error_types

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- exit codes -->", "<!-- /exit codes -->"
KINDS = list(error_types())


def subclasses(kind: type[HanseError]) -> Iterator[type[HanseError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def table() -> str:
    """The appendix of the README, as the errors say it."""
    rows = [
        f"| {kind.exit_code} | `{kind.label}` | {kind.help} | {kind.remedy_hint} |"
        for kind in KINDS
    ]
    return "\n".join(["| code | label | meaning | remedy |", "| --- | --- | --- | --- |", *rows])


def test_exit_codes_and_labels_are_unique() -> None:
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS)
    assert len({kind.label for kind in KINDS}) == len(KINDS)


def test_no_kind_of_error_is_without_a_code() -> None:
    assert set(subclasses(HanseError)) - set(KINDS) == {ConfigError}, (
        "their code would be another's"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_speaks_for_itself(kind: type[HanseError]) -> None:
    own = vars(kind)
    assert {"exit_code", "label", "help", "remedy_hint"} <= own.keys(), "inherited text misleads"
    assert kind.exit_code not in {0, 2, *range(126, 256)}, "a shell's, or the command line's"
    assert 0 < kind.exit_code < 256
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.label)
    for text in (kind.help, kind.remedy_hint):
        assert text.endswith("."), text
        assert len(text) <= 100, text
        assert "|" not in text, "it stands in a table"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_remedy_is_always_there(kind: type[HanseError]) -> None:
    assert kind("what is wrong").remedy == kind.remedy_hint
    assert kind("what is wrong", remedy="Do this.").remedy == "Do this."


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_only_a_harmless_message_leaves_a_site(kind: type[HanseError]) -> None:
    told = kind("age = 93").reason()

    assert told == (f"{kind.label}: age = 93" if kind.discloses_nothing else kind.label)


@pytest.mark.parametrize("kind", [DataError, *subclasses(DataError), LedgerError, HanseError])
def test_what_reads_private_data_discloses_nothing_of_it(kind: type[HanseError]) -> None:
    assert not kind.discloses_nothing


def test_the_readme_has_the_table() -> None:
    text = README.read_text(encoding="utf-8")
    expected = f"{BEGIN}\n{table()}\n{END}"

    assert expected in text, f"README.md should hold:\n\n{expected}\n"

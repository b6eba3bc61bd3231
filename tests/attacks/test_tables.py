"""The tables of attacks: how many there are, and that the page shows them all."""

from __future__ import annotations

from pathlib import Path

from hanse.errors import error_types

from tests.attacks import hostile_servers, hostile_sites

PAGE = Path(__file__).with_name("README.md")
TABLES = {
    "sites": (hostile_sites.IN_A_ROUND, hostile_sites.ON_THE_STREAM, hostile_sites.AT_THE_DOOR),
    "servers": (hostile_servers.INSTRUCTED, hostile_servers.STREAMED),
}


def rows(side: str) -> list[str]:
    """The lines of a table, numbered."""
    attacks = [attack for table in TABLES[side] for attack in table]
    return [f"| {at} | {each.does} | `{each.label}` |" for at, each in enumerate(attacks, start=1)]


def shown(side: str) -> list[str]:
    """The lines of a table as the page has them."""
    text = PAGE.read_text(encoding="utf-8")
    between = text.partition(f"<!-- {side} -->\n")[2].partition(f"<!-- /{side} -->")[0]
    return between.strip().splitlines()[2:]


def test_there_are_twenty_of_sites_and_fifteen_of_servers() -> None:
    sites, servers = rows("sites"), rows("servers")
    print(f"{len(sites)} attacks by a hostile site, {len(servers)} by a hostile server")
    assert len(sites) >= 20
    assert len(servers) >= 15


def test_each_is_told_once_and_refused_by_a_name_of_ours() -> None:
    labels = {kind.label for kind in error_types()}
    for tables in TABLES.values():
        attacks = [attack for table in tables for attack in table]
        assert len({attack.does for attack in attacks}) == len(attacks)
        assert {attack.label for attack in attacks} <= labels


def test_the_page_shows_the_tables_as_they_are() -> None:
    for side in TABLES:
        assert shown(side) == rows(side)

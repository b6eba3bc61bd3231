"""``sites.toml``: who is let in, as it stands in the file now."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanse.errors import NotRegisteredError, RegisterError
from hanse_server.register import Register, add_site, remove_site, renew_site, retire_site

A, B, C, D = (letter * 64 for letter in "abcd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sites.toml"


def test_sites_are_added_and_removed_under_a_running_server(path: Path) -> None:
    add_site(path, "north", A)
    register = Register(path)
    register.admit("north", A)
    with pytest.raises(NotRegisteredError, match="'south' is not in the server's register"):
        register.admit("south", B)

    add_site(path, "south", B)
    register.admit("south", B)
    register.admit("north", A)

    remove_site(path, "north")
    with pytest.raises(NotRegisteredError):
        register.admit("north", A)
    assert register.sites() == {"south": B}


def test_a_new_certificate_takes_the_place_of_the_old(path: Path) -> None:
    add_site(path, "north", A)
    add_site(path, "north", B)
    register = Register(path)
    register.admit("north", B)
    with pytest.raises(NotRegisteredError, match=r"with the certificate bbbb.*not with aaaa"):
        register.admit("north", A)


def test_after_a_renewal_both_certificates_are_let_in(path: Path) -> None:
    soon, late = (datetime.now(UTC).replace(microsecond=0) + timedelta(days=n) for n in (9, 99))
    add_site(path, "north", A, soon)
    add_site(path, "south", D, late)
    register = Register(path)

    renew_site(path, "north", B, late)

    assert register.sites() == {"north": B, "south": D}
    for fingerprint in (A, B):
        register.admit("north", fingerprint)
    for name, fingerprint in (("south", A), ("south", B), ("north", C), ("north", D)):
        with pytest.raises(NotRegisteredError):
            register.admit(name, fingerprint)
    north = register.entries()["north"]
    assert north.expires == late
    assert [(each.fingerprint, each.expires) for each in north.earlier] == [(A, soon)]

    renew_site(path, "north", C, late)  # before the site has taken the one of before
    for fingerprint in (A, B, C):
        register.admit("north", fingerprint)

    retire_site(path, "north")
    register.admit("north", C)
    for fingerprint in (A, B):
        with pytest.raises(NotRegisteredError, match=r"with the certificate cccc"):
            register.admit("north", fingerprint)
    with pytest.raises(RegisterError, match="'north' has no certificate from before"):
        retire_site(path, "north")


def test_an_earlier_certificate_is_let_in_until_it_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    add_site(path, "north", A, now + timedelta(days=9))
    renew_site(path, "north", B, now + timedelta(days=99))
    register = Register(path)
    register.admit("north", A)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Later:
            return cls.fromtimestamp((now + timedelta(days=10)).timestamp(), tz=UTC)

    monkeypatch.setattr("hanse_server.register.datetime", Later)
    with pytest.raises(NotRegisteredError):
        register.admit("north", A)
    register.admit("north", B)
    renew_site(path, "north", C, now + timedelta(days=199))
    assert [each.fingerprint for each in register.entries()["north"].earlier] == [B]


def test_removing_a_site_shuts_out_all_its_certificates(path: Path) -> None:
    add_site(path, "north", A)
    renew_site(path, "north", B, datetime.now(UTC) + timedelta(days=9))
    register = Register(path)

    remove_site(path, "north")

    for fingerprint in (A, B):
        with pytest.raises(NotRegisteredError, match="not in the server's register"):
            register.admit("north", fingerprint)


def test_only_a_registered_site_is_renewed_or_retired(path: Path) -> None:
    add_site(path, "north", A)
    before = path.read_bytes()
    for change in (
        lambda: renew_site(path, "south", B, datetime.now(UTC)),
        lambda: retire_site(path, "south"),
    ):
        with pytest.raises(RegisterError, match=r"no site 'south' \(registered: north\)"):
            change()
    with pytest.raises(RegisterError, match="two sites have the fingerprint"):
        renew_site(path, "north", A, datetime.now(UTC))
    assert path.read_bytes() == before


def test_a_person_may_write_it(path: Path) -> None:
    path.write_text(f'# ours\n[[site]]\nname = "north"\nfingerprint = "{A}"\n')
    assert Register(path).sites() == {"north": A}
    path.write_text("")
    assert Register(path).sites() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[site]]\nname = 'north'", "site.0.fingerprint: missing, and needed"),
        (f"[[site]]\nname = 'North'\nfingerprint = '{A}'", "site.0.name = 'North'"),
        (f"[[site]]\nname = 'n'\nfingerprint = '{A.upper()}'", "site.0.fingerprint"),
        (f"[[site]]\nnmae = 'n'\nfingerprint = '{A}'", "nmae: unknown key"),
        (f"[[site]]\nname = 'n'\nfingerprint = '{A}'\n" * 2, "two sites have the name n"),
        (
            f"[[site]]\nname = 'n'\nfingerprint = '{A}'\n[[site]]\nname = 'm'\nfingerprint = '{A}'",
            "two sites have the fingerprint",
        ),
        (
            f"[[site]]\nname = 'n'\nfingerprint = '{A}'\n[[site.earlier]]\nfingerprint = '{A}'",
            "two sites have the fingerprint",
        ),
        (
            f"[[site]]\nname = 'n'\nfingerprint = '{A}'\nexpires = 2030-01-01",
            "site.0.expires",
        ),
        ("[[site", "not valid TOML"),
    ],
)
def test_mistakes_are_told_with_their_place(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(RegisterError) as told:
        Register(path)
    assert message in told.value.message


def test_a_missing_file_is_told_at_the_start(path: Path) -> None:
    with pytest.raises(RegisterError, match="no such file"):
        Register(path)


@pytest.mark.parametrize("broken", ["[[site", None])
def test_a_mistake_under_a_running_server_changes_nothing(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    add_site(path, "north", A)
    register = Register(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)

    with caplog.at_level(logging.ERROR):
        register.admit("north", A)
        register.admit("north", A)

    assert len(caplog.records) == 1
    add_site(path.with_name("new"), "south", B)
    path.with_name("new").replace(path)
    assert register.sites() == {"south": B}


def test_a_change_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    add_site(path, "north", A)
    register = Register(path)
    stat = path.stat()
    add_site(path, "north", B)  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert register.sites() == {"north": B}


@pytest.mark.parametrize(("name", "fingerprint"), [("No", A), ("n", "a"), ('n"', A), ("taken", B)])
def test_what_cannot_stand_in_the_register_is_not_written(
    path: Path, name: str, fingerprint: str
) -> None:
    add_site(path, "south", B)
    before = path.read_bytes()
    with pytest.raises(RegisterError):
        add_site(path, name, fingerprint)
    assert path.read_bytes() == before


def test_a_site_that_is_not_there_cannot_be_removed(path: Path) -> None:
    add_site(path, "north", A)
    with pytest.raises(RegisterError, match=r"no site 'south' \(registered: north\)"):
        remove_site(path, "south")

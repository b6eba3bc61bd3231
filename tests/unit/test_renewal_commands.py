"""The commands of a renewal, as the two administrators give them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from hanse import cli
from hanse.tls import load_identity
from hanse_client.site import load_site
from hanse_server.provisioning.kit import unpack_kit
from hanse_server.register import Register

Hanse = Callable[..., dict[str, Any]]


@pytest.fixture
def hanse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hanse:
    """Runs a command with --json; its result, which is an error's where it has failed."""
    monkeypatch.setattr(cli, "app", typer.Typer())

    def run(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["hanse", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit):
            cli.main()
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return run


def test_from_the_request_to_the_retirement(hanse: Hanse, tmp_path: Path) -> None:
    federation = ("--federation", tmp_path / "federation")
    hanse("provision", "north", *federation, "--days", 9)
    site_file = unpack_kit(tmp_path / "federation" / "kits" / "north.zip", tmp_path) / "site.toml"
    tls = load_site(site_file).tls
    old = load_identity(tls.ca, tls.certificate, tls.key).fingerprint

    asked = hanse("client", "renew", site_file)
    signed = hanse("provision", "--sign", f"north={asked['request']}", *federation)
    (renewed,) = signed["renewed"]
    taken = hanse("client", "renew", site_file, "--take", renewed["kit"])

    assert asked["key_fingerprint"] == renewed["key_fingerprint"] == taken["key_fingerprint"]
    assert asked["new_key"]
    assert load_identity(tls.ca, tls.certificate, tls.key).fingerprint == renewed["fingerprint"]
    register = Register(tmp_path / "federation" / "sites.toml")
    for fingerprint in (old, renewed["fingerprint"]):
        register.admit("north", fingerprint)
    listed = hanse("provision", "--list", *federation)["certificates"]
    assert [each["earlier"] for each in listed if each["whose"] == "north"] == [False, True]

    assert hanse("provision", "--retire", "north", *federation)["retired"] == ["north"]
    listed = hanse("provision", "--list", *federation)["certificates"]
    assert [each["fingerprint"] for each in listed if each["whose"] == "north"] == [
        renewed["fingerprint"]
    ]
    assert hanse("provision", "--retire", "north", *federation)["error"] == "register"


def test_the_key_can_be_kept(hanse: Hanse, tmp_path: Path) -> None:
    federation = ("--federation", tmp_path / "federation")
    hanse("provision", "north", *federation)
    site_file = unpack_kit(tmp_path / "federation" / "kits" / "north.zip", tmp_path) / "site.toml"
    pin = hanse("client", "identity", site_file)

    asked = hanse("client", "renew", site_file, "--keep-key")

    assert (asked["new_key"], asked["key_fingerprint"]) == (False, pin["key_fingerprint"])


def test_the_server_is_renewed_on_its_own(hanse: Hanse, tmp_path: Path) -> None:
    federation = ("--federation", tmp_path / "federation")
    hanse("provision", "north", *federation, "--days", 9)

    renewed = hanse("provision", "--renew-server", *federation, "--days", 99)

    ends = datetime.fromisoformat(renewed["server_expires"]) - datetime.now(UTC)
    assert timedelta(days=98) < ends < timedelta(days=99)
    assert (renewed["added"], renewed["renewed"], renewed["kept"]) == ([], [], [])


@pytest.mark.parametrize("option", [("--list",), ("--retire", "north"), ("--remove", "north")])
def test_where_there_is_no_federation_none_is_made(
    hanse: Hanse, tmp_path: Path, option: tuple[str, ...]
) -> None:
    told = hanse("provision", *option, "--federation", tmp_path / "none")

    assert told["error"] == "register"
    assert not (tmp_path / "none").exists()

from __future__ import annotations

import re
import stat
import tomllib
import zipfile
from pathlib import Path

import pytest
from hanse.config import validate
from hanse.errors import CertificateError, SiteFileError
from hanse.records import Data
from hanse_client.privacy.settings import EngineSettings
from hanse_client.site import (
    AllowedTask,
    Budget,
    Noise,
    Policy,
    SecureAggregationPolicy,
    Site,
    Tls,
    load_site,
)
from hanse_server.provisioning.authority import Authority
from hanse_server.provisioning.kit import site_toml, unpack_kit, write_kit
from pydantic import BaseModel


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


@pytest.fixture
def kit(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "north.zip"
    write_kit(
        path,
        authority.issue_site("north"),
        authority_pem=authority.certificate_pem,
        coordinator="fl.example.org:8443",
    )
    return path


def test_a_kit_holds_all_that_a_site_needs(kit: Path, authority: Authority) -> None:
    with zipfile.ZipFile(kit) as archive:
        assert sorted(archive.namelist()) == [
            "north/README.txt",
            "north/ca.pem",
            "north/certificate.pem",
            "north/key.pem",
            "north/site.toml",
        ]
        assert archive.read("north/ca.pem") == authority.certificate_pem
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes["north/key.pem"] == stat.S_IFREG | 0o600
    assert modes["north/site.toml"] == stat.S_IFREG | 0o644


def test_the_zip_itself_is_for_its_owner_alone(kit: Path) -> None:
    assert stat.S_IMODE(kit.stat().st_mode) == 0o600


def test_an_unpacked_kit_loads_as_a_site(kit: Path, tmp_path: Path) -> None:
    folder = unpack_kit(kit, tmp_path / "site")

    site = load_site(folder / "site.toml")

    assert folder == tmp_path / "site" / "north"
    assert site.name == "north"
    assert site.coordinator == "fl.example.org:8443"
    for path in (site.tls.ca, site.tls.certificate, site.tls.key):
        assert path.is_file(), path
    assert stat.S_IMODE(site.tls.key.stat().st_mode) == 0o600


def test_the_kit_of_a_request_is_without_key_and_says_so(
    authority: Authority, tmp_path: Path
) -> None:
    from hanse_client.request import make_request

    request = make_request("south", tmp_path / "at-the-site")
    issued = authority.sign_request(request.request.read_bytes(), "south")
    path = tmp_path / "south.zip"
    write_kit(path, issued, authority_pem=authority.certificate_pem, coordinator="a:1")

    folder = unpack_kit(path, tmp_path)

    assert not (folder / "key.pem").exists()
    readme = (folder / "README.txt").read_text()
    assert "not in this kit" in readme
    assert request.key_fingerprint in readme, "what the administrator compares"


def test_the_readme_names_the_commands(kit: Path, tmp_path: Path) -> None:
    readme = (unpack_kit(kit, tmp_path / "site") / "README.txt").read_text()

    commands = re.findall(r"^    ((?:python3|hanse) .*)$", readme, flags=re.MULTILINE)
    assert commands == [
        'python3 -m pip install "hanse[client]"',
        "hanse client check site.toml",
        "hanse client run site.toml",
        "hanse client renew site.toml",
        "hanse client renew site.toml --take FILE",
    ]


def test_site_toml_names_every_setting() -> None:
    text = site_toml("north", "localhost:8443")
    models: list[type[BaseModel]] = [
        *(Site, Tls, Data, Budget),
        *(Policy, Noise, SecureAggregationPolicy, AllowedTask, EngineSettings),
    ]

    named = set(re.findall(r"^(?:#\s+)?(\w+) = ", text, flags=re.MULTILINE))
    tables = set(re.findall(r"^(?:# )?\[+([\w.]+)\]+$", text, flags=re.MULTILINE))

    settings = {field for model in models for field in model.model_fields}
    assert settings == named | {table.split(".")[-1] for table in tables}


def test_the_commented_out_settings_are_the_defaults() -> None:
    text = site_toml("north", "localhost:8443")
    spelled_out = re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    assert spelled_out != text

    def load(toml: str) -> Site:
        return validate(tomllib.loads(toml), Site, SiteFileError, where="site.toml")

    assert load(spelled_out) == load(text)


def test_what_is_no_kit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "north.zip").write_text("nothing")

    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(tmp_path / "north.zip", tmp_path)


# --- zips that are no kit -------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2], ids=["lzma", "bzip2"])
def test_a_zip_that_is_packed_in_another_way_is_no_kit(tmp_path: Path, packing: int) -> None:
    """LZMA takes the memory that its header declares."""
    path = tmp_path / "north.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("north/key.pem", "key")
    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(path, tmp_path / "out")


def test_a_zip_that_unpacks_to_too_much_is_no_kit(tmp_path: Path) -> None:
    path = tmp_path / "north.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("north/key.pem", bytes(2 << 20))
    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(path, tmp_path / "out")
    assert not list((tmp_path / "out" / "north").iterdir())


@pytest.mark.parametrize("method", [7, 99])
def test_a_zip_that_cannot_be_unpacked_is_no_kit(kit: Path, method: int, tmp_path: Path) -> None:
    data = bytearray(kit.read_bytes())
    data[data.index(b"PK\x01\x02") + 10] = method
    kit.write_bytes(data)
    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(kit, tmp_path / "out")


def test_a_kit_whose_bytes_were_changed_is_no_kit(kit: Path, tmp_path: Path) -> None:
    data = bytearray(kit.read_bytes())
    start = data.index(b"README.txt") + 10
    data[start : start + 20] = b"\xff" * 20
    kit.write_bytes(data)
    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(kit, tmp_path / "out")


def test_a_zip_that_declares_more_than_it_holds_is_no_kit(kit: Path, tmp_path: Path) -> None:
    data = bytearray(kit.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = b"\xff\xff\xff\x7f"  # bytes as they are packed
    kit.write_bytes(data)
    with pytest.raises(CertificateError, match="not a site's kit"):
        unpack_kit(kit, tmp_path / "out")
    assert not list((tmp_path / "out" / "north").iterdir())

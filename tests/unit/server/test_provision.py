from __future__ import annotations

import stat
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hanse.errors import CertificateError, RegisterError
from hanse.keys import read_key
from hanse.renewal import prove
from hanse.tls import load_identity
from hanse_client.renew import ask, take
from hanse_client.request import make_request, signing_request
from hanse_client.site import Site, load_site
from hanse_server.provisioning import federation
from hanse_server.provisioning.authority import Authority
from hanse_server.provisioning.certificates import read_certificate
from hanse_server.provisioning.federation import Provisioned, provision
from hanse_server.provisioning.kit import unpack_kit
from hanse_server.provisioning.layout import Layout
from hanse_server.provisioning.names import names_in
from hanse_server.provisioning.renewal import endings
from hanse_server.register import Register, remove_site, retire_site


def make(folder: Path, *sites: str, host: str = "fl.example.org", **more: object) -> Provisioned:
    return provision(folder, host=host, port=8443, sites=sites, **more)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_federation_is_complete(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north", "south")

    assert made.new_authority
    assert made.new_server
    assert [site.name for site in made.added] == ["north", "south"]
    assert made.kept == ()
    authority = Authority.open(made.layout.authority)
    server = read_certificate(made.layout.server_certificate)
    assert authority.has_signed(server)
    assert server.public_key() == read_key(made.layout.server_key).public_key()
    assert stat.S_IMODE(made.layout.server_key.stat().st_mode) == 0o600
    assert made.layout.server_ca.read_bytes() == authority.certificate_pem
    hosts = {name.value for name in names_in(server) if isinstance(name, x509.DNSName)}
    assert hosts == {"fl.example.org", "localhost"}


def test_the_register_holds_the_certificates_of_the_kits(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north", "south")

    registered = Register(made.layout.register).sites()
    in_kits = {}
    for site in made.added:
        unpacked = unpack_kit(site.kit, tmp_path / "sites")
        certificate = read_certificate(unpacked / "certificate.pem")
        in_kits[site.name] = certificate.fingerprint(hashes.SHA256()).hex()
    assert registered == in_kits


def test_provisioning_again_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, "north", "south")
    before = contents(tmp_path)

    again = make(tmp_path, "north", "south")

    assert contents(tmp_path) == before
    assert (again.new_authority, again.new_server) == (False, False)
    assert again.added == ()
    assert again.kept == ("north", "south")


def test_a_site_is_added_beside_those_that_are_there(tmp_path: Path) -> None:
    make(tmp_path, "north")
    before = contents(tmp_path)

    again = make(tmp_path, "north", "south")

    assert [site.name for site in again.added] == ["south"]
    after = contents(tmp_path)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {again.layout.register}
    assert after.keys() - before.keys() == {again.layout.kit("south")}


def test_a_kit_that_was_delivered_and_deleted_is_not_made_again(tmp_path: Path) -> None:
    made = make(tmp_path, "north")
    made.added[0].kit.unlink()

    assert make(tmp_path, "north").added == ()


def test_a_removed_site_can_be_issued_anew(tmp_path: Path) -> None:
    first = make(tmp_path, "north").added[0]
    remove_site(Layout(tmp_path).register, "north")

    second = make(tmp_path, "north").added[0]

    assert second.fingerprint != first.fingerprint
    assert Register(Layout(tmp_path).register).sites() == {"north": second.fingerprint}


def test_a_new_host_gets_a_new_server_certificate_of_the_same_authority(tmp_path: Path) -> None:
    made = make(tmp_path, "north")
    authority = made.layout.server_ca.read_bytes()

    again = make(tmp_path, host="10.0.0.7")

    assert again.new_server
    assert made.layout.server_ca.read_bytes() == authority
    values = {
        str(name.value) for name in names_in(read_certificate(made.layout.server_certificate))
    }
    assert values == {"10.0.0.7", "localhost", "127.0.0.1"}


def test_an_expired_server_certificate_is_renewed(tmp_path: Path) -> None:
    layout = make(tmp_path, "north").layout
    past = datetime.now(UTC) - timedelta(days=10)
    old = Authority.open(layout.authority).issue_server(
        "fl.example.org", ["fl.example.org"], days=1, start=past
    )
    layout.server_certificate.write_bytes(old.certificate_pem)
    layout.server_key.write_bytes(old.key_pem)

    assert make(tmp_path).new_server


def test_a_server_certificate_without_its_key_is_replaced(tmp_path: Path) -> None:
    layout = make(tmp_path, "north").layout
    layout.server_key.unlink()

    assert make(tmp_path).new_server

    server = read_certificate(layout.server_certificate)
    assert server.public_key() == read_key(layout.server_key).public_key()


def test_a_request_is_signed_registered_and_answered_with_a_kit(tmp_path: Path) -> None:
    request = make_request("south", tmp_path / "at-south")

    made = make(tmp_path / "federation", "north", requests={"south": request.request})

    south = made.added[1]
    assert (south.name, south.key_in_kit) == ("south", False)
    assert south.key_fingerprint == request.key_fingerprint
    assert Register(made.layout.register).sites()["south"] == south.fingerprint
    unpacked = unpack_kit(south.kit, tmp_path)
    certificate = read_certificate(unpacked / "certificate.pem")
    assert certificate.public_key() == read_key(request.key).public_key()


def test_the_days_asked_for_are_given(tmp_path: Path) -> None:
    made = make(tmp_path, "north", days=7)

    for expires in (made.server_expires, made.added[0].expires):
        assert timedelta(days=6) < expires - datetime.now(UTC) <= timedelta(days=7)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sites": ["north", "Bad_Name"]}, "site name 'Bad_Name'"),
        ({"sites": ["north"], "host": "https://a"}, "neither a DNS name"),
        ({"sites": ["south"], "requests": {"south": "south.csr"}}, "both with a signing request"),
        ({"requests": {"south": "missing.csr"}}, r"missing\.csr: No such file"),
        ({"requests": {"other": "south.csr"}}, "for south, and not for 'other'"),
        ({"sites": ["north"], "days": 0}, "days=0"),
    ],
    ids=["name", "host", "twice", "missing", "other", "days"],
)
def test_a_refusal_leaves_no_site_registered(
    tmp_path: Path, more: dict[str, object], message: str
) -> None:
    make_request("south", tmp_path / "at-south").request.rename(tmp_path / "south.csr")
    asked = {"host": "localhost", "port": 8443, **more}
    files = asked.get("requests", {})
    assert isinstance(files, dict)
    asked["requests"] = {name: tmp_path / file for name, file in files.items()}
    folder = tmp_path / "federation"

    with pytest.raises(CertificateError, match=message):
        provision(folder, **asked)  # type: ignore[arg-type]

    assert not Layout(folder).register.exists()
    assert not list(folder.rglob("*.zip"))


def test_a_request_does_not_push_out_a_registered_site(tmp_path: Path) -> None:
    make(tmp_path, "north")
    before = contents(tmp_path)
    request = make_request("north", tmp_path.parent / "elsewhere")

    with pytest.raises(CertificateError, match="north: registered already") as refused:
        make(tmp_path, requests={"north": request.request})

    assert "--remove" in refused.value.remedy
    assert contents(tmp_path) == before


def renewal_of(folder: Path, made: Provisioned) -> Site:
    """The site north, with its kit unpacked and a request for renewal beside it."""
    unpacked = unpack_kit(made.layout.kit("north"), folder)
    site = load_site(unpacked / "site.toml")
    ask(site, keep_key=False)
    return site


def test_a_registered_site_is_renewed_by_its_own_request(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north", days=9)
    site = renewal_of(tmp_path, made)
    old = made.added[0]
    request = site.tls.certificate.with_name("request.csr")

    again = make(tmp_path / "federation", requests={"north": request})

    (renewed,) = again.renewed
    assert again.added == ()
    assert not again.new_server
    assert (renewed.name, renewed.key_in_kit) == ("north", False)
    entry = Register(again.layout.register).entries()["north"]
    assert (entry.fingerprint, entry.expires) == (renewed.fingerprint, renewed.expires)
    assert [each.fingerprint for each in entry.earlier] == [old.fingerprint]
    assert load_identity(site.tls.ca, site.tls.certificate, site.tls.key).fingerprint == (
        old.fingerprint
    )
    taken = take(site, renewed.kit)
    assert taken.new_key
    assert taken.fingerprint == renewed.fingerprint
    assert taken.key_fingerprint == renewed.key_fingerprint != old.key_fingerprint


def test_another_sites_proof_renews_nobody(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north", "south")
    before = contents(tmp_path / "federation")
    south = load_site(unpack_kit(made.layout.kit("south"), tmp_path) / "site.toml")
    # South, with its own key, asks in the name of north.
    request = tmp_path / "forged.csr"
    key = read_key(south.tls.key)
    request.write_bytes(
        prove(signing_request("north", key), south.tls.certificate.read_bytes(), key)
    )

    with pytest.raises(CertificateError, match="north: registered already"):
        make(tmp_path / "federation", requests={"north": request})

    assert contents(tmp_path / "federation") == before


def test_a_retired_certificate_renews_no_more(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north")
    site = renewal_of(tmp_path, made)
    request = site.tls.certificate.with_name("request.csr")
    make(tmp_path / "federation", requests={"north": request})
    retire_site(made.layout.register, "north")

    with pytest.raises(CertificateError, match="north: registered already"):
        make(tmp_path / "federation", requests={"north": request})


def test_the_server_is_renewed_under_the_same_names(tmp_path: Path) -> None:
    made = make(tmp_path, "north", host="10.0.0.7")
    layout = made.layout
    before = read_certificate(layout.server_certificate)

    assert not make(tmp_path, host="localhost").new_server
    again = make(tmp_path, host="localhost", days=9, renew_server=True)

    after = read_certificate(layout.server_certificate)
    assert again.new_server
    assert names_in(after) == names_in(before)
    assert after.public_key() == read_key(layout.server_key).public_key() != before.public_key()
    assert stat.S_IMODE(layout.server_key.stat().st_mode) == 0o600
    assert Authority.open(layout.authority).has_signed(after)


def test_renewing_the_server_keeps_an_authority_that_was_put_beside(tmp_path: Path) -> None:
    layout = make(tmp_path / "federation", "north").layout
    both = layout.server_ca.read_bytes() + Authority.create(tmp_path / "new").certificate_pem
    layout.server_ca.write_bytes(both)

    make(tmp_path / "federation", renew_server=True)

    assert layout.server_ca.read_bytes() == both


def test_every_certificate_is_listed(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north", "south", days=9)
    request = renewal_of(tmp_path, made).tls.certificate.with_name("request.csr")
    make(tmp_path / "federation", requests={"north": request}, days=99)

    found = endings(made.layout)

    days = [
        (each.whose, each.earlier, round((each.expires - datetime.now(UTC)) / timedelta(days=1)))
        for each in found
        if each.expires
    ]
    assert days == [
        ("authority", False, 3650),
        ("server", False, 9),
        ("north", False, 99),
        ("north", True, 9),
        ("south", False, 9),
    ]
    with pytest.raises(RegisterError, match="holds no federation"):
        endings(Layout(tmp_path))


@pytest.mark.parametrize("name", ["authority/ca.key", "server/server.key"])
def test_keys_that_others_may_read_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "north")
    (tmp_path / name).chmod(0o640)

    with pytest.raises(CertificateError, match="its mode is 0640"):
        make(tmp_path, "south")


def test_no_private_key_is_ever_readable_by_others(tmp_path: Path) -> None:
    made = make(tmp_path / "federation", "north")
    renewal_of(tmp_path / "sites", made)
    make(tmp_path / "federation", renew_server=True)

    holding = [path for path in tmp_path.rglob("*") if path.is_file() and _has_key(path)]

    assert {path.name for path in holding} == {
        *("ca.key", "server.key", "north.zip", "key.pem", "key.pem.next")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}


def _has_key(path: Path) -> bool:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as kit:
            return any(b"PRIVATE KEY" in kit.read(entry) for entry in kit.infolist())
    return b"PRIVATE KEY" in path.read_bytes()


def test_a_run_cut_off_before_the_register_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(federation, "add_site", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "north")

    made = make(tmp_path, "north")

    assert [site.name for site in made.added] == ["north"]
    unpacked = unpack_kit(made.added[0].kit, tmp_path / "sites")
    certificate = read_certificate(unpacked / "certificate.pem")
    assert certificate.fingerprint(hashes.SHA256()).hex() == made.added[0].fingerprint


def test_a_malformed_register_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path, "north")
    Layout(tmp_path).register.write_text("nothing")

    with pytest.raises(RegisterError, match=r"sites\.toml"):
        make(tmp_path, "south")

    assert Layout(tmp_path).register.read_text() == "nothing"


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CertificateError, match="file"):
        make(tmp_path / "file", "north")

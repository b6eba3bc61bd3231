"""`hanse client renew`: what is asked for, and what is taken."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanse.errors import CertificateError, CertificateExpiredError
from hanse.keys import key_fingerprint, read_key, write_secret
from hanse.renewal import prover
from hanse.tls import load_identity, next_key
from hanse_client.renew import ask, take
from hanse_client.secagg import certified, pin_of
from hanse_client.site import Site
from hanse_server.provisioning.authority import Authority


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


@pytest.fixture
def site(tmp_path: Path, ours: Authority) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    issued = ours.issue_site("north", days=9)
    (folder / "ca.pem").write_bytes(ours.certificate_pem)
    (folder / "certificate.pem").write_bytes(issued.certificate_pem)
    write_secret(folder / "key.pem", issued.key_pem)
    return Site.model_validate(
        {
            "name": "north",
            "coordinator": "localhost:1",
            "tls": {
                "ca": folder / "ca.pem",
                "certificate": folder / "certificate.pem",
                "key": folder / "key.pem",
            },
            "data": {"train": folder},
            "budget": {"epsilon": 1.0},
        }
    )


def present(site: Site) -> str:
    return load_identity(site.tls.ca, site.tls.certificate, site.tls.key).fingerprint


def signed(site: Site, ours: Authority, **settings: object) -> Path:
    request = site.tls.certificate.with_name("request.csr").read_bytes()
    path = site.tls.certificate.with_name("signed.pem")
    path.write_bytes(ours.sign_request(request, "north", **settings).certificate_pem)  # type: ignore[arg-type]
    return path


def test_asking_changes_nothing_in_use(site: Site, ours: Authority) -> None:
    before = present(site)

    asked = ask(site, keep_key=False)

    assert present(site) == before
    assert asked.new_key
    assert asked.key == next_key(site.tls.key)
    assert stat.S_IMODE(asked.key.stat().st_mode) == 0o600
    assert asked.key_fingerprint == key_fingerprint(read_key(asked.key).public_key())
    assert asked.key_fingerprint != pin_of(certified(site))[1]
    found = prover(asked.request.read_bytes())
    assert found is not None
    assert found.public_key() == read_key(site.tls.key).public_key()
    assert b"PRIVATE" not in asked.request.read_bytes()


def test_asking_again_keeps_the_key_that_waits(site: Site) -> None:
    assert ask(site, keep_key=False).key_fingerprint == ask(site, keep_key=False).key_fingerprint


def test_a_new_key_is_taken_with_its_certificate(site: Site, ours: Authority) -> None:
    asked = ask(site, keep_key=False)

    taken = take(site, signed(site, ours))

    assert taken.fingerprint == present(site)
    assert taken.new_key
    assert pin_of(certified(site)) == ("north", asked.key_fingerprint)
    assert not next_key(site.tls.key).exists()
    assert stat.S_IMODE(site.tls.key.stat().st_mode) == 0o600


def test_the_same_key_keeps_the_pin_of_others(site: Site, ours: Authority) -> None:
    pin = pin_of(certified(site))
    asked = ask(site, keep_key=True)

    taken = take(site, signed(site, ours))

    assert (asked.new_key, taken.new_key) == (False, False)
    assert pin_of(certified(site)) == pin
    assert taken.fingerprint == present(site)


def test_a_site_signs_with_the_key_of_its_certificate_at_every_step(
    site: Site, ours: Authority
) -> None:
    """In secure rounds too: after the certificate is in its place, and before its key is."""
    ask(site, keep_key=False)
    site.tls.certificate.write_bytes(signed(site, ours).read_bytes())

    identity = certified(site)()

    key = identity.verifier.key_of("north", identity.signer.credential)
    assert key == identity.signer.key.public_key()


@pytest.mark.parametrize("keep_key", [False, True])
def test_a_certificate_that_is_over_can_still_be_renewed(
    site: Site, ours: Authority, keep_key: bool
) -> None:
    past = datetime.now(UTC) - timedelta(days=10)
    old = ours.issue_site("north", days=1, start=past)
    site.tls.certificate.write_bytes(old.certificate_pem)
    write_secret(site.tls.key, old.key_pem)

    ask(site, keep_key=keep_key)

    assert take(site, signed(site, ours)).fingerprint == present(site)


def test_taking_the_same_again_changes_nothing(site: Site, ours: Authority) -> None:
    ask(site, keep_key=False)
    first = take(site, signed(site, ours))

    second = take(site, site.tls.certificate.with_name("signed.pem"))

    assert (second.fingerprint, second.new_key) == (first.fingerprint, False)


def test_what_is_not_this_sites_is_not_taken(site: Site, ours: Authority, tmp_path: Path) -> None:
    before = present(site)
    ask(site, keep_key=False)
    path = site.tls.certificate.with_name("signed.pem")
    past = datetime.now(UTC) - timedelta(days=10)
    other = Authority.create(tmp_path / "other")
    request = site.tls.certificate.with_name("request.csr").read_bytes()
    wrong = {
        "is not the key of": ours.issue_site("north").certificate_pem,
        "was not issued by": other.sign_request(request, "north").certificate_pem,
        "not a PEM certificate": b"nothing",
        "expired on": ours.sign_request(request, "north", days=1, start=past).certificate_pem,
    }
    for message, pem in wrong.items():
        path.write_bytes(pem)
        with pytest.raises(CertificateError, match=message):
            take(site, path)
    with pytest.raises(CertificateError, match=r"missing\.pem: cannot be read"):
        take(site, path.with_name("missing.pem"))
    assert present(site) == before
    assert next_key(site.tls.key).exists()


def test_another_name_is_not_taken(site: Site, ours: Authority) -> None:
    renamed = site.model_copy(update={"name": "south"})
    ask(site, keep_key=False)
    with pytest.raises(CertificateError, match="certificate of 'north', and not of 'south'"):
        take(renamed, signed(site, ours))


def test_a_key_of_another_certificate_asks_for_nothing(site: Site, ours: Authority) -> None:
    write_secret(site.tls.key, ours.issue_site("north").key_pem)
    with pytest.raises(CertificateError, match="is not the key of"):
        ask(site, keep_key=False)


def test_a_folder_that_cannot_be_written_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(site.tls.key))

    monkeypatch.setattr("hanse_client.renew.write_secret", full)
    with pytest.raises(CertificateError, match=r"key\.pem: No space left on device"):
        ask(site, keep_key=False)


def test_an_expired_answer_is_told_as_such(site: Site, ours: Authority) -> None:
    ask(site, keep_key=False)
    past = datetime.now(UTC) - timedelta(days=10)
    with pytest.raises(CertificateExpiredError):
        take(site, signed(site, ours, days=1, start=past))

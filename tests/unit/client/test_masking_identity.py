"""Who a site is to the others: certificates of the authority, and pins that do not trust it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hanse.errors import PeerError
from hanse.keys import PrivateKey, key_fingerprint, write_secret
from hanse_client.secagg.identity import CertificateVerifier, Identity, Signer, certified, pin_of
from hanse_client.site import Policy, SecureAggregationPolicy, Site
from hanse_server.provisioning.authority import Authority, Credentials

from tests.maskers import Maskers

NAMES = ("site-0", "site-1", "site-2")
Authorities = Callable[[str], Authority]


def der(issued: Credentials) -> bytes:
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    return certificate.public_bytes(serialization.Encoding.DER)


def signer(issued: Credentials) -> Signer:
    key = load_pem_private_key(issued.key_pem, None)
    assert isinstance(key, PrivateKey)
    return Signer(name=issued.name, credential=der(issued), key=key)


@pytest.fixture
def ca(authority: Authorities) -> Authority:
    return authority("federation")


def test_certified_sites_sum_together(ca: Authority) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    signers = [signer(ca.issue_site(name)) for name in NAMES]
    identities = {s.name: Identity(signer=s, verifier=verifier) for s in signers}
    _, names = Maskers(3, identities=identities).run()
    assert names == list(NAMES)


def test_a_certificate_of_another_authority_is_refused(
    ca: Authority, authority: Authorities
) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    with pytest.raises(PeerError, match="of another authority"):
        verifier.key_of("site-1", der(authority("mallory").issue_site("site-1")))


def test_a_certificate_of_another_name_is_refused(ca: Authority) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    with pytest.raises(PeerError, match="shows the certificate of 'site-2'"):
        verifier.key_of("site-1", der(ca.issue_site("site-2")))


def test_the_servers_own_certificate_is_no_sites(ca: Authority) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    with pytest.raises(PeerError, match="is not a site's"):
        verifier.key_of("server", der(ca.issue_server("server", ["localhost"])))


def test_an_expired_certificate_is_refused(ca: Authority) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    past = datetime.now(UTC) - timedelta(days=30)
    with pytest.raises(PeerError, match="not valid at this time"):
        verifier.key_of("site-1", der(ca.issue_site("site-1", days=2, start=past)))


@pytest.mark.parametrize("credential", [b"", b"simulated", b"\x30\x82"])
def test_what_is_no_certificate_is_refused(ca: Authority, credential: bytes) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    with pytest.raises(PeerError, match="no site's certificate"):
        verifier.key_of("site-1", credential)


def test_a_key_of_an_unknown_kind_is_refused(ca: Authority) -> None:
    verifier = CertificateVerifier(ca.certificate_pem, {})
    curve = bytes.fromhex("06082a8648ce3d0301")  # of the curve's name, all but the last byte
    issued = der(ca.issue_site("site-1"))
    assert curve + b"\x07" in issued
    with pytest.raises(PeerError, match="no site's certificate"):
        verifier.key_of("site-1", issued.replace(curve + b"\x07", curve + b"\x7f"))


# --- pins -------------------------------------------------------------------------------------


def pins(*issued: Credentials) -> dict[str, str]:
    return {each.name: each.key_fingerprint for each in issued}


def test_a_sybil_that_the_authority_vouches_for_is_refused_by_pins(ca: Authority) -> None:
    known = [ca.issue_site(name) for name in NAMES]
    sybil = ca.issue_site("site-3")
    CertificateVerifier(ca.certificate_pem, {}).key_of("site-3", der(sybil))  # all that it takes
    with pytest.raises(PeerError, match="'site-3' is not among this site's peers"):
        CertificateVerifier(ca.certificate_pem, pins(*known)).key_of("site-3", der(sybil))


def test_a_false_certificate_under_a_pinned_name_is_refused(ca: Authority) -> None:
    known = [ca.issue_site(name) for name in NAMES]
    false = ca.issue_site("site-1")
    with pytest.raises(PeerError, match="another is pinned"):
        CertificateVerifier(ca.certificate_pem, pins(*known)).key_of("site-1", der(false))


def test_a_pinned_key_may_be_certified_anew(ca: Authority, tmp_path: Path) -> None:
    from hanse_client.request import make_request

    request = make_request("site-1", tmp_path).request.read_bytes()
    first, second = (ca.sign_request(request, "site-1", days=days) for days in (10, 20))
    verifier = CertificateVerifier(ca.certificate_pem, {"site-1": first.key_fingerprint})
    renewed = x509.load_pem_x509_certificate(second.certificate_pem)
    key = verifier.key_of("site-1", renewed.public_bytes(serialization.Encoding.DER))
    assert key_fingerprint(key) == first.key_fingerprint


def test_a_sites_own_key_needs_no_pin(ca: Authority, tmp_path: Path) -> None:
    issued, peer = ca.issue_site("site-0"), ca.issue_site("site-1")
    contents = (ca.certificate_pem, issued.certificate_pem, issued.key_pem)
    paths = [tmp_path / name for name in ("ca.pem", "certificate.pem", "key.pem")]
    for path, pem in zip(paths, contents, strict=True):
        write_secret(path, pem)
    policy = Policy(secure_aggregation=SecureAggregationPolicy(peers=pins(peer)))
    site = Site.model_validate(
        {
            "name": "site-0",
            "coordinator": "localhost:1",
            "tls": dict(zip(("ca", "certificate", "key"), paths, strict=True)),
            "data": {"train": tmp_path},
            "budget": {"epsilon": 1.0},
            "policy": policy,
        }
    )
    identity = certified(site)()
    for each in (issued, peer):
        identity.verifier.key_of(each.name, der(each))
    assert pin_of(certified(site)) == ("site-0", issued.key_fingerprint)


def test_a_certificate_that_is_malformed_within_is_no_sites(ca: Authority) -> None:
    issued = ca.issue_site("site-0")
    spoiled = der(issued).replace(b"\x55\x1d\x0f", b"\x55\x1d\x13")  # an extension comes twice
    assert spoiled != der(issued)
    with pytest.raises(PeerError):
        CertificateVerifier(ca.certificate_pem, {}).key_of("site-0", spoiled)

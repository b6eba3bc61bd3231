"""Certificates, keys, signing requests, kits and the register."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hanse.keys import key_pem, read_key, write_secret
from hanse.tls import check_server_certificate, load_identity
from hanse_client.secagg.identity import CertificateVerifier
from hanse_server.provisioning.authority import Authority
from hanse_server.provisioning.certificates import read_certificate, requested_key
from hanse_server.provisioning.kit import unpack_kit, write_kit
from hanse_server.provisioning.names import names_in

from tests.fuzz.mutation import change_bytes
from tests.fuzz.target import Target, each

NAME = "harbour"


def _armoured(data: bytes, label: str) -> bytes:
    """Bytes that are no PEM as if they were the DER of one."""
    if data.startswith(b"-----"):
        return data
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def certificates(folder: Path) -> Target:
    """A certificate in DER, or PEM: at every place where one is read."""
    authority = Authority.create(folder / "authority")
    issued = authority.issue_site(NAME)
    server = authority.issue_server("server", ["localhost", "127.0.0.1"])
    key, good, path = folder / "key.pem", folder / "good.pem", folder / "odd.pem"
    write_secret(key, issued.key_pem)
    good.write_bytes(issued.certificate_pem)
    ca = folder / "authority" / "ca.pem"
    verifier = CertificateVerifier(authority.certificate_pem, {})
    pinned = CertificateVerifier(authority.certificate_pem, {NAME: "0" * 64})

    def run(data: bytes) -> None:
        pem = _armoured(data, "CERTIFICATE")
        path.write_bytes(pem)
        each(
            lambda: load_identity(ca, path, key),
            lambda: load_identity(path, good, key),
            lambda: check_server_certificate(pem, authority.certificate_pem, "localhost:1"),
            lambda: names_in(read_certificate(path)),
            lambda: verifier.key_of(NAME, data),
            lambda: pinned.key_of(NAME, data),
        )

    pems = (issued.certificate_pem, server.certificate_pem, authority.certificate_pem)
    loaded = [x509.load_pem_x509_certificate(pem) for pem in pems]
    seeds = [each.public_bytes(serialization.Encoding.DER) for each in loaded]
    return Target(run=run, seeds=[*seeds, *pems, pems[0] + pems[2]])


def keys(folder: Path) -> Target:
    """A private key in DER, or PEM."""
    authority = Authority.create(folder / "authority")
    issued = authority.issue_site(NAME)
    path, good = folder / "key.pem", folder / "good.pem"
    good.write_bytes(issued.certificate_pem)
    ca = folder / "authority" / "ca.pem"
    write_secret(path, b"")  # its mode stays

    def run(data: bytes) -> None:
        path.write_bytes(_armoured(data, "PRIVATE KEY"))
        each(lambda: read_key(path), lambda: load_identity(ca, good, path))

    others = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 1024),  # noqa: S505 -- for its form alone
    )
    kind = serialization.PrivateFormat
    seeds = [
        each.private_bytes(encoding, kind.PKCS8, serialization.NoEncryption())
        for each in others
        for encoding in (serialization.Encoding.DER, serialization.Encoding.PEM)
    ]
    locked = others[0].private_bytes(
        serialization.Encoding.PEM, kind.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    old = others[0].private_bytes(
        serialization.Encoding.PEM, kind.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return Target(run=run, seeds=[issued.key_pem, *seeds, locked, old])


def requests(folder: Path) -> Target:
    """A signing request in DER, or PEM."""

    def run(data: bytes) -> None:
        requested_key(_armoured(data, "CERTIFICATE REQUEST"), NAME)

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    named = request.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    seeds = [
        each.sign(key, hashes.SHA256()).public_bytes(encoding)
        for each in (request, named)
        for encoding in (serialization.Encoding.DER, serialization.Encoding.PEM)
    ]
    return Target(run=run, seeds=seeds)


def kits(folder: Path) -> Target:
    """The zip of a site's kit."""
    authority = Authority.create(folder / "authority")
    kit, out = folder / f"{NAME}.zip", folder / "out"

    def run(data: bytes) -> None:
        kit.write_bytes(data)
        unpack_kit(kit, out)

    issued = authority.issue_site(NAME)
    pem = authority.certificate_pem
    write_kit(kit, issued, authority_pem=pem, coordinator="localhost:9443")
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("harbour/key.pem", key_pem(ec.generate_private_key(ec.SECP256R1())))
    return Target(run=run, seeds=[small.getvalue(), kit.read_bytes()], mutate=_zipped)


def _zipped(data: bytes, randomness: Random) -> bytes:
    """A change near the end, where a zip's directory is."""
    at = max(0, len(data) - 120)
    return data[:at] + change_bytes(data[at:], randomness)

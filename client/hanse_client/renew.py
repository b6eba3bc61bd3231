"""A site's certificate is renewed by its administrator, while the client runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hanse.durable import write_file
from hanse.errors import CertificateError
from hanse.keys import key_fingerprint, key_pem, new_key, parse_key, read_key, write_secret
from hanse.renewal import install, prove, settle_key
from hanse.tls import load_identity, next_key, read_leaf

from hanse_client.request import signing_request
from hanse_client.site import Site, check_linked

_NEW_KEY = (
    "the key is new: sites that pin this one's (policy.secure_aggregation.peers) refuse it in "
    "secure rounds until they pin this fingerprint; with --keep-key it stays the same"
)
_SAME_KEY = "the key is the same, and so are the pins of other sites"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for a new certificate.

    Attributes:
        request: the file to send to the operator.
        key: the private key that it is for; it stays where it is.
        key_fingerprint: of the public key, as `hanse client identity` will show it.
        new_key: whether that is another key than the present one.
    """

    name: str
    request: Path
    key: Path
    key_fingerprint: str
    new_key: bool

    def lines(self) -> list[str]:
        """What is to be done next, for people."""
        return [
            f"send to the operator: {self.request}",
            f"fingerprint of the key, to compare: {self.key_fingerprint}",
            _NEW_KEY if self.new_key else _SAME_KEY,
            "then: hanse client renew SITE --take FILE, with the certificate that comes back",
        ]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A new certificate that is in its place.

    Attributes:
        key_fingerprint: of the public key, as `hanse client identity` shows it.
        new_key: whether that is another key than the one before.
    """

    name: str
    certificate: Path
    fingerprint: str
    key_fingerprint: str
    new_key: bool
    expires: datetime

    def lines(self) -> list[str]:
        """What was done, for people."""
        return [
            f"valid until {self.expires:%Y-%m-%d}: {self.certificate}",
            f"fingerprint of the key: {self.key_fingerprint}",
            _NEW_KEY if self.new_key else _SAME_KEY,
            "a client that runs changes to it by itself; there is nothing to restart",
        ]


def ask(site: Site, *, keep_key: bool) -> Asked:
    """Write ``request.csr`` beside the site's certificate, signed with its present key too.

    By that the operator knows that the request is this site's. The certificate and key in use
    stay. A new key that waits already is kept, so that a request which got lost can be made again.

    Raises:
        CertificateError: if the files under [tls] do not fit together, or cannot be written.
    """
    check_linked(site)
    tls = site.tls
    try:
        settle_key(tls.certificate, tls.key)
        present = read_key(tls.key)
        if read_leaf(tls.certificate).public_key() != present.public_key():
            raise CertificateError(f"{tls.key} is not the key of {tls.certificate}")
        path = tls.key if keep_key else next_key(tls.key)
        if not path.exists():
            write_secret(path, key_pem(new_key()))
        key = read_key(path)
        request = tls.certificate.with_name("request.csr")
        proven = prove(signing_request(site.name, key), tls.certificate.read_bytes(), present)
        write_file(request, proven)
    except OSError as error:
        raise _unwritable(error, tls.certificate.parent) from error
    return Asked(
        name=site.name,
        request=request,
        key=path,
        key_fingerprint=key_fingerprint(key.public_key()),
        new_key=not keep_key,
    )


def take(site: Site, signed: Path) -> Taken:
    """Put the certificate that the operator sent, and its key, in the place of the present ones.

    Everything is checked before; a client that runs takes them up by itself.

    Raises:
        CertificateError: if it is not a certificate for this site, of its authority, and of a
            key that is here.
        CertificateExpiredError: if it is not valid at this time.
    """
    check_linked(site)
    tls = site.tls
    try:
        settle_key(tls.certificate, tls.key)
        identity = load_identity(tls.ca, signed, tls.key)
        if identity.name != site.name:
            raise CertificateError(
                f"{signed} is the certificate of {identity.name!r}, and not of {site.name!r}",
                remedy="Take the certificate that the operator made for this site.",
            )
        before = read_key(tls.key).public_key()
        install(identity.certificate, tls.certificate, tls.key)
    except OSError as error:
        raise _unwritable(error, tls.certificate.parent) from error
    public_key = parse_key(tls.key, identity.key).public_key()
    return Taken(
        name=site.name,
        certificate=tls.certificate,
        fingerprint=identity.fingerprint,
        key_fingerprint=key_fingerprint(public_key),
        new_key=public_key != before,
        expires=identity.not_after,
    )


def _unwritable(error: OSError, folder: Path) -> CertificateError:
    return CertificateError(
        f"{error.filename or folder}: {error.strerror}",
        remedy="Check the paths under [tls], and that you may write to their folder.",
    )

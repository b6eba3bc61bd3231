"""The names under which the server may be reached, as they stand in its certificate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from cryptography import x509
from hanse.errors import CertificateError

LOOPBACK = ("localhost", "127.0.0.1")

_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


def alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """DNS names and IP addresses in the form in which a certificate holds them, each once.

    Raises:
        CertificateError: if one is neither.
    """
    return [_alternative_name(host) for host in dict.fromkeys(host.lower() for host in hosts)]


def names_in(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """The DNS names and IP addresses that a certificate is good under."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(extension.value)


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise CertificateError(
                f"host {host!r}: neither a DNS name nor an IP address",
                remedy="Give the name or address alone, without scheme and port.",
            ) from None
    return x509.DNSName(host)

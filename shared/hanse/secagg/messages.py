"""What the stages of a session are called, and what their messages hold, checked on reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord

from hanse.errors import SecureAggregationError
from hanse.secagg.cohort import MOST_SITES, Announcement

KEYS = "query.masking_keys"
SHARES = "query.masking_shares"
SURVIVORS = "query.masking_survivors"
UNMASK = "query.unmask"
STAGES = (KEYS, SHARES, SURVIVORS, UNMASK)
"""The message types beside ``train``, in their order."""

SESSION = "hanse.session"
"""Config key of the session's token, in every message of a session."""

SITES = "sites"
"""Config key of the list that a stage goes by: sharers when training, survivors later."""

MOST_BYTES = 16_384
"""No credential, key, signature or share is longer."""

_MEMBERS = ("credentials", "mask_keys", "share_keys", "signatures")


def pack_announcement(member: Announcement) -> ConfigRecord:
    """A site's own announcement; the name is the sender's."""
    return ConfigRecord(
        {
            "credential": member.credential,
            "mask_key": member.mask_key,
            "share_key": member.share_key,
            "weight": member.weight,
            "signature": member.signature,
        }
    )


def read_announcement(config: ConfigRecord, name: str) -> Announcement:
    """What :func:`pack_announcement` packed, of the site that sent it.

    Raises:
        SecureAggregationError: if it is malformed, as every reader here.
    """
    member = Announcement(
        name=name,
        credential=read_bytes(config, "credential"),
        mask_key=read_bytes(config, "mask_key"),
        share_key=read_bytes(config, "share_key"),
        weight=_read(config, "weight", float),
        signature=read_bytes(config, "signature"),
    )
    member.check()
    return member


def pack_cohort(members: Iterable[Announcement]) -> dict[str, Any]:
    """All announcements, for all sites."""
    listed = list(members)
    return {
        SITES: [member.name for member in listed],
        "credentials": [member.credential for member in listed],
        "mask_keys": [member.mask_key for member in listed],
        "share_keys": [member.share_key for member in listed],
        "weights": [member.weight for member in listed],
        "signatures": [member.signature for member in listed],
    }


def read_cohort(config: ConfigRecord) -> list[Announcement]:
    """What :func:`pack_cohort` packed."""
    names = read_names(config, SITES)
    weights = _read_list(config, "weights", float)
    columns = [_read_blobs(config, key) for key in _MEMBERS]
    if {len(names)} != {len(weights), *map(len, columns)}:
        raise SecureAggregationError("the announcements of a cohort are not of one length")
    return [
        Announcement(
            name=name,
            credential=credential,
            mask_key=mask_key,
            share_key=share_key,
            weight=weight,
            signature=signature,
        )
        for name, weight, credential, mask_key, share_key, signature in zip(
            names, weights, *columns, strict=True
        )
    ]


def pack_named(key: str, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    """Bytes by the name of a site."""
    return {f"{key}.sites": list(blobs), f"{key}.data": list(blobs.values())}


def read_named(config: ConfigRecord, key: str) -> dict[str, bytes]:
    """What :func:`pack_named` packed."""
    names, blobs = read_names(config, f"{key}.sites"), _read_blobs(config, f"{key}.data")
    if len(names) != len(blobs):
        raise SecureAggregationError(f"{key} has {len(names)} names for {len(blobs)} values")
    return dict(zip(names, blobs, strict=True))


def read_names(config: ConfigRecord, key: str) -> list[str]:
    """A list of sites, each once."""
    names = _read_list(config, key, str)
    if len(set(names)) != len(names):
        raise SecureAggregationError(f"{key} names a site twice")
    return list(names)


def read_bytes(config: ConfigRecord, key: str) -> bytes:
    """One short value of bytes."""
    value: bytes = _read(config, key, bytes)
    _check_lengths(key, (value,))
    return value


def read_session(config: ConfigRecord) -> str:
    """The session's token."""
    token: str = _read(config, SESSION, str)
    if not 0 < len(token) <= 64:
        raise SecureAggregationError(f"{SESSION} has {len(token)} characters")
    return token


def _read_blobs(config: ConfigRecord, key: str) -> list[bytes]:
    blobs = _read_list(config, key, bytes)
    _check_lengths(key, blobs)
    return blobs


def _check_lengths(key: str, blobs: Sequence[bytes]) -> None:
    longest = max(map(len, blobs), default=0)
    if longest > MOST_BYTES:
        raise SecureAggregationError(f"{key} holds {longest} bytes, at most {MOST_BYTES} are taken")


def _read_list(config: ConfigRecord, key: str, kind: type[Any]) -> list[Any]:
    values = _read(config, key, list)
    if len(values) > MOST_SITES or any(type(value) is not kind for value in values):
        raise SecureAggregationError(
            f"{key} is not a list of at most {MOST_SITES} values of {kind.__name__}"
        )
    return list(values)


def _read(config: ConfigRecord, key: str, kind: type[Any]) -> Any:
    value = config.get(key)
    if type(value) is not kind:
        raise SecureAggregationError(f"{key} is missing from a message, or not {kind.__name__}")
    return value

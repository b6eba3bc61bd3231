"""One session of secure aggregation at a site: each stage once, in its order, or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from enum import IntEnum

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hanse.aggregation import SecureAggregation
from hanse.errors import PeerError, PolicyError, SecureAggregationError
from hanse.secagg.cohort import Announcement, Cohort, SessionId
from hanse.secagg.masks import Words, add_mask, agreed_key, is_negative
from hanse.secagg.shamir import SECRET_BYTES, SHARE_BYTES, split
from torch import Tensor

from hanse_client.secagg.identity import Identity, PublicKey, verify

_NONCE_BYTES = 12


class Stage(IntEnum):
    """How far a session is at this site."""

    ANNOUNCED = 1
    SHARED = 2
    TRAINING = 3
    MASKED = 4
    CONSENTED = 5
    UNMASKED = 6


class Session:
    """What a site knows and does for one try at one secure round; its secrets die with it.

    Args:
        weight: of this site's update.
        min_sites: the fewest sites whose sum this site lets the server learn.
    """

    def __init__(
        self,
        session: SessionId,
        settings: SecureAggregation,
        *,
        identity: Identity,
        weight: float,
        min_sites: int,
    ) -> None:
        self.id = session
        self.weight = weight
        self._settings = settings
        self._identity = identity
        self._min_sites = min_sites
        self._stage = Stage.ANNOUNCED
        self._mask_key = X25519PrivateKey.generate()
        self._share_key = X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(SECRET_BYTES)
        self._keys: dict[str, PublicKey] = {}
        self._own_share = b""  # of the seed: a survivor never holds its masking key against itself
        self._cohort: Cohort
        self._sharers: frozenset[str]
        self._survivors: frozenset[str]

    @property
    def name(self) -> str:
        """This site's."""
        return self._identity.signer.name

    # --- masking keys ---------------------------------------------------------------------------

    def announce(self) -> Announcement:
        """This site's keys of the session, signed."""
        signer = self._identity.signer
        member = Announcement(
            name=signer.name,
            credential=signer.credential,
            mask_key=self._mask_key.public_key().public_bytes_raw(),
            share_key=self._share_key.public_key().public_bytes_raw(),
            weight=self.weight,
        )
        self._announced = replace(member, signature=signer.sign(member.signed(self.id)))
        return self._announced

    # --- masking shares -------------------------------------------------------------------------

    def share(self, members: Iterable[Announcement]) -> dict[str, bytes]:
        """Encrypted shares of this site's two secrets, by the site that each is for.

        Raises:
            PeerError: if a site of the cohort is not who it says it is.
            PolicyError: if the cohort is smaller than this site's policy asks for.
            SecureAggregationError: if this site is not in it as it announced itself.
        """
        self._enter(Stage.SHARED, after=Stage.ANNOUNCED)
        cohort = Cohort(self.id, members, self._settings)
        self._check_size("cohort", len(cohort))
        if cohort.members.get(self.name) != self._announced:
            raise SecureAggregationError("the cohort does not hold what this site announced")
        for name, member in cohort.members.items():
            self._keys[name] = self._identity.verifier.key_of(name, member.credential)
            verify(self._keys[name], member.signature, member.signed(self.id), name=name)
        self._cohort = cohort
        halves = [
            split(secret, holders=len(cohort), threshold=cohort.least)
            for secret in (self._seed, self._mask_key.private_bytes_raw())
        ]
        shares = dict(zip(cohort.holders, zip(*halves, strict=True), strict=True))
        self._own_share = shares.pop(self.name)[0]
        return {holder: self._seal(holder, b"".join(pair)) for holder, pair in shares.items()}

    def _seal(self, recipient: str, shares: bytes) -> bytes:
        context = self._cohort.share_context(self.name, recipient)
        peer = self._cohort.members[recipient].share_key
        nonce = secrets.token_bytes(_NONCE_BYTES)
        key = agreed_key(self._share_key, peer, context)
        return nonce + AESGCM(key).encrypt(nonce, shares, context)

    def _open(self, sender: str, sealed: bytes) -> tuple[bytes, bytes]:
        context = self._cohort.share_context(sender, self.name)
        key = agreed_key(self._share_key, self._cohort.members[sender].share_key, context)
        try:
            shares = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as forged:
            raise PeerError(f"a share of site {sender!r} is forged") from forged
        if len(shares) != 2 * SHARE_BYTES:
            raise PeerError(f"a share of site {sender!r} has {len(shares)} bytes")
        return shares[:SHARE_BYTES], shares[SHARE_BYTES:]

    # --- training -------------------------------------------------------------------------------

    def begin_training(self, sharers: Collection[str]) -> None:
        """Take the list of those to mask with; from here on this session trains no second time.

        Raises:
            SecureAggregationError: if it is too short, or not a part of the cohort with this
                site in it.
            PolicyError: if it is shorter than this site's policy asks for.
        """
        self._enter(Stage.TRAINING, after=Stage.SHARED)
        self._check_list("sharers", sharers, among=self._cohort.members)
        self._sharers = frozenset(sharers)

    def mask(self, update: Mapping[str, Tensor]) -> dict[str, Words]:
        """``update`` times the weight, over the largest weight, in fixed point and masked.

        Raises:
            UpdateRangeError: if a coordinate is beyond the job's range.
            SecureAggregationError: if a tensor is not of floating-point numbers.
        """
        self._enter(Stage.MASKED, after=Stage.TRAINING)
        flat = self._encoded(update)
        add_mask(flat, self._seed)
        for peer in self._cohort.peers(self.name):
            if peer in self._sharers:
                context = self._cohort.mask_context(self.name, peer)
                key = agreed_key(self._mask_key, self._cohort.members[peer].mask_key, context)
                add_mask(flat, key, negative=is_negative(self.name, peer))
        masked, start = {}, 0
        for name in sorted(update):
            shape = tuple(update[name].shape)
            end = start + update[name].numel()
            masked[name] = flat[start:end].reshape(shape)
            start = end
        return masked

    def _encoded(self, update: Mapping[str, Tensor]) -> Words:
        """All tensors of an update, by name, one after the other."""
        fixed_point = self._cohort.fixed_point
        scale = self.weight / self._cohort.largest_weight
        parts = []
        for name in sorted(update):
            if not update[name].is_floating_point():
                raise SecureAggregationError(
                    f"{name} is of {update[name].dtype}: only floating-point numbers are summed"
                )
            parts.append(fixed_point.encode(update[name].double().numpy().ravel() * scale))
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    # --- survivors ------------------------------------------------------------------------------

    def consent(self, survivors: Collection[str]) -> bytes:
        """A signature that says: this is the one list of survivors that this site was told.

        Raises:
            SecureAggregationError: if it is too short, not a part of the sharers with this site
                in it, or another list was signed before.
            PolicyError: if it is shorter than this site's policy asks for.
        """
        self._enter(Stage.CONSENTED, after=Stage.MASKED)
        self._check_list("survivors", survivors, among=self._sharers)
        self._survivors = frozenset(survivors)
        return self._identity.signer.sign(self._cohort.consent(self._sharers, survivors))

    # --- unmasking ------------------------------------------------------------------------------

    def unmask(
        self,
        survivors: Collection[str],
        signatures: Mapping[str, bytes],
        sealed: Mapping[str, bytes],
    ) -> dict[str, bytes]:
        """For each other site one share: of its seed if it survived, of its masking key if not.

        Args:
            signatures: of survivors, over the list that this site has signed.
            sealed: the encrypted shares that the others made for this site.

        Raises:
            SecureAggregationError: if the list is another than was signed, or too few signed it.
            PolicyError: if those that signed are fewer than this site's policy asks for.
            PeerError: if a signature or a share is forged.
        """
        self._enter(Stage.UNMASKED, after=Stage.CONSENTED)
        if frozenset(survivors) != self._survivors:
            raise SecureAggregationError("the list of survivors is not the one that was signed")
        agreed = self._survivors & signatures.keys()
        # Of those that signed alone it is known that they are there: another's announcement may
        # be an old one of the same session id, whose masking key the server has recovered since.
        self._check_size("signatures", len(agreed))
        if len(agreed) < self._cohort.least:
            raise SecureAggregationError(
                f"{len(agreed)} survivors signed the list, {self._cohort.least} are needed"
            )
        signed = self._cohort.consent(self._sharers, self._survivors)
        for name in agreed:
            verify(self._keys[name], signatures[name], signed, name=name)
        revealed = {self.name: self._own_share}
        for peer in self._cohort.peers(self.name):
            if peer in self._sharers and peer in sealed:
                of_seed, of_key = self._open(peer, sealed[peer])
                revealed[peer] = of_seed if peer in self._survivors else of_key
        return revealed

    # --- what every stage goes by -----------------------------------------------------------------

    def _enter(self, stage: Stage, *, after: Stage) -> None:
        if self._stage is not after:
            raise SecureAggregationError(
                f"stage {stage.name.lower()} was asked of a session that is "
                f"{self._stage.name.lower()}: each comes once, after {after.name.lower()}"
            )
        # Before the work: a stage that fails is not tried again with other lists.
        self._stage = stage

    def _check_list(self, what: str, names: Collection[str], *, among: Collection[str]) -> None:
        self._check_size(what, len(names))
        if not set(names) <= set(among) or self.name not in names:
            raise SecureAggregationError(f"the {what} are not of the session, or lack this site")
        if len(names) < self._cohort.least:
            raise SecureAggregationError(
                f"{len(names)} {what} of {len(self._cohort)} sites are fewer than the "
                f"{self._cohort.least} that secure_aggregation.threshold asks for"
            )

    def _check_size(self, what: str, size: int) -> None:
        if size < self._min_sites:
            raise PolicyError(
                f"{what} of {size} sites: fewer than this site's least, {self._min_sites} "
                "(policy.secure_aggregation.min_sites in site.toml)"
            )

"""The sum of masked updates, and the removal of its masks: the memory of one model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ArrayRecord
from hanse.errors import SecureAggregationError
from hanse.flower import to_tensor
from hanse.secagg.cohort import Cohort
from hanse.secagg.masks import add_mask, agreed_key, is_negative
from hanse.secagg.shamir import join
from torch import Tensor

from hanse_server.updates import TensorSpec

Revealed = Mapping[str, Mapping[str, bytes]]
"""What each survivor has revealed: a share by the site whose secret it is of."""


class MaskedSum:
    """Masked updates, folded one by one modulo 2^32.

    Args:
        specs: of the model; the order of an update's arrays is that of their names.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = {name: specs[name] for name in sorted(specs)}
        sizes = [math.prod(spec.shape) for spec in self._specs.values()]
        self._vector = np.zeros(sum(sizes), dtype=np.uint32)
        ends = np.cumsum(sizes)
        self._parts = {
            name: self._vector[end - size : end]  # a view
            for name, size, end in zip(self._specs, sizes, ends, strict=True)
        }

    def fold(self, arrays: ArrayRecord) -> None:
        """Add one masked update, whose names and shapes were checked."""
        for name, part in self._parts.items():
            np.add(part, to_tensor(arrays[name]).numpy().ravel(), out=part)

    def unmask(
        self,
        cohort: Cohort,
        sharers: Collection[str],
        survivors: Collection[str],
        revealed: Revealed,
    ) -> None:
        """Take the masks away: the survivors' own, and what they share with the lost.

        Raises:
            SecureAggregationError: if too few shares of a site's secret were revealed, or they
                are not of one secret.
        """
        secrets = {name: _recovered(cohort, name, revealed) for name in sharers}
        for name, secret in secrets.items():
            if name in survivors:
                add_mask(self._vector, secret, negative=True)
            else:
                self._unmask_lost(cohort, name, secret, survivors)

    def _unmask_lost(
        self, cohort: Cohort, lost: str, secret: bytes, survivors: Collection[str]
    ) -> None:
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != cohort.members[lost].mask_key:
            raise SecureAggregationError(f"the shares of site {lost!r} are not of its masking key")
        for peer in cohort.peers(lost):
            if peer in survivors:
                context = cohort.mask_context(lost, peer)
                mask = agreed_key(key, cohort.members[peer].mask_key, context)
                add_mask(self._vector, mask, negative=not is_negative(peer, lost))

    def mean(self, cohort: Cohort, survivors: Collection[str]) -> dict[str, Tensor]:
        """The weighted mean of the survivors' updates, once unmasked, in the model's dtypes.

        Raises:
            SecureAggregationError: if the sum is larger than so many updates can give.
        """
        total = cohort.fixed_point.decode(self._vector, len(survivors))
        weight = sum(cohort.members[name].weight for name in survivors)
        mean = torch.from_numpy(total * (cohort.largest_weight / weight))
        sizes = [part.size for part in self._parts.values()]
        return {
            name: part.reshape(spec.shape).to(spec.dtype)
            for (name, spec), part in zip(
                self._specs.items(), torch.split(mean, sizes), strict=True
            )
        }


def _recovered(cohort: Cohort, owner: str, revealed: Revealed) -> bytes:
    """A site's secret, of the shares that its holders have revealed."""
    holders = enumerate(cohort.holders, start=1)
    shares = {at: revealed[name][owner] for at, name in holders if owner in revealed.get(name, {})}
    if len(shares) < cohort.least:
        raise SecureAggregationError(
            f"{len(shares)} shares of site {owner!r} were revealed, {cohort.least} are needed"
        )
    try:
        return join({at: shares[at] for at in sorted(shares)[: cohort.least]})
    except ValueError as wrong:
        raise SecureAggregationError(f"the shares of site {owner!r}: {wrong}") from wrong

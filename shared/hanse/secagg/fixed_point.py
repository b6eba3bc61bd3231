"""Updates as integers modulo 2^32, with room for the sum of a whole cohort."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hanse.errors import SecureAggregationError, UpdateRangeError
from hanse.secagg.masks import Words

_ROOM = 2**30
"""The largest sum, in steps. Half of the ring is left empty: a sum that was unmasked wrongly is
spread over all of it, and shows."""


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Numbers in ``[-range, range]`` as multiples of ``2**-bits``; ``sites`` of them are summed."""

    sites: int
    range: float

    @property
    def bits(self) -> int:
        """Binary places: as many as leave room for the sum, rounding included."""
        return math.floor(math.log2((_ROOM / self.sites - 0.5) / self.range))

    @property
    def step(self) -> float:
        """The distance of two neighbouring numbers; each is rounded by half of it at most."""
        return math.ldexp(1.0, -self.bits)

    def encode(self, values: NDArray[np.float64]) -> Words:
        """Each number as its nearest multiple of the step, in two's complement.

        Raises:
            UpdateRangeError: if one is beyond the range, or not a number.
        """
        if not bool(np.all(np.abs(values) <= self.range)):  # false for NaN too
            raise UpdateRangeError(
                f"a weighted update has a coordinate beyond range = {self.range:g}",
                remedy="Raise secure_aggregation.range in the job, or lower the learning rate.",
            )
        steps = np.rint(values * (1.0 / self.step))
        return steps.astype(np.int32).view(np.uint32)

    def decode(self, total: Words, sites: int) -> NDArray[np.float64]:
        """The sum of the numbers of ``sites`` sites.

        Raises:
            SecureAggregationError: if it is larger than so many can give, as it is where the
                masks were not removed rightly.
        """
        steps = total.view(np.int32)
        most = math.ceil(sites * (self.range / self.step + 0.5))
        if steps.size and max(int(steps.max()), -int(steps.min())) > most:
            raise SecureAggregationError(
                f"the unmasked sum of {sites} sites is beyond {sites} x range = {self.range:g}: "
                "a site's input or shares were not what the protocol asks for"
            )
        return steps * np.float64(self.step)

"""What an audit measures of a run, or of many runs at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How far R runs went along each direction, in clipping norms.

    Attributes:
        included: which canaries were in the data set, (R, m) of booleans.
        canaries: the way along each canary's direction, (R, m).
        groups: the way along the direction of each group of fillers, (R, g).
    """

    included: NDArray[np.bool_]
    canaries: Floats
    groups: Floats


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The figures of R runs by which they are compared, each of shape (R,).

    Attributes:
        gap: mean score of the canaries that were in, minus that of those that were not: how
            often a record was drawn, times what of it passed the clip.
        noise: standard deviation of the scores of the canaries that were not in.
        fillers: mean score of the groups of fillers, which are many records: the same as the
            gap, more closely.
        spread: standard deviation of the scores of the groups: noise, and the chance in how
            often their records were drawn.
        right: how many guesses of who was in were right.
    """

    gap: Floats
    noise: Floats
    fillers: Floats
    spread: Floats
    right: Floats

    def __iter__(self) -> Iterator[tuple[str, Floats]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def measure(scores: Scores, guesses: int) -> Statistics:
    """The statistics of each run; ``guesses`` as in :func:`right_guesses`."""
    inside, outside = scores.included, ~scores.included
    mean_in, mean_out = (_mean(scores.canaries, chosen) for chosen in (inside, outside))
    deviations = np.square(scores.canaries - mean_out[:, None])
    return Statistics(
        gap=mean_in - mean_out,
        noise=np.sqrt(_mean(deviations, outside)),
        fillers=scores.groups.mean(axis=1),
        spread=scores.groups.std(axis=1),
        right=right_guesses(scores, guesses),
    )


def right_guesses(scores: Scores, guesses: int) -> Floats:
    """How many guesses are right: of the highest scores that they were in, of the lowest not.

    Args:
        guesses: even; half of them at each end, and abstention between.
    """
    half = guesses // 2
    order = np.argsort(scores.canaries, axis=1)
    lowest = np.take_along_axis(scores.included, order[:, :half], axis=1)
    highest = np.take_along_axis(scores.included, order[:, -half:], axis=1)
    right: Floats = (~lowest).sum(axis=1) + highest.sum(axis=1).astype(np.float64)
    return right


def _mean(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    means: Floats = np.where(chosen, values, 0.0).sum(axis=1) / np.maximum(chosen.sum(axis=1), 1)
    return means

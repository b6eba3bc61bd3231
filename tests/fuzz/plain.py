"""Fuzzing without coverage: the seeds of a target, changed again and again."""

from __future__ import annotations

from random import Random

from tests.fuzz.mutation import change_bytes
from tests.fuzz.target import Target
from tests.fuzz.watch import Watch

_LONGEST = 1 << 16


def fuzz(target: Target, inputs: int, randomness: Random) -> Watch:
    """Run the seeds of a target as they are, then changed ones up to ``inputs``."""
    watch = Watch(target)
    for seed in target.seeds[:inputs]:
        watch.run(seed)
    while watch.inputs < inputs:
        data = randomness.choice(target.seeds)
        for _ in range(randomness.choice((1, 1, 2, 3, 6))):
            if target.mutate is not None and randomness.random() < 0.8:
                data = target.mutate(data, randomness)
            else:
                data = change_bytes(data, randomness)
        watch.run(data[:_LONGEST])
    return watch

"""Epsilon of a composition: the fast Renyi bound, and the tight accountant.

The first four rows are settings whose epsilons are known from other accountants; the last ones
show what more steps and more distinct mechanisms cost. Delta is 1e-5. Times are of a first call:
a ledger that asks again is answered from a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hanse.privacy.accounting import Charge, epsilon, epsilon_bound

DELTA = 1e-5


def rows() -> list[dict[str, Any]]:
    """One row a composition."""
    epsilon([_charge(1.3, 0.02, 10)], DELTA)  # imports, and tables that all compositions share
    return [
        _row("sigma 1.0, q 0.01", [_charge(1.0, 0.01, 1000)]),
        _row("sigma 0.8, q 0.05", [_charge(0.8, 0.05, 500)]),
        _row("sigma 1.0, q 0.064", [_charge(1.0, 0.064, 1600)]),
        _row("sigma 4.0, q 1", [_charge(4.0, 1.0, 100)]),
        _row("sigma 2.0, q 0.01, long", [_charge(2.0, 0.01, 10_000)]),
        _row("10 distinct sigmas", [_charge(1.0 + 0.1 * i, 0.01, 100) for i in range(1, 11)]),
    ]


def _row(name: str, charges: list[Charge]) -> dict[str, Any]:
    bound, bound_seconds = _timed(lambda: epsilon_bound(charges, DELTA))
    tight, tight_seconds = _timed(lambda: epsilon(charges, DELTA))
    return {
        "composition": name,
        "steps": sum(charge.steps for charge in charges),
        "renyi_epsilon": bound,
        "renyi_seconds": bound_seconds,
        "tight_epsilon": tight,
        "tight_seconds": tight_seconds,
    }


def _timed(call: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def _charge(noise_multiplier: float, sampling_rate: float, steps: int) -> Charge:
    return Charge(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)

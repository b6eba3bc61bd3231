"""What right guesses prove: a lower bound on epsilon from one run.

Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), Corollary 5.4 and appendix D. Of m canaries each
one was in the data set or not by a fair coin of its own. Whoever guesses r of the m coins from the
output of an (epsilon, delta)-differentially private mechanism, by any rule that was fixed before,
gets v or more of them right with a probability of at most

    P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i,   W ~ Binomial(r, 1 / (1 + exp(-epsilon))),

with i from 1 to v. Adjacency is that of adding or removing one record.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from scipy import optimize, special, stats

MOST = 100.0
"""The largest epsilon that is looked at; a thousand right guesses of a thousand prove 5.8."""


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest probability of ``right`` or more right guesses under (epsilon, delta)-DP.

    Args:
        canaries: m, each in the data set or not by a fair coin.
        guesses: r, of which ``right`` are right; the rest of the m are abstentions.

    Raises:
        ValueError: unless ``0 <= right <= guesses <= canaries``.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"right={right}, guesses={guesses}, canaries={canaries} do not rise")
    binomial = stats.binom(guesses, special.expit(epsilon))
    tail = float(binomial.sf(right - 1))
    if right == 0:
        return 1.0
    below = np.cumsum(binomial.pmf(np.arange(right - 1, -1, -1)))  # P[v - i <= W < v], i = 1...v
    correction = 2.0 * canaries * delta * float(np.max(below / np.arange(1, right + 1)))
    return min(1.0, tail + correction)


def epsilon_at_least(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that the guesses refute at ``confidence``; 0 if they refute none.

    A mechanism that is (epsilon, delta)-differentially private gets an answer above its epsilon
    with a probability of at most ``1 - confidence``. That the answer is below it proves nothing.

    Raises:
        ValueError: unless ``0 <= right <= guesses <= canaries``.
    """

    def excess(epsilon: float) -> float:
        found = p_value(
            canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta
        )
        return found - (1.0 - confidence)

    if excess(0.0) >= 0.0:
        return 0.0
    if excess(MOST) < 0.0:
        return MOST
    root = float(optimize.brentq(excess, 0.0, MOST, xtol=1e-6))
    return max(0.0, root - 1e-6)  # the side that is refuted


def refuting(*, canaries: int, guesses: int, claimed: float, delta: float) -> int:
    """The fewest right guesses that prove more than ``claimed``; ``guesses + 1`` if none do."""

    def proved(right: int) -> float:
        return epsilon_at_least(canaries=canaries, guesses=guesses, right=right, delta=delta)

    return bisect_right(range(guesses + 1), claimed, key=proved)

"""How often claims that are true would be supported, and how many seeds that takes."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, binomtest, chi2, norm, t

from harness.findings.statistics import ALPHA, LEVEL, WANTED_POWER

# Power is for an effect this many times the smallest one that matters: one of just that size is supported in half of
# all repeats at best, since what was seen must reach it, too.
ASSUMED = 2.0
# And that of finding divergence, where so large a share of trainings diverges.
ASSUMED_SHARE = 0.9
_SIMULATED = 20_000
_MOST_SEEDS = 1000


def share_bounds(k: int, n: int) -> tuple[float, float]:
    """The one-sided 95 % bounds, low and high, of a share of which k of n were seen (Clopper and Pearson 1934)."""
    # A two-sided interval at 90 % has the one-sided bounds at 95 %.
    interval = binomtest(k, n).proportion_ci(1 - 2 * ALPHA, method="exact")
    return float(interval.low), float(interval.high)


def divergence_power(n: int, share: float = ASSUMED_SHARE) -> float:
    """How often n trainings support that most diverge, where ``share`` of all do."""
    supporting = [k for k in range(n + 1) if n and share_bounds(k, n)[0] > 0.5]
    return float(sum(binom.pmf(supporting, n, share)))


def claim_power(says: str, margin: float, sd: float, n: int, arms: int = 1) -> float:
    """How often n seeds support a claim on a score that is true, by simulated means and spreads of the differences.

    Args:
        says: ``better`` or ``worse``: the true difference is ``ASSUMED`` times the margin; ``same``: it is none.
        margin: the smallest difference that matters, in units of the score.
        sd: standard deviation of paired differences, as it was seen.
        n: seeds.
        arms: treated ones, whose p-values are corrected together (the first step of Holm's correction).
    """
    if n < 2:
        return 0.0
    rng = np.random.default_rng(0)
    # Of normal differences mean and spread are independent.
    chance, spread = norm.rvs(size=_SIMULATED, random_state=rng), chi2.rvs(n - 1, size=_SIMULATED, random_state=rng)
    error = sd * np.sqrt(spread / (n - 1) / n)
    if says == "same":
        mean = sd / n**0.5 * chance
        return float(np.mean(np.abs(mean) + t.ppf(LEVEL, n - 1) * error < margin))
    mean = ASSUMED * margin + sd / n**0.5 * chance
    told = mean > error * t.ppf(1 - ALPHA / arms / 2, n - 1)
    return float(np.mean(told & (mean >= margin)))


def seeds_needed(says: str, margin: float, sd: float, arms: int = 1) -> int | None:
    """Seeds with which :func:`claim_power` is 8 of 10; None where more than 1,000."""
    few, many = 2, _MOST_SEEDS
    if claim_power(says, margin, sd, many, arms) < WANTED_POWER:
        return None
    while few < many:
        middle = (few + many) // 2
        if claim_power(says, margin, sd, middle, arms) >= WANTED_POWER:
            many = middle
        else:
            few = middle + 1
    return few

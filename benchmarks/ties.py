"""How often equal configurations are told apart, and how often the intervals of the best and from it hold.

python -m benchmarks.ties
"""

from __future__ import annotations

import gc
from itertools import combinations

import numpy as np
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from harness.report.statistics import ALPHA as _ALPHA
from harness.report.statistics import OUT_OF_REACH

_SEEDS, _STUDIES = 5, 4000
_GAPS = (0.5, 1.0, 2.0, 3.0, 5.0, 50.0)  # in standard errors of a mean


def false_differences(arms: int, rng: np.random.Generator) -> tuple[float, float]:
    """(with the best alone, over all pairs): the share of studies of equal arms in which one is told from the best."""
    scores = rng.normal(size=(_STUDIES, arms, _SEEDS))
    pairs = list(combinations(range(arms), 2))
    p_values = np.stack([ttest_1samp(scores[:, a] - scores[:, b], 0, axis=1).pvalue for a, b in pairs], axis=1)
    wrong = np.zeros(2)
    for study, row in enumerate(p_values):
        best = int(scores[study].mean(axis=1).argmin())
        own = [i for i, pair in enumerate(pairs) if best in pair]
        alone = multipletests(row[own], alpha=_ALPHA, method="holm")[0]
        together = multipletests(row, alpha=_ALPHA, method="holm")[0][own]
        wrong += alone.any(), together.any()
    return float(wrong[0] / _STUDIES), float(wrong[1] / _STUDIES)


def layouts(k: int) -> list[np.ndarray]:
    """Means of k configurations: equal, in steps, two ahead, half ahead, one ahead."""
    found = [np.zeros(k)]
    for gap in _GAPS:
        found.append(gap * np.arange(k))
        found += [np.where(np.arange(k) < ahead, 0.0, gap) for ahead in sorted({1, 2, k // 2} - {k})]
    return found


def coverage(
    means: np.ndarray, shared: float, reach: float, rng: np.random.Generator, studies: int = 20_000
) -> tuple[float, float]:
    """(the best's own, differences from it): how often the intervals of ``statistics.standing`` hold.

    Args:
        means: true means, in standard errors of a mean of so many seeds.
        shared: correlation of the scores of two configurations on a seed.
        reach: the level below which a paired t-test puts a configuration out of the best's reach.
    """
    k, one, seeds = len(means), np.arange(studies), _SEEDS
    noise = shared**0.5 * rng.normal(size=(studies, 1, seeds)) + (1 - shared) ** 0.5 * rng.normal(
        size=(studies, k, seeds)
    )
    scores = means[None, :, None] + seeds**0.5 * noise
    first = scores.mean(2).argmin(1)

    def error(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.std(-1, ddof=1) / seeds**0.5)

    def critical(share: np.ndarray | float) -> np.ndarray:
        return np.asarray(student_t.isf(share, seeds - 1))

    own = scores[one, first]
    gaps = scores - own[:, None]
    others = np.ones((studies, k), bool)
    others[one, first] = False
    away = np.where(others, gaps.mean(2) / np.where(others, error(gaps), 1.0), np.inf)
    wide = critical(_ALPHA / np.maximum(2, 1 + (away < critical(reach / 2)).sum(1)))
    plain = critical(_ALPHA / 2)
    miss = own.mean(1) - means[first]
    held = (miss <= plain * error(own)) & (miss >= -wide * error(own))
    miss = gaps.mean(2) - (means[None] - means[first][:, None])
    apart = (miss <= wide[:, None] * error(gaps)) & (miss >= -plain * error(gaps))
    return float(held.mean()), float(apart[others].mean())


def main() -> None:
    gc.freeze()  # statsmodels collects garbage at every correction
    rng = np.random.default_rng(0)
    print(f"{_STUDIES} studies of equal configurations, {_SEEDS} seeds each; some other is told from the best, in %\n")
    print("| configurations | Holm over those with the best | Holm over all pairs |\n|---:|---:|---:|")
    for arms in (2, 3, 5, 8):
        alone, together = false_differences(arms, rng)
        print(f"| {arms} | {100 * alone:.1f} | {100 * together:.1f} |")
    print("\nhow often intervals hold, in %: least and most over layouts and correlations of 0 and 0.5\n")
    print("| configurations | out of reach below | the best's own | differences from it |\n|---:|---:|---:|---:|")
    for arms in (2, 3, 5, 6, 8, 10):
        for reach in (0.05, OUT_OF_REACH, 0.01):
            found = np.array([coverage(means, shared, reach, rng) for means in layouts(arms) for shared in (0.0, 0.5)])
            (own_low, pair_low), (own_high, pair_high) = 100 * found.min(0), 100 * found.max(0)
            print(f"| {arms} | {reach:g} | {own_low:.1f} to {own_high:.1f} | {pair_low:.1f} to {pair_high:.1f} |")


if __name__ == "__main__":
    main()

"""How often equal configurations are told apart, and how often the best's interval and those of all differences hold.

python -m benchmarks.ties
"""

from __future__ import annotations

import gc
import math
from itertools import combinations

import numpy as np
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from harness.findings.statistics import ALPHA as _ALPHA
from harness.findings.statistics import REACH_ALPHA

_SEEDS, _STUDIES, _CONFIRMATIONS = 5, 4000, 20_000
_GAPS = (0.5, 1.0, 2.0, 3.0, 5.0, 50.0)  # in standard errors of a mean


def false_differences(arms: int, rng: np.random.Generator) -> tuple[float, float]:
    """The share of studies of equal arms in which one is told from the best.

    By Holm's correction over the comparisons with the best alone, and by Bonferroni's over all pairs.
    """
    scores = rng.normal(size=(_STUDIES, arms, _SEEDS))
    pairs = list(combinations(range(arms), 2))
    p_values = np.stack([ttest_1samp(scores[:, a] - scores[:, b], 0, axis=1).pvalue for a, b in pairs], axis=1)
    wrong = np.zeros(2)
    for study, row in enumerate(p_values):
        best = int(scores[study].mean(axis=1).argmin())
        own = [i for i, pair in enumerate(pairs) if best in pair]
        alone = multipletests(row[own], alpha=_ALPHA, method="holm")[0]
        wrong += alone.any(), (row[own] < _ALPHA / len(pairs)).any()
    return float(wrong[0] / _STUDIES), float(wrong[1] / _STUDIES)


def layouts(k: int) -> list[np.ndarray]:
    """Means of k configurations: equal, in steps, two ahead, half ahead, one ahead."""
    found: list[np.ndarray] = [np.zeros(k)]
    for gap in _GAPS:
        found.append(gap * np.arange(k))
        found += [np.where(np.arange(k) < ahead, 0.0, gap) for ahead in sorted({1, 2, k // 2} - {k})]
    return found


def holds(scores: np.ndarray, means: np.ndarray, reach: float = REACH_ALPHA) -> tuple[np.ndarray, np.ndarray]:
    """Whether the intervals of ``statistics.standing`` hold, for many confirmations at once.

    Args:
        scores: shape (confirmations, k, seeds).
        means: true means, shape (k,).
        reach: the level below which a paired t-test puts a configuration out of the best's reach; 0: none is.

    Returns:
        The best's own, shape (confirmations,), and those of the differences from it, (confirmations, k - 1).
    """
    (studies, k, seeds), one = scores.shape, np.arange(len(scores))
    first = scores.mean(2).argmin(1)
    others = np.ones((studies, k), bool)
    others[one, first] = False

    def error(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.std(-1, ddof=1) / seeds**0.5)

    def critical(share: np.ndarray | float) -> np.ndarray:
        return np.asarray(student_t.isf(share, seeds - 1))

    own = scores[one, first]
    gaps = (scores - own[:, None])[others].reshape(studies, k - 1, seeds)
    true_gaps = (means[None] - means[first][:, None])[others].reshape(studies, k - 1)
    reached = (gaps.mean(2) <= critical(reach / 2) * error(gaps)).sum(1)
    plain, wide = critical(_ALPHA / 2), critical(_ALPHA / np.maximum(2, 1 + reached))
    together = critical(_ALPHA / math.comb(k, 2) / 2)
    above, gaps_above = own.mean(1) - means[first], gaps.mean(2) - true_gaps
    return (
        (-wide * error(own) <= above) & (above <= plain * error(own)),
        np.abs(gaps_above) <= together * error(gaps),
    )


def coverage(means: np.ndarray, shared: float, reach: float, rng: np.random.Generator) -> tuple[float, float]:
    """(the best's own, all differences from it at once): how often intervals hold.

    Args:
        means: true means, in standard errors of a mean of ``_SEEDS`` scores.
        shared: correlation of the scores of two configurations on a seed.
        reach: as in :func:`holds`.
    """
    common = rng.normal(size=(_CONFIRMATIONS, 1, _SEEDS))
    alone = rng.normal(size=(_CONFIRMATIONS, len(means), _SEEDS))
    noise = shared**0.5 * common + (1 - shared) ** 0.5 * alone
    own, gaps = holds(means[None, :, None] + _SEEDS**0.5 * noise, means, reach)
    return float(own.mean()), float(gaps.all(1).mean())


def main() -> None:
    gc.freeze()  # statsmodels collects garbage at every correction
    rng = np.random.default_rng(0)
    print(f"{_STUDIES} studies of equal configurations, {_SEEDS} seeds each; some other is told from the best, in %\n")
    print("| configurations | Holm over those with the best | Bonferroni over all pairs |\n|---:|---:|---:|")
    for arms in (2, 3, 5, 8):
        alone, together = false_differences(arms, rng)
        print(f"| {arms} | {100 * alone:.1f} | {100 * together:.1f} |")
    print("\nhow often intervals hold, in %: least and most over layouts of means\n")
    print("| configurations | correlation | out of reach below | the best's own | all differences from it |")
    print("|---:|---:|---:|---:|---:|")
    for arms in (2, 3, 5, 6, 8, 10):
        for correlations, reach in (
            ((0.0, 0.5), 0.0),
            *(((0.0, 0.5), p) for p in (0.05, REACH_ALPHA, 0.01)),
            ((0.9,), REACH_ALPHA),
        ):
            found = np.array([coverage(means, c, reach, rng) for means in layouts(arms) for c in correlations])
            (own_low, pair_low), (own_high, pair_high) = 100 * found.min(0), 100 * found.max(0)
            said = " and ".join(f"{c:g}" for c in correlations)
            print(
                f"| {arms} | {said} | {reach:g} | {own_low:.1f} to {own_high:.1f} | {pair_low:.1f} to {pair_high:.1f} |"
            )


if __name__ == "__main__":
    main()

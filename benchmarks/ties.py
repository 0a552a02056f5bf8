"""How often equal configurations are told apart: Holm over the comparisons with the best, and over all pairs.

python -m benchmarks.ties
"""

from __future__ import annotations

import gc
from itertools import combinations

import numpy as np
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

_SEEDS, _STUDIES, _ALPHA = 5, 4000, 0.05


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


def main() -> None:
    gc.freeze()  # statsmodels collects garbage at every correction
    rng = np.random.default_rng(0)
    print(f"{_STUDIES} studies of equal configurations, {_SEEDS} seeds each; some other is told from the best, in %\n")
    print("| configurations | Holm over those with the best | Holm over all pairs |\n|---:|---:|---:|")
    for arms in (2, 3, 5, 8):
        alone, together = false_differences(arms, rng)
        print(f"| {arms} | {100 * alone:.1f} | {100 * together:.1f} |")


if __name__ == "__main__":
    main()

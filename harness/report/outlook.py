"""What more trials would likely bring, from those that a study has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from harness.report.ranking import rank
from harness.study.records import StudyRecord

_RESAMPLED, _FEWEST = 500, 6
_LOW, _HIGH = 5.0, 95.0  # per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The best score after k trials, as resampling a study's own trials expects it.

    ``expected[k - 1]`` is the mean of the best of k of its n trials; from ``low`` to ``high`` is its bootstrap interval
    (90 %). ``probability`` is that ``more`` trials hold a new best, ``gain`` how much lower the expected best became
    over the last stretch of the same proportion.
    """

    expected: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    more: int
    probability: float
    gain: float


def outlook(record: StudyRecord, more: int) -> Outlook | None:
    """The outlook of a study; None with fewer than six trials that count, or without two final scores.

    Final scores under one protocol count, and pruned trials as no better than the worst of them: that is what they were
    pruned for. Published recipes are no draws from the search space and are left out. Trials are taken as exchangeable:
    a sampler that learns does better than that, so that this is a cautious figure.
    """
    scores = [float(t.value or 0.0) for t in rank(record, top=len(record.trials)).trials if "recipe" not in t.attrs]
    pruned = sum(trial.state == "PRUNED" and "recipe" not in trial.attrs for trial in record.trials)
    if len(scores) < 2 or len(scores) + pruned < _FEWEST:
        return None
    values = np.array([*scores, *[max(scores)] * pruned])
    expected = expected_best(values)
    rng = np.random.default_rng(0)
    drawn = [expected_best(rng.choice(values, len(values))) for _ in range(_RESAMPLED)]
    low, high = np.percentile(drawn, [_LOW, _HIGH], axis=0)
    n = len(values)
    before = max(1, round(n * n / (n + more)))
    return Outlook(
        expected=tuple(expected.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        more=more,
        probability=new_best_probability(n, more),
        gain=float(expected[before - 1] - expected[-1]),
    )


def expected_best(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the lowest of k values drawn from n without replacement, for k = 1 … n, shape (n,).

    The i-th lowest is the lowest of a draw with probability C(n - i, k - 1) / C(n, k). Unbiased for every k up to n,
    which drawing with replacement (Dodge et al. 2019, "Show Your Work") is not (Tang et al. 2020, "Showing Your Work
    Doesn't Always Work").
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    i, k = np.arange(1, n + 1)[None, :], np.arange(1, n + 1)[:, None]
    possible = n - i >= k - 1
    left = np.where(possible, n - i - (k - 1), 0)
    chosen = gammaln(n - i + 1) - gammaln(k) - gammaln(left + 1)
    all_draws = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    weights = np.where(possible, np.exp(chosen - all_draws), 0.0)
    found: NDArray[np.float64] = weights @ ordered
    return found


def new_best_probability(n: int, more: int) -> float:
    """How likely the best of n + more exchangeable trials is among the later ones, whatever their distribution."""
    return more / (n + more)

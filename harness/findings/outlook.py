"""What more trials would likely bring, from those that a study has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from harness.findings.ranking import rank
from harness.store.records import StudyRecord
from harness.text import duration, metric_label, number

_RESAMPLED, _FEWEST = 500, 8
# Trials that must have ended before their own time says how long others take.
_FEWEST_ENDED = 3
_ROWS = 256  # of weights at once: as many columns as there are trials, in the cache
_LOW, _HIGH = 5.0, 95.0  # per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The expected best score after k trials, by resampling a study's n trials.

    ``gain`` is how much it fell from ``fewer`` trials to n, where n / ``fewer`` is (n + ``more``) / n.
    """

    # [k - 1]: the mean of the best of k of its n trials, with its bootstrap interval (90 %).
    expected: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    more: int
    fewer: int
    gain: float

    @property
    def sentences(self) -> str:
        """What more trials would bring."""
        n = len(self.expected)
        return (
            f"{_chance(n, self.more)}. How much better it would be is unknown; from {self.fewer} trials to {n} the "
            f"expected best fell by {number(self.gain)}."
        )


def outlook(record: StudyRecord, more: int) -> Outlook | None:
    """The outlook of a study; None where :func:`too_few` says why.

    Pruned trials count as the worst finished one; presets, published recipes among them, are not draws from the
    search space. Trials are taken as exchangeable: a sampler that learns does better, so this is a cautious figure.
    """
    scores = _finished(record)
    if len(scores) < _FEWEST:
        return None
    values = np.array([*scores, *[max(scores)] * _pruned(record)])
    n, rng = len(values), np.random.default_rng(0)
    drawn = [rng.choice(values, n) for _ in range(_RESAMPLED)]
    expected, *resampled = expected_best([values, *drawn])
    low, high = np.percentile(resampled, [_LOW, _HIGH], axis=0)
    fewer = max(1, round(n * n / (n + more)))
    return Outlook(
        expected=tuple(expected.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        more=more,
        fewer=fewer,
        gain=float(expected[fewer - 1] - expected[-1]),
    )


def too_few(record: StudyRecord | None) -> str:
    """Why a study has no outlook, in words; empty where it has one."""
    finished = len(_finished(record)) if record else 0
    if finished >= _FEWEST:
        return ""
    return (
        f"too few finished trials: {_FEWEST} with a final score of the same protocol are needed, presets and pruned "
        f"ones not counted, and there {'is' if finished == 1 else 'are'} {finished or 'none'}"
    )


def chance(record: StudyRecord | None, more: int) -> str:
    """What can be said without an outlook: how likely a new best is, in words; empty where no searched trial ended."""
    n = len(_finished(record)) + _pruned(record) if record else 0
    if not n:
        return ""
    return f"{_chance(n, more)}, if no pruned trial would have been the best; how much better is unknown"


def _chance(n: int, more: int) -> str:
    share = f"{100 * new_best_probability(n, more):.0f} % ({more}/({n} + {more}): {n} were searched so far)"
    return f"{more} more trials would find a new best with a probability of about {share}"


def _pruned(record: StudyRecord) -> int:
    return sum(trial.state == "PRUNED" and trial.drawn for trial in record.trials)


def _finished(record: StudyRecord) -> list[float]:
    """Final scores under the leaderboard's protocol."""
    return [float(trial.value or 0.0) for trial in rank(record).trials if trial.drawn]


def expected_best(samples: Sequence[Sequence[float]] | Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean of the lowest of k values drawn from a sample of n without replacement, for k = 1 … n.

    Shape (samples, n). The i-th lowest is the lowest of a draw with probability C(n - i, k - 1) / C(n, k): unbiased,
    which drawing with replacement (Dodge et al. 2019, "Show Your Work") is not (Tang et al. 2020).
    """
    ordered = np.sort(np.asarray(samples, dtype=float)).T
    n = len(ordered)
    log_factorial = gammaln(np.arange(n + 1) + 1)
    i, best = np.arange(1, n + 1)[None, :], np.empty_like(ordered)
    for start in range(0, n, _ROWS):
        k = np.arange(start + 1, min(start + _ROWS, n) + 1)[:, None]
        left = n - i - (k - 1)
        chosen = log_factorial[n - i] - log_factorial[k - 1] - log_factorial[np.maximum(left, 0)]
        all_draws = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        weights = np.where(left >= 0, np.exp(chosen - all_draws), 0.0)
        best[start : start + _ROWS] = weights @ ordered
    return best.T


def new_best_probability(n: int, more: int) -> float:
    """How likely the best of n + more exchangeable trials is among the later ones, whatever the scores are."""
    return more / (n + more)


def outlook_lines(record: StudyRecord | None, more: int) -> Iterator[str]:
    """What the rest of a study takes (None: not started), and what more trials would bring, if it has enough."""
    ended = [record.seconds(t) for t in record.trials if t.state in ("COMPLETE", "PRUNED")] if record else []
    if record and len(ended) >= _FEWEST_ENDED:
        each, left = sum(ended) / len(ended), max(0, record.attrs.target - len(ended))
        rest = f"the {left} that are left take {duration(each * left)} of a worker's time" if left else "none is left"
        yield f"so far: {len(ended)} trials, pruned ones included, took {duration(each)} each; {rest}"
    if record and (found := outlook(record, more)):
        n = len(found.expected)
        shown = sorted({1, *(round(n * share) for share in (0.25, 0.5, 0.75)), n})
        curve = ", ".join(f"{number(found.expected[k - 1])} of {k}" for k in shown)
        yield (
            f"the best {metric_label(record.attrs.final_metric)} to expect of fewer of the {n} searched trials "
            f"(presets left out, pruned ones as the worst finished one): {curve}"
        )
        yield found.sentences
        return
    yield f"no outlook: {too_few(record)}"
    if said := chance(record, more):
        yield said

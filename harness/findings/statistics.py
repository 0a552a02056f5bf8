"""How sure a comparison of configurations is: intervals, paired differences, power, by SciPy and statsmodels."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student_t
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW
from statsmodels.tools.sm_exceptions import ConvergenceWarning

LEVEL = 0.95
ALPHA = 1 - LEVEL
# The power that plans aim at (Cohen 1988, section 2.4).
WANTED_POWER = 0.8
# Fewer training seeds than this have no interval: with two it is 12.7 times as wide as they are apart.
FEWEST_SEEDS = 3
# A configuration that differs from the first at this level of a paired t-test could not have been picked in its place.
REACH_ALPHA = 0.03

# Scores of one configuration by training seed.
Scores = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over training seeds and its t-interval; no interval (None) with fewer than ``FEWEST_SEEDS``."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def scaled(self, factor: float) -> Estimate:
        """In other units, or turned round by a negative factor."""
        if self.low is None or self.high is None:
            return replace(self, mean=factor * self.mean)
        low, high = sorted((factor * self.low, factor * self.high))
        return replace(self, mean=factor * self.mean, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Scores of ``b`` less those of ``a`` on the seeds that both have, by the paired t-test.

    ``sd`` is that of the differences; ``p_holm`` is ``p`` until :func:`corrected` allows for the family.
    """

    a: str
    b: str
    estimate: Estimate
    sd: float
    p: float
    p_holm: float

    @property
    def tie(self) -> bool:
        """Whether the two do not differ clearly: the interval contains 0, or there is none."""
        return self.estimate.low is None or self.estimate.high is None or self.estimate.low <= 0 <= self.estimate.high


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceSplit:
    """Standard deviations of a score between trainings of one configuration, and between samplings of one generator."""

    training_sd: float
    sampling_sd: float
    trainings: int
    samplings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Configurations by their means, the lowest first; intervals allow for its having been picked as the lowest.

    Those of the differences from it hold jointly in 95 of 100 studies (Bonferroni over all pairs: correcting over those
    with the lowest alone, which the same data picked, finds differences between equals too often;
    docs/decisions/0008).
    """

    order: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    against_first: Mapping[str, Difference]


def standing(scores: Mapping[str, Scores]) -> Standing:
    """Who leads, by how much, and how sure that is.

    The lowest of k means is biased low, so its interval must reach higher. It then rarely misses on the other side, so
    all of ALPHA goes to the upper bound, at 1 - ALPHA / k (Bonferroni), where k counts the first and those within its
    reach. Simulated in docs/decisions/0008.
    """
    plain = {name: mean_score(list(values.values())) for name, values in scores.items()}
    order = tuple(sorted(plain, key=lambda name: (plain[name].mean, name)))
    first, level = order[0], 1 - ALPHA / max(1, math.comb(len(scores), 2))
    against = {name: pair for name in order[1:] if (pair := difference(first, name, scores, level))}
    reached = [name for name in order[1:] if name not in against or against[name].p >= REACH_ALPHA]
    if len(reached) > 1:
        own = estimate(list(scores[first].values()), 1 - 2 * ALPHA / (1 + len(reached)))
        plain[first] = replace(plain[first], high=own.high)
    return Standing(order=order, estimates=plain, against_first=against)


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    return _tested(values, level)[0]


def mean_score(values: Sequence[float]) -> Estimate:
    """The mean of a configuration's scores. No expected FID or KID is below 0, so its interval does not begin there.

    KID is unbiased, so its mean itself can be below 0; then the interval is not cut.
    """
    mean = estimate(values)
    return mean if mean.low is None or mean.mean < 0 else replace(mean, low=max(0.0, mean.low))


def _tested(values: Sequence[float], level: float) -> tuple[Estimate, float]:
    """(estimate, p of the one-sample t-test against 0)."""
    mean, n = statistics.fmean(values) if values else math.nan, len(values)
    if n < FEWEST_SEEDS:
        return Estimate(mean=mean, low=None, high=None, n=n), 1.0
    if len(set(values)) == 1:  # nothing to divide by: equal values are all the evidence there is
        return Estimate(mean=mean, low=mean, high=mean, n=n), float(mean == 0)
    stats = DescrStatsW(values)
    low, high = map(float, stats.tconfint_mean(1 - level))
    return Estimate(mean=mean, low=low, high=high, n=n), float(stats.ttest_mean(0.0)[1])


def difference(a: str, b: str, scores: Mapping[str, Scores], level: float = LEVEL) -> Difference | None:
    """The paired difference of two configurations; None with fewer than two common seeds."""
    gaps = [scores[b][seed] - scores[a][seed] for seed in sorted(set(scores[a]) & set(scores[b]))]
    if len(gaps) < 2:
        return None
    gap, p = _tested(gaps, level)
    return Difference(a=a, b=b, estimate=gap, sd=statistics.stdev(gaps), p=p, p_holm=p)


def corrected(pairs: Sequence[Difference]) -> list[Difference]:
    """A family of differences with ``p_holm`` after Holm's correction (1979); a single one needs none."""
    if len(pairs) < 2:
        return list(pairs)
    p_values = multipletests([pair.p for pair in pairs], alpha=ALPHA, method="holm")[1]
    return [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, p_values, strict=True)]


def power(effect: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """How often a paired t-test of n seeds finds a difference of ``effect``, where differences have this ``sd``."""
    if n < 2:
        return 0.0
    if sd == 0:
        return float(effect != 0)
    # statsmodels' TTestPower is NaN for many large effects, because SciPy's lower tail is; that tail is 0 there.
    shift, critical = abs(effect) / sd * math.sqrt(n), student_t.isf(alpha / 2, n - 1)
    return float(nct.sf(critical, n - 1, shift) + np.nan_to_num(nct.sf(critical, n - 1, -shift)))


def told(effect: float, sd: float, n: int, configurations: int) -> float:
    """How often n seeds tell two of the compared configurations apart that differ by ``effect``."""
    return power(effect, sd, n, ALPHA / math.comb(configurations, 2))


def detectable(sd: float, n: int, configurations: int) -> float | None:
    """The difference that is detected in 8 of 10 repeats (:func:`told`); None with fewer than ``FEWEST_SEEDS``."""
    if n < FEWEST_SEEDS:
        return None
    high = 1.0
    while told(high, 1.0, n, configurations) < WANTED_POWER:
        high *= 2
    return sd * float(brentq(lambda effect: told(effect, 1.0, n, configurations) - WANTED_POWER, 0.0, high))


def variance_split(samplings: Mapping[int, Sequence[float]]) -> VarianceSplit | None:
    """Training seed against sampling seed of one configuration, by a mixed linear model (REML).

    ``samplings`` has, by training seed, the score of one generator with each sampling seed. None where there are not
    two trainings, each sampled twice, or no such model fits.
    """
    repeated = {str(seed): values for seed, values in samplings.items() if len(values) > 1}
    if len(repeated) < 2:
        return None
    rows = [(training, score) for training, scores in repeated.items() for score in scores]
    frame = pd.DataFrame(rows, columns=["training", "score"])
    scale = float(frame["score"].std()) or 1.0  # the optimiser is made for numbers around one
    scaled = frame.assign(score=(frame["score"] - frame["score"].mean()) / scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a variance of zero lies on the boundary
        try:
            fit = MixedLM.from_formula("score ~ 1", scaled, groups="training").fit(reml=True)
        except (np.linalg.LinAlgError, ValueError):
            return None
    return VarianceSplit(
        training_sd=scale * float(np.sqrt(max(0.0, fit.cov_re.iloc[0, 0]))),
        sampling_sd=scale * float(np.sqrt(fit.scale)),
        trainings=len(repeated),
        samplings=len(frame),
    )

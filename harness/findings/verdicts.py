"""Verdicts on claims, from the trainings of their arms, and how often true claims would be supported."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from scipy.stats import binom, binomtest, chi2, norm, t
from statsmodels.stats.weightstats import ttost_paired

from harness.findings.health import COLLAPSED
from harness.findings.ranking import rank
from harness.findings.statistics import (
    ALPHA,
    FEWEST_SEEDS,
    LEVEL,
    WANTED_POWER,
    Difference,
    Estimate,
    corrected,
    difference,
    estimate,
)
from harness.gan.hparams import HParams
from harness.spec.fixed_study import Claim, arm_name
from harness.store.records import StudyRecord, TrialRecord
from harness.training.run_folder import RunFolder

Verdict = Literal["supported", "refuted", "undecided"]
# A training has also diverged if its last quick score is this many times its best one. Scores of samples that are alike
# (:data:`harness.findings.health.COLLAPSED`) do not count as the best: blank images may have a good quick score.
WORSENED = 1.5
# The rules of this module, as they are kept with a plan before its trainings.
RULE = f"2: diverged where the last quick score is {WORSENED:g} times the best, or the distance below {COLLAPSED:g}"
# Power is for an effect this many times the smallest that matters. An effect of exactly that size is supported in half
# of all repeats at best, because the observed one must reach it, too.
ASSUMED = 2.0
# Power of finding divergence is for this share of diverging trainings.
ASSUMED_SHARE = 0.9
_SIMULATED = 20_000
_MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """The trainings of one configuration, by seed, with their curves.

    ``scores`` are what a claim compares, its ``measure``, of those that have one.
    """

    trials: Mapping[int, TrialRecord]
    curves: Mapping[int, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    measure: str = "score"

    @property
    def scores(self) -> dict[int, float]:
        finished = {seed: t.value for seed, t in self.trials.items() if t.state == "COMPLETE" and t.value is not None}
        if self.measure == "score":
            return finished
        if self.measure == "score_rise":
            return {seed: _rise(self.trials[seed]) for seed in finished}
        of_curve = {"loss_swing": _swing, "loss_gap": _gap, "seconds": _seconds}[self.measure]
        return {seed: of_curve(self.curves[seed]) for seed in finished if len(self.curves.get(seed, ())) > 1}

    @property
    def diverged(self) -> set[int]:
        """Seeds whose training ended without a score, got worse by the factor ``WORSENED``, or lost its diversity."""
        return {seed for seed, trial in self.trials.items() if trial.attrs.diverged or _came_apart(trial)}

    @property
    def unscored(self) -> set[int]:
        return {seed for seed, trial in self.trials.items() if trial.attrs.diverged}

    @property
    def estimate(self) -> Estimate | None:
        return estimate(list(self.scores.values())) if self.scores else None

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A treated arm against the control.

    ``margin`` is the smallest difference that matters, in units of the score; ``effect`` in per cent of the control's.
    """

    claim: Claim
    treated: str
    result: ArmResult
    difference: Difference | None
    effect: Estimate | None
    margin: float | None
    verdict: Verdict

    @property
    def power(self) -> float | None:
        """How often this many seeds would support the claim if it were true."""
        says, pair = self.claim.says, self.difference
        if says == "diverges":
            return divergence_power(len(self.result.trials))
        if pair is None or self.margin is None:
            return None
        return claim_power(says, self.margin, pair.sd, pair.estimate.n, len(self.claim.treated))

    @property
    def needed(self) -> int | None:
        """Seeds that would in 8 of 10 repeats."""
        if self.claim.says == "diverges" or self.difference is None or self.margin is None:
            return None
        return seeds_needed(self.claim.says, self.margin, self.difference.sd, len(self.claim.treated))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    claim: Claim
    control: ArmResult
    comparisons: tuple[Comparison, ...]
    n_open: int

    @property
    def arms(self) -> dict[str, ArmResult]:
        """The control and the treated arms by name."""
        return {"control": self.control, **{c.treated: c.result for c in self.comparisons}}

    @property
    def verdict(self) -> Verdict:
        """Supported where every treated arm's is, refuted where any is, else undecided."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        if self.n_open:
            return "undecided"
        if "refuted" in verdicts:
            return "refuted"
        return "supported" if set(verdicts) == {"supported"} else "undecided"


def arm_results(plan: StudyRecord, root: Path | None = None) -> dict[str, ArmResult]:
    """The ended trainings of a plan by arm, but for scores of another protocol; of a seed trained twice the first.

    Their curves are read from the home folder ``root``.
    """
    other = set(rank(plan).left_out)
    by_arm: dict[str, dict[int, TrialRecord]] = {}
    for trial in plan.trials:
        if trial.state in ("COMPLETE", "PRUNED") and trial.attrs.arm and trial.number not in other:
            by_seed = by_arm.setdefault(trial.attrs.arm, {})
            by_seed.setdefault(trial.training_seed, trial)
    return {
        arm: ArmResult(
            trials=trials,
            curves={seed: RunFolder(root / t.attrs.folder).read_curve() for seed, t in trials.items()} if root else {},
        )
        for arm, trials in by_arm.items()
    }


def judge(claim: Claim, arms: Mapping[str, HParams], results: Mapping[str, ArmResult]) -> Judgement:
    """The verdict on a claim, from its arms by their names in the claim and the plan's trainings by ``arm_name``."""
    found = {name: results.get(arm_name(hp), ArmResult(trials={})) for name, hp in arms.items()}
    own = {name: dataclasses.replace(result, measure=claim.measure) for name, result in found.items()}
    scores = {name: result.scores for name, result in own.items()}
    measured = [pair for name in claim.treated if (pair := difference("control", name, scores))]
    pairs = {pair.b: pair for pair in corrected(measured)}
    return Judgement(
        claim=claim,
        control=own["control"],
        comparisons=tuple(_compare(claim, name, own["control"], own[name], pairs.get(name)) for name in claim.treated),
        n_open=sum(max(0, claim.seeds - len(result.trials)) for result in own.values()),
    )


def _compare(claim: Claim, name: str, control: ArmResult, treated: ArmResult, pair: Difference | None) -> Comparison:
    margin = claim.relevant * fmean(control.scores.values()) if control.scores else None
    if claim.says == "diverges":
        verdict = _divergence_verdict(treated)
    else:
        verdict = _lost(claim, control, treated) or _score_verdict(claim.says, pair, margin, control, treated)
    return Comparison(
        claim=claim,
        treated=name,
        result=treated,
        difference=pair,
        effect=pair.estimate.scaled(100 / fmean(control.scores.values())) if pair else None,
        margin=margin,
        verdict=verdict,
    )


def _divergence_verdict(treated: ArmResult) -> Verdict:
    """Whether more than half of all trainings would diverge (Clopper and Pearson 1934, one-sided)."""
    n, k = len(treated.trials), len(treated.diverged)
    if not n:
        return "undecided"
    low, high = share_bounds(k, n)
    return "supported" if low > 0.5 else "refuted" if high < 0.5 else "undecided"


def _lost(claim: Claim, control: ArmResult, treated: ArmResult) -> Verdict | None:
    """The verdict where most trainings of just one side have no score at all."""
    treated_lost, control_lost = (2 * len(arm.unscored) > len(arm.trials) for arm in (treated, control))
    if treated_lost == control_lost:
        return None
    return "supported" if claim.says == ("worse" if treated_lost else "better") else "refuted"


def _score_verdict(
    says: str, pair: Difference | None, margin: float | None, control: ArmResult, treated: ArmResult
) -> Verdict:
    if pair is None or margin is None or pair.estimate.low is None or pair.estimate.high is None:
        return "undecided"
    if control.unscored or treated.unscored:  # those that are left would speak for the arm that loses more
        return "undecided"
    gap, low, high = pair.estimate.mean, pair.estimate.low, pair.estimate.high
    if says == "worse":
        gap, low, high = -gap, -high, -low
    if says in ("better", "worse"):
        if pair.p_holm < ALPHA and gap <= -margin:
            return "supported"
        return "refuted" if low > -margin else "undecided"
    if _equivalent(control, treated, margin):
        return "supported"
    return "refuted" if pair.p_holm < ALPHA and abs(gap) >= margin else "undecided"


def _equivalent(control: ArmResult, treated: ArmResult, margin: float) -> bool:
    """Two one-sided paired t-tests (Schuirmann 1987)."""
    common = sorted(set(control.scores) & set(treated.scores))
    left = np.array([control.scores[seed] for seed in common])
    right = np.array([treated.scores[seed] for seed in common])
    if np.ptp(right - left) == 0:
        return bool(abs(right[0] - left[0]) < margin)
    return float(ttost_paired(right, left, -margin, margin)[0]) < 1 - LEVEL


def _came_apart(trial: TrialRecord) -> bool:
    watched = trial.attrs.watched
    diverse = {step: watched.get(step, {}).get("sample_distance", 1.0) >= COLLAPSED for step in trial.intermediate}
    *before, last = sorted(trial.intermediate) or [0]
    sound = [trial.intermediate[step] for step in before if diverse[step]]
    return bool(sound) and (not diverse[last] or trial.intermediate[last] > WORSENED * min(sound))


def _rise(trial: TrialRecord) -> float:
    """The largest factor by which a later quick score is above an earlier one; 1 where none is."""
    best, rise = math.inf, 1.0
    for _, score in sorted(trial.intermediate.items()):
        best = min(best, score)
        rise = max(rise, score / best)
    return rise


def _swing(curve: Sequence[Mapping[str, float]]) -> float:
    """The mean change of the generator's loss (nats) from a point of a curve to the next."""
    return fmean(abs(after["loss_g"] - before["loss_g"]) for before, after in pairwise(curve))


def _gap(curve: Sequence[Mapping[str, float]]) -> float:
    """The mean distance of both networks' losses (nats)."""
    return fmean(abs(point["loss_g"] - point["loss_d"]) for point in curve)


def _seconds(curve: Sequence[Mapping[str, float]]) -> float:
    """The mean time of training 1,000 images (s), without scoring and checkpoints."""
    return fmean(1000 / point["images_per_s"] for point in curve)


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
    """How often n seeds support a true claim on a score, by simulated means and spreads (``sd``) of the differences.

    The true one is ``ASSUMED`` times the margin, for ``same`` none; arms are corrected together (Holm's first step).
    """
    if n < FEWEST_SEEDS:
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

    def suffices(n: int) -> bool:
        return claim_power(says, margin, sd, n, arms) >= WANTED_POWER

    counts = range(FEWEST_SEEDS, _MOST_SEEDS + 1)
    return counts[bisect_left(counts, True, hi=len(counts) - 1, key=suffices)] if suffices(_MOST_SEEDS) else None

"""Verdicts on claims, from the trainings of their arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np
from statsmodels.stats.weightstats import ttost_paired

from harness.findings.health import COLLAPSED
from harness.findings.power import claim_power, divergence_power, seeds_needed, share_bounds
from harness.findings.ranking import rank
from harness.findings.statistics import (
    ALPHA,
    LEVEL,
    Difference,
    Estimate,
    difference,
    estimate,
    holm,
)
from harness.gan.hparams import HParams
from harness.spec.fixed_study import Claim, arm_name
from harness.store.records import StudyRecord, TrialRecord

Verdict = Literal["supported", "refuted", "undecided"]
# A training has diverged, too, where its last quick score is this many times the best one that it had while its samples
# differed as much as :data:`harness.findings.health.COLLAPSED` asks: blank images may have a good quick score.
WORSENED = 1.5
# The rules of this module, as they are kept with a plan before its trainings.
RULE = f"2: diverged where the last quick score is {WORSENED:g} times the best, or the distance below {COLLAPSED:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """The trainings of one configuration, by seed; ``scores`` only of those that have one."""

    trials: Mapping[int, TrialRecord]

    @property
    def scores(self) -> dict[int, float]:
        return {seed: t.value for seed, t in self.trials.items() if t.state == "COMPLETE" and t.value is not None}

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

    ``margin`` is the smallest difference that matters, in units of the score; ``n_arms`` are corrected together.
    ``effect`` is the difference in per cent of the control's mean.
    """

    treated: str
    result: ArmResult
    difference: Difference | None
    effect: Estimate | None
    margin: float | None
    says: str
    n_arms: int
    verdict: Verdict

    @property
    def power(self) -> float | None:
        """How often this many seeds would support the claim if it were true."""
        if self.says == "diverges":
            return divergence_power(len(self.result.trials))
        if self.difference is None or self.margin is None:
            return None
        return claim_power(self.says, self.margin, self.difference.sd, self.difference.estimate.n, self.n_arms)

    @property
    def needed(self) -> int | None:
        """Seeds that would in 8 of 10 repeats."""
        if self.says == "diverges" or self.difference is None or self.margin is None:
            return None
        return seeds_needed(self.says, self.margin, self.difference.sd, self.n_arms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A claim with its verdict."""

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


def arm_results(plan: StudyRecord) -> dict[str, ArmResult]:
    """The ended trainings of a plan by arm; of a seed that was trained twice the first.

    Scores of another protocol than most cannot be compared: those trainings are left out.
    """
    other = set(rank(plan).left_out)
    by_arm: dict[str, dict[int, TrialRecord]] = {}
    for trial in plan.trials:
        if trial.state in ("COMPLETE", "PRUNED") and trial.attrs.arm and trial.number not in other:
            by_seed = by_arm.setdefault(trial.attrs.arm, {})
            by_seed.setdefault(trial.training_seed, trial)
    return {arm: ArmResult(trials=trials) for arm, trials in by_arm.items()}


def judge(claim: Claim, arms: Mapping[str, HParams], results: Mapping[str, ArmResult]) -> Judgement:
    """The verdict on a claim.

    Args:
        claim: what is claimed.
        arms: its arms by their names in the claim, the control included.
        results: the plan's trainings by :func:`harness.spec.fixed_study.arm_name`.
    """
    own = {name: results.get(arm_name(hp), ArmResult(trials={})) for name, hp in arms.items()}
    scores = {name: result.scores for name, result in own.items()}
    pairs = {name: difference("control", name, scores) for name in claim.treated}
    measured = {name: pair for name, pair in pairs.items() if pair is not None}
    if measured:
        corrected = holm([pair.p for pair in measured.values()])
        pairs |= {n: replace(pair, p_holm=p) for (n, pair), p in zip(measured.items(), corrected, strict=True)}
    return Judgement(
        claim=claim,
        control=own["control"],
        comparisons=tuple(_compare(claim, name, own["control"], own[name], pairs[name]) for name in claim.treated),
        n_open=sum(max(0, claim.seeds - len(result.trials)) for result in own.values()),
    )


def _compare(claim: Claim, name: str, control: ArmResult, treated: ArmResult, pair: Difference | None) -> Comparison:
    margin = claim.relevant * fmean(control.scores.values()) if control.scores else None
    if claim.says == "diverges":
        verdict = _divergence_verdict(treated)
    else:
        verdict = _lost(claim, control, treated) or _score_verdict(claim.says, pair, margin, control, treated)
    return Comparison(
        treated=name,
        result=treated,
        difference=pair,
        effect=pair.estimate.scaled(100 / fmean(control.scores.values())) if pair else None,
        margin=margin,
        says=claim.says,
        n_arms=len(claim.treated),
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
    treated_lost = 2 * len(treated.unscored) > len(treated.trials)
    control_lost = 2 * len(control.unscored) > len(control.trials)
    if treated_lost == control_lost:
        return None
    wanted = "worse" if treated_lost else "better"
    return "supported" if claim.says == wanted else "refuted"


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

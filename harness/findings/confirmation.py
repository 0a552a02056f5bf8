"""The confirmed leaderboard: configurations by their mean over new training seeds, and which differ clearly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.findings import statistics as stats
from harness.findings.health import flaw
from harness.findings.ranking import leading, rank
from harness.gan.hparams import LATER, digest, stored_value
from harness.store.records import StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedArm:
    """One configuration: finished trainings by seed, and how many diverged, wait or used another protocol.

    ``searched`` is its score in the search: one training, and a selected one. None if that was of another protocol.
    """

    name: str
    estimate: stats.Estimate
    trials: Mapping[int, TrialRecord]
    n_diverged: int
    n_open: int
    n_other: int
    searched: float | None
    published: bool

    @property
    def scores(self) -> dict[int, float]:
        return {seed: float(trial.value or 0.0) for seed, trial in self.trials.items()}

    @property
    def gap(self) -> float | None:
        """The confirmed mean less the score in the search: how lucky that score was."""
        return None if self.searched is None else self.estimate.mean - self.searched

    @property
    def flaws(self) -> Counter[str]:
        """How many of its trainings have collapsed, and how many are saturated."""
        return Counter(found for trial in self.trials.values() if (found := flaw(trial)))

    @property
    def flawed(self) -> bool:
        """Whether most of its trainings have a flaw."""
        return 2 * self.flaws.total() > len(self.trials)

    @property
    def hparams(self) -> Mapping[str, Any]:
        return next(iter(self.trials.values())).attrs.hparams

    @property
    def median_trial(self) -> TrialRecord:
        """The training whose score is the median; of an even number the better one of the middle two."""
        ordered = sorted(self.trials.values(), key=lambda trial: (trial.value, trial.number))
        return ordered[(len(ordered) - 1) // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Configurations by mean score, the best first.

    ``ranked`` have no diverged training, and no flaw in most, unless none is so; ``unsound`` are the others.
    ``differences`` are from the best. ``splits`` are the sources of chance of each, where they can be estimated.
    """

    study: str
    metric: str
    protocol_hash: str
    n_seeds: int
    n_samplings: int
    ranked: tuple[ConfirmedArm, ...]
    unsound: tuple[ConfirmedArm, ...]
    differences: Mapping[str, stats.Difference]
    splits: Mapping[str, stats.VarianceSplit]

    @property
    def best(self) -> ConfirmedArm:
        return self.ranked[0]

    def against_best(self, arm: ConfirmedArm) -> stats.Difference | None:
        """How much worse than the best it is, on the seeds that both have."""
        return self.differences.get(arm.name)

    @property
    def ties(self) -> list[ConfirmedArm]:
        return [arm for arm in self.ranked[1:] if self.verdict(arm) != "worse"]

    def verdict(self, arm: ConfirmedArm) -> str:
        """``best``, or ``leads`` where no other is worse; ``worse``, ``tie``, or ``open``.

        ``open`` has too few seeds, or a lower mean than the best on the seeds that both have.
        """
        gap = self.against_best(arm)
        if arm is self.best:
            return "leads" if len(self.ties) == len(self.ranked) - 1 else "best"
        if gap is None or gap.estimate.low is None:
            return "open"
        return "tie" if gap.tie else "worse" if gap.estimate.low > 0 else "open"

    @property
    def leader(self) -> ConfirmedArm | None:
        """The best of the search among those that are ranked here."""
        searched = [arm for arm in self.ranked if arm.searched is not None]
        return min(searched, key=lambda arm: arm.searched or 0, default=None)

    @property
    def n_open(self) -> int:
        return sum(arm.n_open for arm in (*self.ranked, *self.unsound))

    @property
    def n_other(self) -> int:
        return sum(arm.n_other for arm in (*self.ranked, *self.unsound))

    @property
    def detectable(self) -> float | None:
        """The difference from the best that is detected in 8 of 10 repeats, by the runner-up's spread."""
        pair = self.against_best(self.ranked[1]) if len(self.ranked) > 1 else None
        return stats.detectable(pair.sd, pair.estimate.n, len(self.ranked)) if pair else None


def confirmation(search: StudyRecord, plan: StudyRecord) -> Confirmation | None:
    """None while no configuration has a score, or where the search was started again from scratch since."""
    of, board = plan.attrs.spec.get("plan", {}).get("uid"), rank(plan)
    if of not in (None, search.attrs.uid) or not board.trials:
        return None
    by_arm: dict[str, list[TrialRecord]] = {}
    for trial in plan.trials:
        by_arm.setdefault(trial.attrs.arm, []).append(trial)
    arms = [_arm(name, trials, board.protocol_hash, search) for name, trials in by_arm.items() if name]
    scored = [arm for arm in arms if arm.trials and not arm.n_diverged]
    if not scored:
        return None
    by_name = {arm.name: arm for arm in scored if not arm.flawed} or {arm.name: arm for arm in scored}
    result = stats.standing({name: arm.scores for name, arm in by_name.items()})
    sound = [replace(by_name[name], estimate=result.estimates[name]) for name in result.order]
    # For each configuration: bad ones vary more than good ones.
    splits = {
        arm.name: stats.variance_split({s: trial.attrs.samplings for s, trial in arm.trials.items()}) for arm in sound
    }
    return Confirmation(
        study=plan.name,
        metric=plan.attrs.final_metric,
        protocol_hash=board.protocol_hash,
        n_seeds=max(len(arm.trials) + arm.n_diverged + arm.n_open for arm in arms),
        n_samplings=max(len(trial.attrs.samplings) for arm in sound for trial in arm.trials.values()),
        ranked=tuple(sound),
        unsound=tuple(arm for arm in arms if arm.name not in by_name),
        differences=result.against_first,
        splits={name: split for name, split in splits.items() if split},
    )


def best_training(search: StudyRecord, plan: StudyRecord | None) -> TrialRecord | None:
    """The training that stands for a study's best: that of the confirmed best's median seed, else the leading trial."""
    found = confirmation(search, plan) if plan else None
    return found.best.median_trial if found else next(iter(leading(search)), None)


def _arm(name: str, trials: list[TrialRecord], protocol_hash: str, search: StudyRecord) -> ConfirmedArm:
    complete = [trial for trial in trials if trial.state == "COMPLETE"]
    done = {trial.training_seed: trial for trial in complete if trial.attrs.protocol_hash == protocol_hash}
    diverged = {trial.training_seed for trial in trials if trial.attrs.diverged}
    other = {trial.training_seed for trial in complete} - set(done)
    planned = {trial.training_seed for trial in trials}
    wanted = {**LATER, **(trials[0].attrs.overrides or {})}
    same = [
        trial
        for trial in (*rank(search).trials, *(t for t in search.trials if t.state == "PRUNED"))
        if digest({key: stored_value(trial.attrs.hparams, key) for key in wanted}) == digest(wanted)
    ]
    comparable = [t for t in same if t.state == "COMPLETE" and t.attrs.protocol_hash == protocol_hash]
    return ConfirmedArm(
        name=name,
        estimate=stats.mean_score([float(done[seed].value or 0.0) for seed in sorted(done)]),
        trials=done,
        n_diverged=len(diverged),
        n_open=len(planned - set(done) - diverged - other),
        n_other=len(other),
        searched=comparable[0].value if comparable else None,
        published=any(trial.published for trial in same),
    )

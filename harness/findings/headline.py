"""What a study or a training has found, in one sentence, with its reason and the next command: the same everywhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.findings.confirmation import Confirmation, confirmation
from harness.findings.health import (
    COLLAPSED,
    SATURATED,
    WON_SHARE,
    Flaw,
    flaw,
    flaw_of,
    sample_distance,
    training_health,
)
from harness.findings.ranking import leading, objectives, pareto_front, rung_scores
from harness.findings.statistics import FEWEST_SEEDS, Estimate
from harness.store.records import StudyRecord, TrialRecord
from harness.text import counted, metric_label, number
from harness.training.run_folder import RunFolder

Kind = Literal[
    "no usable trial",
    "collapsed",
    "saturated",
    "too short",
    "nothing searched yet",
    "no winner",
    "best, unconfirmed",
    "best, confirmed",
    # Of a single training, which may be collapsed, saturated or too short as well:
    "diverged",
    "no score",
    "discriminator won",
    "trained",
]
# With fewer generator updates a DCGAN draws hardly more than blobs, whatever its settings: in reports/mnist32 the
# paper's own have an FID of 273 after 422 updates, the best 48 after 3,375.
FEWEST_UPDATES = 500
# Precision and recall below which samples and real images hardly overlap.
FAR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The verdict on a study, or on a single training.

    Attributes:
        kind: the verdict in a few words, such as ``best, confirmed``.
        text: the verdict in a sentence.
        reason: why, and what else to know; one sentence or more.
        next: the command to run next.
        trial: number of the search's leading trial, the best without a flaw; None without one.
    """

    kind: Kind
    text: str
    reason: str
    next: str
    trial: int | None

    @property
    def lines(self) -> tuple[str, str, str]:
        """As a terminal shows it."""
        return self.text, self.reason, f"next: {self.next}"

    @property
    def tags(self) -> dict[str, str]:
        """As the study's run in MLflow has it."""
        return {"verdict": self.kind, "headline": self.text}


def headline(record: StudyRecord, plan: StudyRecord | None = None) -> Headline:
    """The verdict on a search; ``plan`` is its confirmation, if it has one."""
    trials, confirmed = leading(record), confirmation(record, plan) if plan else None
    judge = _Judge(record, trials)
    if not trials:
        return judge.nothing_usable()
    if confirmed.best.flawed if confirmed else flaw(trials[0]):
        return judge.flawed(confirmed)
    if (longest := max(trial.updates(judge.kimg) for trial in trials)) < FEWEST_UPDATES:
        return judge.too_short(longest)
    if confirmed:
        return judge.confirmed(confirmed)
    if not any(trial.drawn and trial.state in ("COMPLETE", "PRUNED") for trial in record.trials):
        return judge.nothing_searched()
    return judge.unconfirmed()


@dataclass(frozen=True, slots=True)
class _Judge:
    record: StudyRecord
    trials: list[TrialRecord]

    @property
    def kimg(self) -> float:
        return float(self.record.attrs.spec["budget"]["kimg"])

    @property
    def metric(self) -> str:
        return metric_label(self.record.attrs.final_metric)

    def nothing_usable(self) -> Headline:
        ended = [trial for trial in self.record.newest if trial.state in ("PRUNED", "FAIL")]
        ways = Counter(_end(trial) for trial in ended)
        open_ = [trial for trial in self.record.newest if trial.shown_state == "PAUSED" or _end(trial) == "interrupted"]
        if open_:
            return self._say(
                "no usable trial",
                "No usable trial yet: none is trained to the end.",
                f"{counted(len(open_), 'trial')} paused or interrupted; the next command continues.",
                f"harness sweep {self.record.name}",
            )
        text = f"No usable trial: none of {counted(len(ended), 'ended trial')} has a final score."
        how = ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
        return self._say(
            "no usable trial",
            text if ended else "No usable trial: none has ended yet.",
            f"Of them {how}." if ended else "A trial is usable once it is trained to the end and scored.",
            self._more(),
        )

    def flawed(self, confirmed: Confirmation | None) -> Headline:
        if confirmed:
            n, what, best = len(confirmed.ranked), "confirmed configuration", confirmed.best.name
            of_best = list(confirmed.best.trials.values())
            trials = [trial for arm in confirmed.ranked for trial in arm.trials.values()]
        else:
            n, what, of_best, trials = len(self.trials), "finished trial", self.trials, self.trials
            best = f"Trial {self.trials[0].number}"
        trial = next(trial for trial in of_best if flaw(trial))
        kind: Kind = "collapsed" if flaw(trial) == "collapsed" else "saturated"
        every = f"all {n} {what}s" if n > 1 else f"the only {what}"
        apart = f"{number(sample_distance(trial))} times as far apart as real images"
        short = trial.updates(self.kimg) < FEWEST_UPDATES
        needed = f"; some {FEWEST_UPDATES} updates are needed before a DCGAN draws shapes" if short else ""
        return self._say(
            kind,
            f"{kind.capitalize()}: samples of {every} {_looks({flaw(trial) for trial in trials})}.",
            f"{best} has the best {self.metric}, but its samples are {apart} after {self._length(trial)}{needed}.",
            self._longer(short),
        )

    def too_short(self, longest: int) -> Headline:
        best = self.trials[0]
        return self._say(
            "too short",
            f"Too short to judge: no finished trial made more than {counted(longest, 'generator update')}.",
            f"{self._leads(best)}, but some {FEWEST_UPDATES} updates are needed before a DCGAN draws shapes.",
            self._longer(short=True),
        )

    def nothing_searched(self) -> Headline:
        best, n = self.trials[0], len(self.trials)
        every = f"all {n} finished trials are presets" if n > 1 else "the only finished trial is a preset"
        return self._say(
            "nothing searched yet",
            f"Nothing searched yet: {every}.",
            f"{self._leads(best)}; presets are the study file's own configurations, and none that the sampler chose "
            "has finished.",
            self._more(),
        )

    def unconfirmed(self) -> Headline:
        best, front = self.trials[0], pareto_front(self.record)
        several = len(objectives(self.record)) > 1
        alone = f"By the score alone: {counted(len(front), 'trial')} on the Pareto front. " if several else ""
        reason = f"{alone}{self._against(best)}{self._lower()}"
        far, early = _far(best.attrs.scores), self._cut_short()
        longer = f"harness train --config reports/{self.record.name}/best.toml --kimg {number(5 * self.kimg)}"
        return self._say(
            "best, unconfirmed",
            f"Best, unconfirmed: {_name(best)} with {self.metric} = {number(best.value)} after {self._length(best)}.",
            f"{early}{far}{reason}One training seed each: how much of its lead is chance is unknown.",
            self._more() if early else longer if far else f"harness confirm {self.record.name}",
        )

    def confirmed(self, found: Confirmation) -> Headline:
        best, mean, study = found.best, found.best.estimate, self.record.name
        ties = [arm.name for arm in found.ties]
        seeds = f"{counted(mean.n, 'training seed')} that the search never used"
        scored = f"with a mean {self.metric} = {number(mean.mean)}{_interval(mean)}, from {seeds}"
        if len(ties) < len(found.ranked) - 1:
            sure = (
                f"Ties: {', '.join(ties)}; choose the most convenient." if ties else "All others confirmed are worse."
            )
            return self._say(
                "best, confirmed",
                f"Best, confirmed: {best.name} {scored}.",
                f"{_far(best.median_trial.attrs.scores)}{sure}{self._published(found)}{_open(found)}",
                f"harness generate --study {study} --best -n 64 --out grid.png",
            )
        if not ties:
            why, more = "No other configuration was confirmed.", " --top 5"
        elif mean.n < FEWEST_SEEDS:
            why, more = f"Fewer than {FEWEST_SEEDS} seeds cannot tell configurations apart.", " --seeds 5"
        else:
            why, more = f"Ties: {', '.join(ties)}; choose the most convenient.", f" --seeds {2 * mean.n}"
        return self._say(
            "no winner",
            f"No winner: {best.name} leads {scored}, but no other is clearly worse.",
            f"{_far(best.median_trial.attrs.scores)}{why}{_open(found)}",
            f"harness confirm {study}" + ("" if found.n_open else more),
        )

    def _say(self, kind: Kind, text: str, reason: str, command: str) -> Headline:
        trial = self.trials[0].number if self.trials else None
        images = "" if command.startswith("harness generate") else self.record.data_option
        return Headline(kind=kind, text=text, reason=reason, next=f"{command}{images}", trial=trial)

    def _cut_short(self) -> str:
        """That not all trials have been tried, in a sentence."""
        ended = sum(trial.state in ("COMPLETE", "PRUNED") for trial in self.record.newest)
        target = self.record.attrs.target
        return (
            f"So far {ended} of {target} trials have ended, {len(self.trials)} of them after a full training. "
            if ended < target
            else ""
        )

    def _leads(self, trial: TrialRecord) -> str:
        return (
            f"{_name(trial).capitalize()} leads with {self.metric} = {number(trial.value)} after {self._length(trial)}"
        )

    def _length(self, trial: TrialRecord) -> str:
        return f"{number(self.kimg)} kimg ({counted(trial.updates(self.kimg), 'generator update')})"

    def _against(self, best: TrialRecord) -> str:
        """How published configurations compare with it in the search, in a sentence."""
        if best.published:
            drawn = sum(trial.drawn and trial.state in ("COMPLETE", "PRUNED") for trial in self.record.trials)
            others = counted(drawn, "other")
            return f"It is a published configuration: the search found none that is better among {others}. "
        if other := next((trial for trial in self.trials if trial.published), None):
            return f"The best published one, {_name(other)}, has {number(other.value)}.{self._compared(other, best)} "
        own = dict(rung_scores(best))
        for other in self.record.trials:
            kimg, score = max(rung_scores(other), default=(0.0, 0.0))
            if other.published and other.state == "PRUNED" and kimg in own:
                rung = f"{metric_label(self.record.attrs.rung_metric)} = {number(score)}"
                there = f"{_name(best)} had {number(own[kimg])} there"
                return f"{_name(other).capitalize()} was pruned at {number(kimg)} kimg with {rung}; {there}. "
        return ""

    def _compared(self, other: TrialRecord, best: TrialRecord) -> str:
        """Its updates and the best's, where they differ, in a sentence."""
        theirs, own = other.updates(self.kimg), best.updates(self.kimg)
        return "" if theirs == own else f" With as many images it made {counted(theirs, 'update')}, the best {own:,}."

    def _lower(self) -> str:
        """Trials with a better score that have a flaw, in a sentence."""
        best = self.trials[0]
        lower = [trial for trial in self.trials if (trial.value or 0.0) < (best.value or 0.0)]
        flaws = " or ".join(sorted({flaw(trial) for trial in lower}))
        return f"Scored lower, but {flaws}: {', '.join(map(_name, lower))}. " if lower else ""

    def _published(self, found: Confirmation) -> str:
        best, other = found.best, next((arm for arm in found.ranked if arm.published), None)
        if best.published:
            return " It is a published configuration: the search found none that is better."
        if other is None:
            return " No published configuration was confirmed without a diverged, collapsed or saturated training."
        gap = found.against_best(other)
        higher = f", seed by seed {number(gap.estimate.mean)} higher{_interval(gap.estimate)}" if gap else ""
        updates = self._compared(other.median_trial, best.median_trial)
        return f" The best published one, {other.name}, has {number(other.estimate.mean)}{higher}.{updates}"

    def _more(self) -> str:
        """The command that finishes more trials."""
        ended = sum(trial.state in ("COMPLETE", "PRUNED") for trial in self.record.trials)
        target = self.record.attrs.target
        return f"harness sweep {self.record.name}" + (f" --trials {ended + 10}" if ended >= target else "")

    def _longer(self, short: bool) -> str:
        """The command that says what longer trainings take; where they are long enough, the one that tries more."""
        study = self.record.name.removesuffix("-quick")
        if study != self.record.name:
            return f"harness sweep {study}"
        kimg = math.ceil(self.kimg * 2 * FEWEST_UPDATES / max(trial.updates(self.kimg) for trial in self.trials))
        return f"harness plan {study} --kimg {kimg}" if short else self._more()


def training_headline(run: RunFolder) -> Headline:
    """The verdict on a single training that has ended, from its folder."""
    summary = run.read_summary()
    found, command = training_health(run, summary), summary["about"]["command"]
    steps, kimg, failed = summary["steps"], summary["kimg"], summary["failed"]
    length = f"{number(summary['trained_kimg'])} kimg ({counted(steps, 'generator update')})"
    scored = f"{metric_label(summary['metric'])} = {number(summary['scores'].get(summary['metric']))} after {length}"
    short = steps < FEWEST_UPDATES
    again = f"{command} --seed {summary['seed'] + 1} --kimg {kimg:g}"
    longer = math.ceil(kimg * 2 * FEWEST_UPDATES / steps)
    said = f"{command} --seed {summary['seed']} --kimg {longer}" if short else again
    kind: Kind
    if failed and summary["diverged"]:
        kind, text, said = "diverged", f"Diverged: {failed}.", again
    elif flawed := flaw_of(found.distance):
        kind, text = flawed, f"{flawed.capitalize()}: the samples {_looks({flawed})}."
    elif failed:
        kind, text = "no score", f"No score: {failed}."
    elif short:
        kind, text = "too short", f"Too short to judge: {counted(steps, 'generator update')}."
    elif found.won is not None and found.won > WON_SHARE:
        kind, text = "discriminator won", "The discriminator has won: the generator learns hardly anything from it."
    else:
        kind, text = "trained", f"Trained: {scored}."
        said = f"harness generate --training {run.path.name} -n 64 --out grid.png"
    reasons = [] if kind == "trained" else [f"Nothing was scored after {length}" if failed else scored]
    if short:
        reasons.append(f"Some {FEWEST_UPDATES} updates are needed before a DCGAN draws shapes")
    if found.distance is not None:
        apart = f"Samples are {number(found.distance)} times as far apart as real images"
        limit = f"below {COLLAPSED}: collapsed" if found.distance <= 1 else f"above {SATURATED}: saturated"
        reasons.append(f"{apart} ({limit})")
    if found.won is not None:
        floor = f"The discriminator's loss was at its floor for {100 * found.won:.0f} % of the second half"
        reasons.append(f"{floor} (above {100 * WON_SHARE:.0f} %: it has won)")
    if far := _far(summary["scores"]):
        reasons.append(far.rstrip(". "))
    if kind == "trained":
        reasons.append("One training seed: how much of the score is chance is unknown")
    return Headline(kind=kind, text=text, reason=" ".join(f"{each}." for each in reasons), next=said, trial=None)


def _name(trial: TrialRecord) -> str:
    preset = trial.attrs.preset or trial.attrs.recipe
    return f"trial {trial.number} ({preset})" if preset else f"trial {trial.number}"


def _looks(flaws: set[Flaw]) -> str:
    """What samples of trainings with these flaws look like, next to real images."""
    looks = {"collapsed": "are nearly alike", "saturated": "vary far more than real images"}
    return " or ".join(look for name, look in looks.items() if name in flaws)


def _far(scores: Mapping[str, float | None]) -> str:
    """That samples with these scores hardly overlap with real images, in a sentence, if that was measured."""
    overlap = {
        kind: max((value or 0.0 for name, value in scores.items() if name.startswith(kind)), default=FAR)
        for kind in ("precision", "recall")
    }
    if max(overlap.values()) >= FAR:
        return ""
    found = " and ".join(f"{kind} is {number(value)}" for kind, value in overlap.items())
    return f"The samples are still far from real images: {found}, of at most 1. "


def _end(trial: TrialRecord) -> str:
    if trial.attrs.diverged:
        return "diverged"
    if trial.state == "PRUNED":
        return "pruned"
    return "interrupted" if trial.reason.startswith("interrupted") else "failed"


def _interval(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    return "" if low is None else f" (95 % interval {number(low)} to {number(high)})"


def _open(found: Confirmation) -> str:
    return f" {counted(found.n_open, 'training')} still to run." if found.n_open else ""
